"""One display of progress for every command that takes long: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_S = 10.0
"""Between lines: few enough for a log file, and often enough to see that the command is alive."""

Show = Callable[[str, float], None]
"""Shows the name of the step under way and the share of it that is done (negative: unknown)."""


@contextmanager
def show_progress(console: Console, command: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Show how far a command is, while the block runs.

    Args:
        console: where to; on a terminal a bar that moves, elsewhere lines that begin with the command's name, the
            first at once and then at most one in LINE_S.
        clock: seconds.
    """
    if not console.is_terminal:
        yield _lines(console, command, clock)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=None)
        done = 0.0

        def show(step: str, share: float) -> None:
            nonlocal done
            if share < done:  # another step: the time left is estimated from its own speed
                bar.reset(task)
            done = max(share, 0.0)
            bar.update(task, description=step, total=None if share < 0 else 1.0, completed=done)

        yield show


def _lines(console: Console, command: str, clock: Callable[[], float]) -> Show:
    due_s, begun_s, first, last = clock(), clock(), 0.0, -1.0

    def show(step: str, share: float) -> None:
        nonlocal due_s, begun_s, first, last
        now_s = clock()
        if last < 0 or share < last:  # another step: the time left is estimated from its own speed
            begun_s, first = now_s, max(share, 0.0)
        last = share
        if now_s >= due_s:
            left = f", {(now_s - begun_s) * (1 - share) / (share - first):.0f} s left" if first < share < 1 else ""
            done = "" if share < 0 else f", {100 * share:.0f} %{left}"
            console.print(f"{command}: {step}{done}", markup=False, highlight=False, soft_wrap=True)
            due_s = now_s + LINE_S

    return show
