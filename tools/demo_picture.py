"""Runs `layerwatch demo` and draws docs/images/demo.svg from what its screen showed: the picture in the README."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from monitor.demo.console import DemoStatus, PlainScreen, headline
from monitor.demo.live import LiveScreen
from monitor.demo.process import PASSIVE_WAITING
from monitor.demo.story import CALM_S, DRIFT_S, Act

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "demo.svg"
COLUMNS = 102
SHOWN_AT_S = CALM_S + 0.8 * DRIFT_S
"""Of the story: when the panel is at its most telling."""


class SketchScreen:
    """A `monitor.demo.console.Screen`: plain lines to follow, and on a second console what belongs in a still picture.

    Of the panel one moment is kept, of the alerts the rate rule's; the others are one line each.
    """

    def __init__(self) -> None:
        self.console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        self._plain, self._live = PlainScreen(sys.stdout), LiveScreen(self.console, moving=False)
        self._drawn = False

    def say(self, text: str) -> None:
        self._plain.say(text)
        self._live.say(text)

    def step(self, name: str, share: float) -> None:
        self._plain.step(name, share)

    def show(self, status: DemoStatus) -> None:
        self._plain.show(status)
        panel = self._live.panel(status)  # every time: the sparklines remember the shares
        if status.act is Act.DRIFT and status.time_s > SHOWN_AT_S and not self._drawn:
            self._drawn = True
            self.console.print(panel)

    def alert(self, document: Mapping[str, Any]) -> None:
        self._plain.alert(document)
        if document["data"]["rule"] == "rate" and document["type"] == "alert.firing":
            self._live.alert(document)
        else:
            self._live.say(headline(document))

    def end(self, lines: Sequence[str], good: bool) -> None:
        self._plain.end(lines, good)
        self._live.end(lines, good)

    def close(self) -> None:
        self._live.close()


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
