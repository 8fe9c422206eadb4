"""Runs `layerwatch demo` and draws docs/images/demo.svg from what its screen showed: the picture in the README."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from monitor.demo.process import PASSIVE_WAITING
from monitor.demo.screens import DemoStatus, LiveScreen, PlainScreen, headline
from monitor.demo.story import CALM_S, DRIFT_ENDS_S, DRIFT_S

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "demo.svg"
COLUMNS = 102
SHOWN_AT_S = CALM_S + 0.8 * DRIFT_S
"""Of the story: when the panel is at its most telling."""


class SketchScreen(LiveScreen):
    """Plain lines to follow on stdout, and on a recording console what belongs in a still picture.

    Of the panel one moment is kept, of the alerts the rate rule's; the others are one line each.
    """

    def __init__(self) -> None:
        self.console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        super().__init__(self.console)
        self._plain = PlainScreen(sys.stdout)
        self._drawn = False

    def say(self, text: str) -> None:
        self._plain.say(text)
        super().say(text)

    def step(self, name: str, share: float) -> None:
        self._plain.step(name, share)

    def show(self, status: DemoStatus) -> None:
        self._plain.show(status)
        panel = self.panel(status)  # every time: the sparklines remember the shares
        if not self._drawn and SHOWN_AT_S < status.time_s < DRIFT_ENDS_S:
            self._drawn = True
            self.console.print(panel)

    def alert(self, document: Mapping[str, Any]) -> None:
        self._plain.alert(document)
        if document["data"]["rule"] == "rate" and document["type"] == "alert.firing":
            super().alert(document)
        else:
            super().say(headline(document))

    def end(self, lines: Sequence[str], good: bool) -> None:
        self._plain.end(lines, good)
        super().end(lines, good)

    def _update(self, moving: RenderableType) -> None:
        """Nothing moves in a still picture."""


def main() -> int:
    """Run the demo, write the picture; the demo's exit status."""
    os.environ.update(PASSIVE_WAITING)
    from monitor.demo.command import run_demo  # noqa: PLC0415 - after the environment is set

    screen = SketchScreen()
    status = run_demo(screen)
    svg = screen.console.export_svg(title="layerwatch demo")
    # no web font: a picture in a README must not load anything, and the reader's own monospace font does well
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(svg, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
