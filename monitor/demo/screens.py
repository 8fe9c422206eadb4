"""What the demo shows: plain lines for logs, pipes and CI, or a live panel on a terminal; both put alerts in words."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from monitor.demo.process import StreamJson
from monitor.demo.story import Act, act_at, fault_at

PLAIN_EVERY_S = 5.0
"""Between two lines of state on the plain screen."""
BAR = 24
"""Columns of the longest bar."""
SPARKS = "▁▂▃▄▅▆▇█"
WIDTH = 100
REST = 70
"""Columns of the panel beside the sparkline."""
SHOWN_SIGNALS = 6
ACT_STYLES = {Act.CALM: "green", Act.DRIFT: "yellow", Act.RECOVERY: "cyan"}
LOOKS_LIKE = {
    "sensor": "the sensor: lens, light or focus, for the picture itself has changed",
    "content": "the content: the pictures are fine, what they show is new",
    "mix": "the mix changed, single pictures look normal: one kind comes more or less often than it did",
    "replay": "a recording: the pictures are ones that were learned from",
    None: "not clear yet: no signal has moved beyond doubt",
}


@dataclass(frozen=True, slots=True)
class DemoStatus:
    """One moment of the demo."""

    time_s: float
    """Event time since the story began."""
    images_per_s: float
    streams: Mapping[str, StreamJson]


class PlainScreen:
    """Lines without colour or movement, each with the seconds since the start."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._started = time.monotonic()
        self._shown_s = float("-inf")
        self._quarter = ("", -1)

    def say(self, text: str) -> None:
        """One line of narration."""
        self._out.write(f"[{time.monotonic() - self._started:6.1f} s] {text}\n")
        self._out.flush()

    def step(self, name: str, share: float) -> None:
        """Progress of a long step, 0 to 1; a new name begins a new step."""
        quarter = (name, int(share * 4))
        if quarter != self._quarter:
            self._quarter = quarter
            self.say(f"{name}: {quarter[1] * 25} %")

    def show(self, status: DemoStatus) -> None:
        """The state now."""
        now_s = time.monotonic()
        if now_s - self._shown_s < PLAIN_EVERY_S:
            return
        self._shown_s = now_s
        lines = [
            f"{name} {stream['applied']} images, OOD {percent(stream['ood_share'])}" + " ALERT" * bool(stream["alerts"])
            for name, stream in status.streams.items()
        ]
        heading = f"{act_at(status.time_s)} at {minutes(status.time_s)}, {status.images_per_s:.0f} images/s"
        self.say(f"{heading}: {'; '.join(lines)}")

    def alert(self, document: Mapping[str, Any]) -> None:
        """An alert that the receiver got."""
        self.say(headline(document))
        for label, text in details(document):
            self.say(f"    {label:<10} {text}")

    def end(self, lines: Sequence[str], good: bool) -> None:
        """The summary; nothing else is shown after it."""
        for line in lines:
            self.say(line)
        self.say(verdict(good))

    def close(self) -> None:
        """Leave the terminal as it was; may be called twice."""


class LiveScreen:
    """`PlainScreen` for a terminal: a moving panel at the bottom, narration and alerts stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._history: dict[str, deque[float]] = {}

    def say(self, text: str) -> None:
        self._console.print(Text.assemble(("› ", "cyan"), text))
        if not self._history:  # before the first panel something has to move
            self._update(Spinner("dots", style="cyan"))

    def step(self, name: str, share: float) -> None:
        if share >= 1:
            self._update(Spinner("dots", style="cyan"))
            return
        row = Table.grid(padding=(0, 1))
        row.add_row(f"  {name}", ProgressBar(total=1.0, completed=share, width=40), percent(share))
        self._update(row)

    def show(self, status: DemoStatus) -> None:
        self._update(self.panel(status))

    def panel(self, status: DemoStatus) -> Panel:
        """The demo at one moment; remembers the OOD shares for the sparklines."""
        table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
        points = max(8, self._width - REST)
        table.add_column("line", no_wrap=True)
        table.add_column("images", justify="right", no_wrap=True)
        table.add_column("OOD share", no_wrap=True, width=points)
        table.add_column("now", justify="right", no_wrap=True)
        table.add_column("alerts", no_wrap=True, min_width=11)
        table.add_column("what the demo does", no_wrap=True)
        for name, stream in status.streams.items():
            share, alerts = stream["ood_share"], ", ".join(stream["alerts"])
            history = self._history.setdefault(name, deque(maxlen=WIDTH - REST))
            if share is not None:
                history.append(share)
            style = "red" if alerts else "green"
            table.add_row(
                Text(name, style="bold"),
                Text(f"{stream['applied']:,}"),
                Text(sparkline(list(history)[-points:]).rjust(points), style=style),
                Text(percent(share), style=style),
                Text(alerts, style="bold red") if alerts else Text("quiet", style="dim"),
                Text(_fault(name, status.time_s), style="yellow"),
            )
        act = act_at(status.time_s)
        style = ACT_STYLES[act]
        heading = Text.assemble((f" {act} ", f"bold {style}"), (f"at {minutes(status.time_s)} of the shift ", "dim"))
        rate = Text(f" {status.images_per_s:.0f} images/s ", style="dim")
        return Panel(table, title=heading, subtitle=rate, border_style=style, width=self._width)

    def alert(self, document: Mapping[str, Any]) -> None:
        mark, style = ("●", "red") if document["type"] == "alert.firing" else ("○", "green")
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column()
        for label, text in details(document):
            rows.add_row(
                label, _bars(document["data"]["signals"][:SHOWN_SIGNALS]) if label == "what moved" else Text(text)
            )
        self._print_panel(rows, f"{mark} {headline(document)}", style)

    def end(self, lines: Sequence[str], good: bool) -> None:
        self.close()
        self._print_panel(Text("\n".join(lines)), verdict(good), "green" if good else "red", box.HEAVY)

    def close(self) -> None:
        self._live.stop()

    @property
    def _width(self) -> int:
        return min(WIDTH, self._console.width)

    def _update(self, moving: RenderableType) -> None:
        self._live.start()
        self._live.update(moving)

    def _print_panel(self, body: RenderableType, title: str, style: str, frame: box.Box = box.ROUNDED) -> None:
        heading = Text(f" {title} ", style=f"bold {style}")
        self._console.print(
            Panel(body, box=frame, title=heading, title_align="left", border_style=style, width=self._width)
        )


Screen = PlainScreen | LiveScreen


def headline(document: Mapping[str, Any]) -> str:
    """`FIRING line-2 by rule drift (08:20:10)`."""
    facts = document["data"]
    return f"{facts['phase'].upper()} {facts['stream']} by rule {facts['rule']} ({document['timestamp'][11:19]})"


def details(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An alert as (label, text): what happened, how sure that is, what moved, what it looks like."""
    facts = document["data"]
    if document["type"] == "alert.resolved":
        return [("calm again", facts["summary"])]
    lines = [("what", facts["summary"]), ("how sure", _how_sure(facts))]
    if signals := facts["signals"][:SHOWN_SIGNALS]:
        lines.append(("what moved", ", ".join(f"{s['signal']} {s['effect']:.2f}" for s in signals)))
    lines.append(("looks like", LOOKS_LIKE[facts["triage"]]))
    return lines


def _fault(stream: str, time_s: float) -> str:
    fault = fault_at(stream, time_s)
    return fault.what if fault else ""


def _how_sure(facts: Mapping[str, Any]) -> str:
    """The bound on false alarms of a rule that has one over time; else the share of drifted images, with interval."""
    if facts["kind"] == "sequential":  # its summary says the share
        return "at most one false alarm a week over all lines"
    if not (severity := facts["severity"]):
        return ""
    lower, estimate, upper = (percent(severity[name]) for name in ("lower", "estimate", "upper"))
    return f"about {estimate} of the images drifted (interval {lower} to {upper})"


def _bars(signals: Sequence[Mapping[str, Any]]) -> Table:
    """A bar per signal, as long as it moved beside the strongest; image properties in another hue."""
    bars = Table.grid(padding=(0, 1))
    strongest = max(signal["effect"] for signal in signals) or 1.0
    for signal in signals:
        kind = "learned" if signal["learned"] else "mix" if signal["mix"] else "property"
        style = {"learned": "magenta", "mix": "cyan", "property": "blue"}[kind]
        bar = Text("━" * max(1, round(signal["effect"] / strongest * BAR)), style=style)
        bars.add_row(Text(signal["signal"]), bar, Text(f"{signal['effect']:.2f}"), Text(kind, style="dim"))
    return bars


def sparkline(shares: Sequence[float]) -> str:
    """One block per share; a full block is half of the images or more."""
    top = len(SPARKS) - 1
    return "".join(SPARKS[min(top, int(share * 2 * top + 0.5))] for share in shares)


def percent(share: float | None) -> str:
    """`12 %`; a dash where there is nothing to count."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def minutes(time_s: float) -> str:
    """`2:05`."""
    return "{}:{:02d}".format(*divmod(int(time_s), 60))


def verdict(good: bool) -> str:
    """The last line of the demo."""
    return "demo passed" if good else "demo FAILED"
