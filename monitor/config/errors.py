"""What a wrong configuration raises, and the exit statuses of the command line."""

from __future__ import annotations

EXIT_CONFIG = 78


EXIT_UNAVAILABLE = 69


EXIT_SOFTWARE = 70


class ConfigError(Exception):
    """The configuration is wrong; `lines` has one line per wrong key, each naming file and key."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
