"""An evaluation as one self-contained HTML file: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import base64

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from detectors.evaluation.evaluate import ID, Evaluation
from detectors.evaluation.metrics import roc_curve

WIDTH, HEIGHT = 320, 160
BINS = 40
SHOWN = 12
"""Thumbnails in a row."""
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#475569", "#0f766e")
Floats = NDArray[np.float64]


def render(evaluation: Evaluation) -> str:
    """The report as HTML."""
    environment = Environment(loader=PackageLoader("detectors.evaluation"), autoescape=True, undefined=StrictUndefined)
    mine = evaluation.scores[evaluation.default]
    low, high = np.quantile(np.concatenate(list(mine.values())), [0.002, 0.998])
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    names = list(evaluation.metrics)
    sets = [
        {
            "name": name,
            "id_bars": _outline(mine[ID], edges),
            "ood_bars": _outline(mine[name], edges),
            "rocs": [
                (
                    COLOURS[i % len(COLOURS)],
                    detector,
                    _roc(evaluation.scores[detector][ID], evaluation.scores[detector][name]),
                )
                for i, detector in enumerate(names)
            ],
            "confusing": _pictures(evaluation, name, most_unusual=False),
            "worst": _pictures(evaluation, name, most_unusual=True),
        }
        for name in evaluation.ood_names
    ]
    return environment.get_template("report.html").render(
        evaluation=evaluation, sets=sets, detectors=names, width=WIDTH, height=HEIGHT,
        false_alarms=_pictures(evaluation, ID, most_unusual=True),
    )  # fmt: skip


def _outline(scores: Floats, edges: Floats) -> str:
    """Points of a filled step outline of the histogram, as shares of the highest bar of this set."""
    counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
    heights = HEIGHT - counts / max(counts.max(), 1) * (HEIGHT - 10)
    xs = np.linspace(0, WIDTH, len(edges))
    steps = [f"{x:.1f},{y:.1f}" for i, y in enumerate(heights) for x in (xs[i], xs[i + 1])]
    return " ".join([f"0,{HEIGHT}", *steps, f"{WIDTH},{HEIGHT}"])


def _roc(id_scores: Floats, ood_scores: Floats) -> str:
    flagged_id, flagged_ood = roc_curve(id_scores, ood_scores, 80)
    return " ".join(f"{x * WIDTH:.1f},{HEIGHT - y * HEIGHT:.1f}" for x, y in zip(flagged_id, flagged_ood, strict=True))


def _pictures(evaluation: Evaluation, name: str, most_unusual: bool) -> list[dict[str, str | float]]:
    """The thumbnails at one end of a set, each as a data URI, with the name and score of its image."""
    image_set, scores = evaluation.sets[name], evaluation.scores[evaluation.default][name]
    if not image_set.thumbnails:
        return []
    return [
        {
            "uri": "data:image/jpeg;base64," + base64.b64encode(image_set.thumbnails[i]).decode(),
            "name": image_set.names[i],
            "score": float(scores[i]),
        }
        for i in np.argsort(-scores if most_unusual else scores, kind="stable")[:SHOWN]
    ]
