"""Failpoints: places where a test makes a process die, hang or fail, at every step between poll and delivery.

`LAYERWATCH_FAILPOINTS=after_apply:kill,score:hang@3,decode:kill~XYZ` acts on the first pass of one place, on the third
pass of another, and on a record that contains the text XYZ. Unarmed, a failpoint costs one look-up in an empty mapping.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter

VARIABLE = "LAYERWATCH_FAILPOINTS"

PLACES = {
    "claimed": "the partition is claimed in Redis; nothing is read yet",
    "polled": "records are read, not yet decoded",
    "decode": "in a decoder process: about to decode a record",
    "score": "images are decoded; about to score them",
    "before_letters": "scored; the dead letters are not written",
    "after_letters": "the dead letters are acknowledged; no verdict is written",
    "before_apply": "dead letters and verdicts are acknowledged; nothing is applied",
    "after_apply": "applied in Redis; the cursor in memory is not advanced",
    "before_switch": "all that was begun by the old profiles is applied; nothing is begun by the new ones",
    "before_picture": "the worst images are applied; a heat map or a large picture of one is not kept",
    "before_commit": "about to commit the offsets to the consumer group",
    "after_commit": "the offsets are committed",
    "after_seal": "a bucket is sealed in every partition; no shard knows",
    "before_judge": "all shards may judge the bucket; one is about to",
    "before_decide": "judged, not written",
    "after_decide": "decided in Redis; the state in memory is not updated",
    "before_checkpoint": "decided; no row of a rule is stored",
    "shards_changed": "another number of shards is in force; nothing that they hold is moved",
    "shards_copied": "what goes to other shards is copied, not removed",
    "shards_removed": "it is moved; the change is not over",
    "before_send": "about to send an alert to a receiver",
    "after_send": "the receiver answered 2xx; the entry is not settled",
    "after_settle": "the entry is settled",
}
"""Name -> what has happened there, and what has not."""

ACTIONS = ("kill", "stop", "hang", "error", "oom")
SYNTAX = re.compile(r"(?P<place>\w+):(?P<action>\w+)(@(?P<nth>\d+|\*))?(~(?P<text>.*))?")

_armed: dict[str, tuple[str, int, bytes]] = {}
_passes: Counter[str] = Counter()
_lock = threading.Lock()


def failpoint(place: str, passing: bytes | None = None) -> None:
    """Act as armed for this place and this passing record; do nothing where the place is not armed."""
    if place not in _armed:
        return
    action, nth, text = _armed[place]
    if text not in (passing or b""):
        return
    with _lock:
        _passes[place] += 1
        if nth and _passes[place] != nth:
            return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "stop":  # the whole process stands still until SIGCONT, as on a suspended machine
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.5)  # a stop reaches the calling thread a little later
        return
    if action == "hang":
        while True:
            time.sleep(3600)
    if action == "oom":
        raise MemoryError(f"failpoint {place}")
    raise RuntimeError(f"failpoint {place}")


def arm(text: str) -> None:
    """Arm `place:action[@pass][~text]`, comma-separated; what was armed before is dropped.

    Without `@` the first pass acts, with `@*` every pass; with `~` only records that contain the text count as passes.

    Raises:
        ValueError: unknown place or action, or another syntax.
    """
    _armed.clear()
    _passes.clear()
    for part in filter(None, map(str.strip, text.split(","))):
        found = SYNTAX.fullmatch(part)
        if not found or found["place"] not in PLACES or found["action"] not in ACTIONS:
            raise ValueError(
                f"{VARIABLE}: {part!r} is not place:action[@pass][~text] with one of {', '.join(PLACES)} "
                f"and one of {', '.join(ACTIONS)}"
            )
        nth = 0 if found["nth"] == "*" else int(found["nth"] or 1)
        _armed[found["place"]] = (found["action"], nth, (found["text"] or "").encode())


arm(os.environ.get(VARIABLE, ""))
