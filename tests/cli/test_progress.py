"""How far a command is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from monitor.cli.progress import show_progress


def test_lines_come_at_once_and_then_at_most_one_in_ten_seconds() -> None:
    out, times_s = io.StringIO(), [100.0]
    with show_progress(Console(file=out), "evaluate", clock=lambda: times_s[-1]) as show:
        for now_s, step, share in (
            (100.0, "features of id: 64 images", -1.0),
            (103.0, "features of id: 128 images", -1.0),
            (109.9, "learning [b]dlsr-mse[/b]", 0.05),
            (110.0, "learning [b]dlsr-mse[/b]", 0.1),
            (111.0, "learning knn", 0.0),
            (121.0, "learning knn", 0.25),
            (150.0, "learning pca", 1.0),
        ):
            times_s.append(now_s)
            show(step, share)
    assert out.getvalue().splitlines() == [
        "evaluate: features of id: 64 images",
        "evaluate: learning [b]dlsr-mse[/b], 10 %, 2 s left",
        "evaluate: learning knn, 25 %, 30 s left",
        "evaluate: learning pca, 100 %",
    ]


def test_a_terminal_gets_a_bar_that_names_the_step() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with show_progress(console, "fit") as show:
        show("features of 64 images", -1.0)
        show("learning dlsr-mse", 0.9)
        show("learning knn", 0.2)
    *_, last = (line for line in out.getvalue().splitlines() if "learning" in line)
    assert "learning knn" in last
    assert "━" in last
    assert "fit:" not in out.getvalue()
