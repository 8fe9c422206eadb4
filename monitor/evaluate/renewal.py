"""Looks now and then whether a renewal is due, in a process of its own: a fit takes minutes, and memory."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence

import structlog

from monitor.evaluate.settings import RenewalSettings

log = structlog.get_logger(__name__)

LOOK_S = 600.0
"""Between looks at most: short beside a day in shadow; each costs two seconds of processor time."""
LEAST_LOOK_S = 1.0
LOOKS = 10
"""In the time that a renewal waits for."""
STOP_TIMEOUT_S = 2.0


class RenewalSchedule:
    """Between `start` and `stop` it runs that command now and then, one at a time.

    What the command has not finished, the next one goes on with.
    """

    def __init__(self, command: Sequence[str], look_s: float) -> None:
        self._command, self._look_s = tuple(command), look_s
        self._stop = threading.Event()
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def start(self) -> RenewalSchedule:
        """Begin to look."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Look no more; a command under way is ended."""
        self._stop.set()
        if (child := self._child) is not None:
            child.terminate()
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stop.wait(self._look_s):
            try:
                self._look()
            except OSError as error:
                log.warning("renewal.not_started", error=str(error))

    def _look(self) -> None:
        pipe = subprocess.PIPE
        with subprocess.Popen(self._command, stdout=pipe, stderr=pipe, text=True) as child:  # noqa: S603 - our own
            self._child = child
            if self._stop.is_set():  # it came before the child was known
                child.terminate()
            output, errors = child.communicate()
        self._child = None
        if self._stop.is_set():
            return
        said = (output if child.returncode == 0 else errors).strip().splitlines()
        level = log.info if child.returncode == 0 else log.warning
        level("renewal.step", status=child.returncode, said=said[-1] if said else "")


def look_every(plan: RenewalSettings) -> float:
    """Seconds between looks for a renewal that is due."""
    waits = [wait_s for wait_s in (plan.every or 0.0, plan.shadow) if wait_s]
    return max(LEAST_LOOK_S, min([LOOK_S, *(wait_s / LOOKS for wait_s in waits)]))
