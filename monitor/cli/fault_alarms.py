"""What a fault costs in images until the alarm, simulated with the rules themselves: as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectors.evaluation.tables import TextTable
from monitor.core.buckets import Layout
from monitor.rules.bounds import Floats
from monitor.rules.rule import Rule
from monitor.rules.simulation import Delays, Scenario, Simulated, simulate


@dataclass(frozen=True)
class FaultAlarms:
    """rules: names of those that were simulated. left_out: why others were not. simulated: None without a rule."""

    scenario: Scenario
    rules: tuple[str, ...]
    left_out: tuple[str, ...]
    simulated: Simulated | None

    @classmethod
    def of(
        cls,
        rules: Sequence[Rule],
        layout: Layout,
        p_values: tuple[Floats, Mapping[str, Floats]],
        settings: tuple[int, Scenario],
        progress: Callable[[float], None],
    ) -> FaultAlarms:
        """Simulate; arguments as those of `simulate`, but that rules may be unable to judge by the layout.

        Args:
            settings: seconds in a bucket, and the scenario.
        """
        able, left_out = [], []
        for rule in rules:
            try:
                rule.check(layout)
            except (KeyError, ValueError) as error:
                left_out.append(f"{rule.name} cannot judge by this profile: {error.args[0]}")
            else:
                able.append(rule)
        simulated = simulate(able, layout, p_values, *settings, progress) if able else None
        return cls(settings[1], tuple(rule.name for rule in able), tuple(left_out), simulated)

    def table(self) -> TextTable:
        """Faults down, rules across; above it the first alarm of each fault in words."""
        share, found = f"{100 * self.scenario.share:g} %", self.simulated
        title = f"Images until the alarm, {share} faulty"
        if found is None:
            return TextTable(title, self.left_out, (), ())
        several = len(self.rules) > 1
        words = "; ".join(
            f"{share} {fault}: {self._in_words(Delays.first([*of.values()]))}" for fault, of in found.faults.items()
        )
        counts = ", ".join(f"{rule} {_with_cause(causes)}" for rule, causes in found.false_alarms.items())
        notes = (
            f"{words}.",
            f"Median (90 %) of {self.scenario.streams} streams of one image a second, drawn from the images given; "
            f"{self.scenario.before:,} normal ones come before the fault.",
            f"False alarms in {found.images:,} normal images: {counts}.",
            *self.left_out,
        )
        rows = []
        for fault, of in found.faults.items():
            shown = [*([Delays.first([*of.values()])] if several else []), *of.values()]
            rows.append((fault, *map(self._cell, shown)))
        return TextTable(title, notes, ("fault", *(["first alarm"] if several else []), *self.rules), tuple(rows))

    def document(self) -> dict[str, Any]:
        """Plain values for --json."""
        scenario, found = self.scenario, self.simulated
        return {
            "share": scenario.share,
            "streams": scenario.streams,
            "images_before": scenario.before,
            "images_within": scenario.within,
            "images_per_second": 1,
            "faults": {
                fault: {
                    "first": _numbers(Delays.first([*of.values()])),
                    "rules": {rule: _numbers(delays) for rule, delays in of.items()},
                }
                for fault, of in (found.faults.items() if found else ())
            },
            "normal": {
                "images": found.images,
                "false_alarms": {rule: dict(causes) for rule, causes in found.false_alarms.items()},
            }
            if found
            else None,
            "left_out": list(self.left_out),
        }

    def _in_words(self, delays: Delays) -> str:
        if delays.early == len(delays.images):
            return "alarms on normal images already"
        median = delays.quantile(0.5)
        return f"not within {self.scenario.within:,}" if median is None else f"about {_rounded(median):,} images"

    def _cell(self, delays: Delays) -> str:
        if delays.early == len(delays.images):
            return "alarms before"
        median, most = (delays.quantile(share) for share in (0.5, 0.9))
        never = f"> {self.scenario.within:,}"
        return f"{never if median is None else f'{median:,}'} ({never if most is None else f'{most:,}'})"


def _numbers(delays: Delays) -> dict[str, int | None]:
    return {"median": delays.quantile(0.5), "p90": delays.quantile(0.9), "early": delays.early}


def _with_cause(causes: Mapping[str, int]) -> str:
    return f"{sum(causes.values())} ({next(iter(causes))})" if causes else "0"


def _rounded(images: int) -> int:
    """To two digits: the median of twenty streams says no more."""
    step: int = 10 ** max(0, len(str(images)) - 2)
    return round(images / step) * step
