"""Where the commands print their tables."""

from __future__ import annotations

from rich.console import Console

UNBOUNDED = 100_000
"""Columns where only programs read."""


def open_console() -> Console:
    """Prints to stdout; lines are as wide as a terminal, and elsewhere as wide as what they hold."""
    console = Console()
    if not console.is_terminal:
        console.width = UNBOUNDED
    return console
