"""Places where a process can be told to die, hang or fail: how the tests reach every line between poll and receipt.

`LAYERWATCH_FAILPOINTS=after_apply:kill,score:hang@3,decode:kill~XYZ` acts at the first pass of one place, at the third
of another, and at a record that holds the text XYZ.
Unset, a failpoint is one look at an empty mapping.
"""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "LAYERWATCH_FAILPOINTS"

PLACES = {
    "claimed": "the partition is ours in Redis; nothing is read yet",
    "polled": "records are read; nothing is done with them",
    "decode": "in a decoder process: about to decode a record",
    "score": "images are decoded; about to score them",
    "before_letters": "scored; the dead letters are not written",
    "after_letters": "the dead letters are acknowledged; no verdict is written",
    "before_apply": "dead letters and verdicts are acknowledged; nothing is applied",
    "after_apply": "applied; our own cursor does not know it",
    "before_commit": "about to tell the group how far we are",
    "after_commit": "told",
    "after_seal": "a bucket is sealed, not judged",
    "before_decide": "judged, not written",
    "after_decide": "decided; our own memory does not know it",
    "before_send": "about to send an alert to a receiver",
    "after_send": "the receiver has answered 2xx; not settled",
    "after_settle": "settled",
}
"""Name -> what has happened there, and what has not."""

ACTIONS = ("kill", "hang", "error", "oom")

_armed: dict[str, tuple[str, int, bytes]] = {}
_passes: dict[str, int] = {}
_lock = threading.Lock()


def failpoint(place: str, passing: bytes | None = None) -> None:
    """Do what the environment says for this place and what passes it; nothing where it says nothing."""
    if _armed:
        _pass(place, passing or b"")


def arm(text: str) -> None:
    """Take `place:action[@pass][~text]`, comma-separated.

    Without `@` the first pass acts, with `@*` every one; with `~` only what holds that text counts as a pass.

    Raises:
        ValueError: unknown place or action.
    """
    _armed.clear()
    _passes.clear()
    for part in filter(None, (part.strip() for part in text.split(","))):
        place, _, rest = part.partition(":")
        told, _, text = rest.partition("~")
        action, _, when = told.partition("@")
        if place not in PLACES or action not in ACTIONS:
            raise ValueError(
                f"{VARIABLE}: {part!r} is not place:action[@pass][~text] with one of {', '.join(PLACES)} "
                f"and one of {', '.join(ACTIONS)}"
            )
        _armed[place] = (action, 0 if when == "*" else int(when or 1), text.encode())


def _pass(place: str, passing: bytes) -> None:
    action, at, text = _armed.get(place, ("", 0, b""))
    if not action or text not in passing:
        return
    with _lock:
        _passes[place] = _passes.get(place, 0) + 1
        if at and _passes[place] != at:
            return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        while True:
            time.sleep(3600)
    if action == "oom":
        raise MemoryError(f"failpoint {place}")
    raise RuntimeError(f"failpoint {place}")


arm(os.environ.get(VARIABLE, ""))
