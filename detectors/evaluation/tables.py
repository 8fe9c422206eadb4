"""Evaluations and profiles as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from detectors.profile.spec import size_text

if TYPE_CHECKING:
    from detectors.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class TextTable:
    """A table for a terminal and for a report: texts alone, and what is said about them above the table."""

    title: str
    notes: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> Iterator[Text | Table]:
        """The notes, then the table; a table without columns is left out."""
        yield from map(Text, self.notes)
        if self.header:
            table = Table(title=Text(self.title), title_justify="left")
            for i, name in enumerate(self.header):
                table.add_column(Text(name), justify="right" if i else "left")
            for row in self.rows:
                table.add_row(*map(Text, row))
            yield table


def evaluation_tables(evaluation: Evaluation) -> Iterator[Table]:
    """All detectors on all sets, then the layers of the default."""
    table = Table(title="AUROC [95 % interval] / FPR@95TPR / AUPR", title_justify="left")
    table.add_column("detector", overflow="fold", min_width=max(map(len, evaluation.metrics), default=0))
    for name in ("mean", *evaluation.ood_names):
        table.add_column(name, justify="right")
    for detector, sets in evaluation.metrics.items():
        mean = " / ".join(f"{evaluation.mean(detector, metric):.3f}" for metric in ("auroc", "fpr95", "aupr"))
        style = "bold" if detector == evaluation.default else ""
        table.add_row(detector, mean, *(_cell(sets[name]) for name in evaluation.ood_names), style=style)
    yield table
    if evaluation.layers:
        layers = Table(title=f"AUROC of the layers of {evaluation.default}", title_justify="left")
        layers.add_column("layer")
        for name in evaluation.layers:
            layers.add_column(name, justify="right")
        for i in range(len(next(iter(evaluation.layers.values())))):
            layers.add_row(f"layer{i + 1}", *(f"{of[i]['auroc']:.3f}" for of in evaluation.layers.values()))
        yield layers


def profile_tables(document: Mapping[str, Any], calibration_sizes: Sequence[int]) -> Iterator[Table]:
    """The model card: what was learned from what, then every signal and its calibration."""
    card = Table(title=f"Profile {document['fingerprint']}", title_justify="left", show_header=False)
    backbone, images = document["backbone"], document["images"]
    facts = {
        "detector": f"{document['detector']} {document.get('detector_options') or ''}",
        "chosen": choice_text(document),
        "learning": document.get("learning") or "",
        "backbone": f"{backbone['model']} ({backbone['weights']}), {size_text(backbone['input_px'])} px, "
        f"{backbone.get('resize', 'stretch')}, {backbone.get('decoding', 'full')} decoding",
        "layers": backbone["layers"],
        "images": ", ".join(f"{name} {count}" for name, count in images.items()),
        "white level": white_level_text(document.get("tones", {}).get("white_level")),
        "hash of the images": document.get("images_hash", ""),
        "fitted": f"{document['fitted_at']}, {document['seconds']} s, {document.get('peak_memory_mib', '?')} MiB",
        "calibrated": document.get("calibrated_at", "at fit"),
        "order": order_text(document),
        "versions": ", ".join(f"{name} {number}" for name, number in document["versions"].items()),
    }
    for name, value in facts.items():
        card.add_row(name, str(value).strip())
    yield card
    table = Table(title="Signals", title_justify="left")
    for column in ("signal", "calibrated on", "dependence", "p1", "median", "p95", "p99"):
        table.add_column(column, justify="left" if column == "signal" else "right")
    summary = document["calibration_scores"]
    for signal, size, inflation in zip(document["signals"], calibration_sizes, document["dependence"], strict=True):
        quantiles = (f"{summary[signal][q]:.4g}" for q in ("p1", "p50", "p95", "p99"))
        table.add_row(signal, str(size), f"{inflation:.2f}", *quantiles)
    yield table
    if conditions := document.get("conditions"):
        yield _conditions(conditions)


def _conditions(conditions: Mapping[str, Any]) -> Table:
    table = Table(title="Conditions, each with a calibration of its own", title_justify="left")
    for column in ("condition", "fingerprint", "calibrated on", "calibrated", "order", "median ood"):
        table.add_column(column, justify="right" if column in {"calibrated on", "median ood"} else "left")
    for name, facts in conditions.items():
        size, median = facts["images"]["calibration"], facts["calibration_scores"]["ood"]["p50"]
        order = "frames in order" if facts["ordered"] else "independent"
        table.add_row(name, facts["fingerprint"], str(size), facts["calibrated_at"], order, f"{median:.4g}")
    return table


def order_text(document: Mapping[str, Any]) -> str:
    """What the model card says of the order of the images."""
    order = "frames in time order" if document.get("ordered") else "independent images"
    return order + "".join(f": {text}" for text in [document.get("frames", {}).get("note")] if text)


def choice_text(document: Mapping[str, Any]) -> str:
    """What the model card says of how the detector was chosen."""
    choice = document.get("choice")
    if not choice:
        return "by name"
    found = ", ".join(f"{share:.0%} with {grid} x {grid} cells" for grid, share in choice["pasted"].items())
    detector, cells = document["detector"], document["backbone"].get("grid", 1)
    shows = max(choice["pasted"].values()) >= choice["from"]
    why = (
        f"small faults show in these images: {detector}, with {cells} cells a side"
        if shows
        else f"these images differ too much for small faults to show: {detector}, which looks at whole images"
    )
    return (
        f"a patch of another image was pasted into {choice['images']} images; the pasted image stood out against the "
        f"whole one in {found} ({choice['from']:.0%} decides). So {why}"
    )


def white_level_text(white_level: int | None) -> str:
    """What the model card says of 16-bit images."""
    if white_level is None:
        return "none: the reference has no 16-bit images, and of such images the high byte counts"
    return f"{white_level} ({white_level.bit_length()} bits): what 16-bit images count as white"


def _cell(metrics: Mapping[str, Any]) -> str:
    low, high = metrics["auroc_interval"]
    return f"{metrics['auroc']:.3f} [{low:.3f}, {high:.3f}] / {metrics['fpr95']:.3f} / {metrics['aupr']:.3f}"
