"""An evaluation as one self-contained HTML file: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from detectors.evaluation.evaluate import ID, Evaluation, Shown
from detectors.evaluation.metrics import roc_curve
from detectors.evaluation.tables import TextTable
from detectors.images.overlay import overlay

WIDTH, HEIGHT = 320, 160
BINS = 40
SHOWN = 12
"""Pictures in a row."""
THUMBNAIL_PX = 64
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#475569", "#0f766e")
Floats = NDArray[np.float64]


def render(evaluation: Evaluation, tables: Sequence[TextTable] = ()) -> str:
    """The report as HTML; `tables` come after those of the evaluation itself."""
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
            "confusing": _pictures(evaluation.sets[name].normal),
            "worst": _pictures(evaluation.sets[name].unusual),
        }
        for name in evaluation.ood_names
    ]
    return environment.get_template("report.html").render(
        evaluation=evaluation, sets=sets, detectors=names, tables=tables, width=WIDTH, height=HEIGHT,
        false_alarms=_pictures(evaluation.sets[ID].unusual),
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


def _pictures(images: Sequence[Shown]) -> list[dict[str, str | float]]:
    """Each image as a thumbnail in a data URI, with its name and score, and the same with its heat map ("" if none)."""
    return [
        {
            "uri": _data_uri(shown.image.seen),
            "heat": "" if shown.heat is None else _data_uri(overlay(shown.image.seen, shown.heat)),
            "name": shown.name,
            "score": shown.score,
        }
        for shown in images
    ]


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    small = Image.fromarray(pixels)
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
