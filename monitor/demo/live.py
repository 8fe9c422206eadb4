"""The live screen: a panel that moves at the bottom of the terminal, alerts that stay above it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from monitor.demo.console import StreamView, View, details, headline, minutes, percent
from monitor.demo.story import Act

BAR = 24
SPARKS = "▁▂▃▄▅▆▇█"
WIDTH = 100
REST = 70
"""Columns of the panel that are no sparkline."""
SPARK_POINTS = WIDTH - REST
ACT_STYLES = {Act.CALM: "green", Act.DRIFT: "yellow", Act.RECOVERY: "cyan"}


class LiveScreen:
    """A `monitor.demo.console.Screen` for a terminal.

    Args:
        moving: False leaves out all that moves and shows only what stays.
    """

    def __init__(self, console: Console, moving: bool = True) -> None:
        self._console, self._moving = console, moving
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._history: dict[str, deque[float]] = {}

    def say(self, text: str) -> None:
        """See `Screen.say`."""
        self._console.print(Text.assemble(("› ", "cyan"), text))
        if not self._history:  # before the first panel something has to move
            self._update(Spinner("dots", style="cyan"))

    def step(self, name: str, share: float) -> None:
        """See `Screen.step`."""
        if share >= 1:
            self._update(Spinner("dots", style="cyan"))
            return
        row = Table.grid(padding=(0, 1))
        row.add_row(f"  {name}", ProgressBar(total=1.0, completed=share, width=40), percent(share))
        self._update(row)

    def show(self, view: View) -> None:
        """See `Screen.show`."""
        self._update(self.panel(view))

    def panel(self, view: View) -> Panel:
        """The picture of one moment; remembers the OOD shares for the sparklines."""
        table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
        points = max(8, self._width - REST)
        table.add_column("line", no_wrap=True)
        table.add_column("images", justify="right", no_wrap=True)
        table.add_column("OOD share", no_wrap=True, width=points)
        table.add_column("now", justify="right", no_wrap=True)
        table.add_column("alerts", no_wrap=True, min_width=11)
        table.add_column("what the demo does", no_wrap=True)
        for stream in view.streams:
            history = self._history.setdefault(stream.name, deque(maxlen=SPARK_POINTS))
            if stream.ood_share is not None:
                history.append(stream.ood_share)
            table.add_row(*_cells(stream, list(history)[-points:], points))
        heading = Text.assemble(
            (f" {view.act} ", f"bold {ACT_STYLES[view.act]}"), (f"at {minutes(view.time_s)} of the shift ", "dim")
        )
        rate = Text(f" {view.images_per_s:.0f} images/s ", style="dim")
        return Panel(table, title=heading, subtitle=rate, border_style=ACT_STYLES[view.act], width=self._width)

    def alert(self, document: Mapping[str, Any]) -> None:
        """See `Screen.alert`."""
        firing = document["type"] == "alert.firing"
        style = "red" if firing else "green"
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column()
        for label, text in details(document):
            if label == "what moved":
                rows.add_row(label, _bars(document["data"]["signals"][:6]))
            else:
                rows.add_row(label, Text(text))
        title = Text(f" {'●' if firing else '○'} {headline(document)} ", style=f"bold {style}")
        self._console.print(Panel(rows, title=title, title_align="left", border_style=style, width=self._width))

    def end(self, lines: Sequence[str], good: bool) -> None:
        """See `Screen.end`."""
        self.close()
        style, verdict = ("green", "demo passed") if good else ("red", "demo FAILED")
        body: list[RenderableType] = [Text(line) for line in lines]
        title = Text(f" {verdict} ", style=f"bold {style}")
        panel = Panel(Group(*body), title=title, title_align="left", box=box.HEAVY, border_style=style)
        panel.width = self._width
        self._console.print(panel)

    def close(self) -> None:
        """See `Screen.close`."""
        self._live.stop()

    def _update(self, moving: RenderableType) -> None:
        if self._moving:
            self._live.start()
            self._live.update(moving)

    @property
    def _width(self) -> int:
        return min(WIDTH, self._console.width)


def _cells(stream: StreamView, history: Sequence[float], points: int) -> tuple[RenderableType, ...]:
    hot = bool(stream.alerts)
    style = "red" if hot else "green"
    return (
        Text(stream.name, style="bold"),
        Text(f"{stream.applied:,}"),
        Text(sparkline(history).rjust(points), style=style),
        Text(percent(stream.ood_share), style=style),
        Text(", ".join(stream.alerts) or "quiet", style=f"bold {style}" if hot else "dim"),
        Text(stream.trouble, style="yellow"),
    )


def sparkline(shares: Sequence[float]) -> str:
    """One block per share; a full block is half of the images or more."""
    top = len(SPARKS) - 1
    return "".join(SPARKS[min(top, int(share * 2 * top + 0.5))] for share in shares)


def _bars(signals: Sequence[Mapping[str, Any]]) -> Table:
    """A bar per signal, as long as it moved beside the strongest; image properties in another hue."""
    bars = Table.grid(padding=(0, 1))
    strongest = max((signal["effect"] for signal in signals), default=0.0) or 1.0
    for signal in signals:
        learned = signal["learned"]
        length = max(1, round(signal["effect"] / strongest * BAR))
        kind = "learned" if learned else "property"
        bar = Text("━" * length, style="magenta" if learned else "blue")
        bars.add_row(Text(signal["signal"]), bar, Text(f"{signal['effect']:.2f}"), Text(kind, style="dim"))
    return bars
