"""The live screen: a moving panel at the bottom of the terminal, alerts that stay above it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from monitor.demo.console import DemoStatus, LineStatus, details, headline, minutes, percent
from monitor.demo.story import Act

BAR = 24
"""Columns of the longest bar."""
SPARKS = "▁▂▃▄▅▆▇█"
WIDTH = 100
REST = 70
"""Columns of the panel beside the sparkline."""
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
        for line in status.lines:
            history = self._history.setdefault(line.name, deque(maxlen=SPARK_POINTS))
            if line.ood_share is not None:
                history.append(line.ood_share)
            table.add_row(*_cells(line, sparkline(list(history)[-points:]).rjust(points)))
        heading = Text.assemble(
            (f" {status.act} ", f"bold {ACT_STYLES[status.act]}"), (f"at {minutes(status.time_s)} of the shift ", "dim")
        )
        rate = Text(f" {status.images_per_s:.0f} images/s ", style="dim")
        return Panel(table, title=heading, subtitle=rate, border_style=ACT_STYLES[status.act], width=self._width)

    def alert(self, document: Mapping[str, Any]) -> None:
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
        self.close()
        style, verdict = ("green", "demo passed") if good else ("red", "demo FAILED")
        title = Text(f" {verdict} ", style=f"bold {style}")
        body = Text("\n".join(lines))
        self._console.print(
            Panel(body, title=title, title_align="left", box=box.HEAVY, border_style=style, width=self._width)
        )

    def close(self) -> None:
        self._live.stop()

    def _update(self, moving: RenderableType) -> None:
        if self._moving:
            self._live.start()
            self._live.update(moving)

    @property
    def _width(self) -> int:
        return min(WIDTH, self._console.width)


def _cells(line: LineStatus, shares: str) -> tuple[Text, ...]:
    style = "red" if line.alerts else "green"
    return (
        Text(line.name, style="bold"),
        Text(f"{line.applied:,}"),
        Text(shares, style=style),
        Text(percent(line.ood_share), style=style),
        Text(", ".join(line.alerts) or "quiet", style=f"bold {style}" if line.alerts else "dim"),
        Text(line.fault, style="yellow"),
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
        kind, style = ("learned", "magenta") if signal["learned"] else ("property", "blue")
        bar = Text("━" * max(1, round(signal["effect"] / strongest * BAR)), style=style)
        bars.add_row(Text(signal["signal"]), bar, Text(f"{signal['effect']:.2f}"), Text(kind, style="dim"))
    return bars
