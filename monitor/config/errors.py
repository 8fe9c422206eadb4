"""Errors that end a command, and the exit statuses of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_SOFTWARE = 70
EXIT_CONFIG = 78


class CommandError(Exception):
    """Ends a command: the message goes to stderr and the process exits with `status`."""

    def __init__(self, message: str, status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.status = status


class ConfigError(CommandError):
    """The configuration is wrong; `lines` has one line per wrong key, each naming file and key."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines), EXIT_CONFIG)
        self.lines = lines


@contextmanager
def as_command_error(command: str, *errors: type[Exception], status: int = EXIT_FAILED) -> Iterator[None]:
    """Turn these errors into the CommandError `layerwatch COMMAND: MESSAGE`."""
    try:
        yield
    except errors as error:
        raise CommandError(f"layerwatch {command}: {error}", status) from error
