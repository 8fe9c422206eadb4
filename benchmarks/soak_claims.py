"""What a soak injects at known times, and what must hold of the alerts, the counts and the processes at its end."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from monitor.core.alert_state import OWN_RULES
from monitor.core.readers import UNREAD_AFTER_S
from monitor.core.types import Partition
from monitor.notify.self_alerts import RECEIVER, UNREAD
from tests.faults.rig import BUCKET_MS, LATENESS_MS, Hook, Rig, bounds
from tests.notify.alertmanager import Alertmanager

FIRED_WITHIN_S = 60.0
"""After the begin of its drift, in event time: the window is 30 s, and production may stand still for a fault."""
LOOK_S = 2.0
GAP_S = 15.0
"""An alert that Alertmanager does not show for longer had ended."""
HELD_MARGIN_S = 120.0
"""Beyond the time that an unread topic holds buckets open: the roll-out, a rebalance, a fault."""


@dataclass(frozen=True)
class Drift:
    """Strange images in these lanes from `begin_s` to `end_s`, in seconds since the start."""

    name: str
    begin_s: float
    end_s: float
    lanes: tuple[int, ...]


def drifts(seconds: float) -> tuple[Drift, ...]:
    """The schedule of a run of that length; half way is when things are renamed."""
    long_s = seconds / 16  # 75 s of 20 minutes

    def drift(name: str, begin: float, *lanes: int) -> Drift:
        return Drift(name, begin * seconds, begin * seconds + long_s, lanes)

    return (
        drift("first", 0.1, 0),
        drift("second", 0.3, 1),
        drift("across the middle", 0.45, 0, 1),
        drift("soon after", 0.6, 0),
        drift("last", 0.85, 0, 1),
    )


class Watch:
    """Looks at Alertmanager every LOOK_S: when each alert was active there."""

    def __init__(self, alertmanager: Alertmanager) -> None:
        self._alertmanager = alertmanager
        self.spells: dict[str, list[list[float]]] = defaultdict(list)
        """alert id -> [first, last] time of each spell without a gap, monotonic."""
        self.streams: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                found = self._alertmanager.get("alerts")
            except httpx.HTTPError:
                continue
            now_s = time.monotonic()
            for alert in found:
                name, spells = alert["annotations"]["alert_id"], self.spells[alert["annotations"]["alert_id"]]
                self.streams[name] = f"{alert['labels']['rule']} {alert['labels']['stream']}"
                if spells and now_s - spells[-1][1] < GAP_S:
                    spells[-1][1] = now_s
                else:
                    spells.append([now_s, now_s])


@dataclass
class Seen:
    """Everything that the claims are about."""

    rig: Rig
    watch: Watch
    begun_ms: int
    drifts: Sequence[Drift]
    samples: Sequence[Mapping[str, Any]]
    strange: Mapping[tuple[str, int], int]
    """(drift, lane) -> seconds of its images that were written; one of which less than half was need not be noticed."""
    renamed: Sequence[Partition]
    """The partitions of the former topic; empty where nothing was renamed."""
    former_receivers: Sequence[str] = ()


def claims(seen: Seen) -> dict[str, str]:
    """Every claim, with its figures, or what is wrong with it."""
    told = {}
    every: dict[str, Callable[[Seen], str]] = {
        "counts exact": counts,
        "no alert lost, none with a second id": alerts,
        "none ends early at Alertmanager": alertmanager,
        "self alerts": own_alerts,
        "watermark moves": watermark,
        "memory, files, outbox flat": flat,
    }
    for name, look in every.items():
        try:
            told[name] = look(seen)
        except AssertionError as error:
            told[name] = f"WRONG: {str(error)[:600]}"
    return told


def counts(seen: Seen) -> str:
    """Every image of the logs is in Redis once, in the right bin."""
    rig = seen.rig
    found = rig.check_counts()
    in_logs = sum(end - first for first, end in bounds(rig.cluster, rig.partitions).values())
    assert in_logs >= sum(rig.produced), f"{in_logs} records in the logs, {sum(rig.produced)} acknowledged"
    assert found.accepted + len(found.rejected) == in_logs == rig.counted()
    return f"{found.accepted} accepted + {len(found.rejected)} rejected = {in_logs} in the logs; bins, letters equal"


def alerts(seen: Seen) -> str:
    """One alert per drift and stream reached the webhook, firing and resolved, under one id; and no other."""
    ids = _ids(seen.rig.hook)
    expected = {(drift.name, f"cam-{lane}") for drift in seen.drifts for lane in drift.lanes}
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    strays = []
    for alert_id, document in ids.items():
        drift = _cause(seen, document)
        if drift is None:
            strays.append(f"{alert_id} on {document['stream']} at {document['fired_at']}")
        else:
            found[drift.name, document["stream"]].add(alert_id)
    assert not strays, f"alerts without a drift: {strays}"
    half_s = {drift.name: (drift.end_s - drift.begin_s) / 2 for drift in seen.drifts}
    cut = {(name, f"cam-{lane}") for name, lane in seen.strange if seen.strange[name, lane] < half_s[name]}
    cut |= expected - {(name, f"cam-{lane}") for name, lane in seen.strange}
    expected -= cut - found.keys()
    assert not (missing := sorted(expected - found.keys())), f"lost: {missing}"
    assert not (twice := {where: names for where, names in found.items() if len(names) > 1}), f"two ids: {twice}"
    documents = [document["id"] for document in seen.rig.hook.accepted if _is_of_a_rule(document)]
    both = {f"{alert_id}-{phase}" for alert_id in ids for phase in ("firing", "resolved")}
    assert set(documents) == both, f"lost or unknown: {set(documents) ^ both}"
    again = len(documents) - len(both)
    return f"{len(ids)} of {len(expected)} fired and resolved; {again} documents sent again, with the same id"


def alertmanager(seen: Seen) -> str:
    """Each was active there once, without a gap, and has ended; one that was over when it arrived need not be seen."""
    ids, hook = set(_ids(seen.rig.hook)), seen.rig.hook
    spells = {name: found for name, found in seen.watch.spells.items() if name in ids}
    over_s = {name: _first_s(hook, f"{name}-resolved") for name in ids}
    at_once = {name for name in ids - spells.keys() if over_s[name] - _first_s(hook, f"{name}-firing") < GAP_S}
    assert not (unseen := ids - spells.keys() - at_once), f"never active: {unseen}"
    broken = {seen.watch.streams[name]: len(found) for name, found in spells.items() if len(found) > 1}
    assert not broken, f"ended and began again: {broken}"
    now_s = time.monotonic()
    open_ = [name for name, found in spells.items() if now_s - found[-1][1] < GAP_S]
    assert not open_, f"still active: {open_}"
    early = [name for name, ((_, last_s),) in spells.items() if over_s[name] - last_s > GAP_S]
    assert not early, f"ended before its end was sent: {early}"
    longest_s = max((last - first for ((first, last),) in spells.values()), default=0.0)
    return f"{len(spells)} active once each, at most for {longest_s:.0f} s, none now; {len(at_once)} over on arrival"


def own_alerts(seen: Seen) -> str:
    """A renamed topic is announced once, and so is each receiver name that is not configured any more."""
    own = {d["id"]: d["data"] for d in seen.rig.hook.accepted if d["data"]["rule"].startswith(OWN_RULES)}
    fired = sorted((d["rule"], d["stream"]) for d in own.values() if d["phase"] == "firing")
    announced = [found for found in fired if found[0] in {UNREAD, RECEIVER}]
    topics = sorted({partition.topic for partition in seen.renamed})
    expected = sorted([(UNREAD, topic) for topic in topics] + [(RECEIVER, name) for name in seen.former_receivers])
    assert announced == expected, f"announced {announced}, expected {expected}"
    found = sorted(f"{d['rule']} {d['stream']} {d['phase']}".replace(seen.rig.name, "TOPIC") for d in own.values())
    return ", ".join(found) or "none"


def watermark(seen: Seen) -> str:
    """Buckets never stay open for longer than a topic that nobody reads may hold them, and are closed at the end."""
    behind = [(sample["behind_s"], sample["s"]) for sample in seen.samples]
    allowed_s = (UNREAD_AFTER_S if seen.renamed else 0.0) + HELD_MARGIN_S
    worst_s, at_s = max(behind, default=(0.0, 0))
    assert worst_s <= allowed_s, f"{worst_s:.0f} s behind at {at_s} s"
    assert (seen.rig.store.evaluation.state().bucket_ms or 0) >= last_closable(seen.rig), "buckets are open at the end"
    usual_s = sorted(s for s, _ in behind)[len(behind) // 2] if behind else 0.0
    return f"{usual_s:.0f} s behind (median), at most {worst_s:.0f} s (at {at_s} s); all buckets closed at the end"


def flat(seen: Seen) -> str:
    """The daemon that is never killed does not grow: its samples of the second and of the last quarter."""
    rows = []
    for pid in dict.fromkeys(sample["pid"] for sample in seen.samples):
        samples = [sample for sample in seen.samples if sample["pid"] == pid]
        if len(samples) < 8:
            continue
        early, late = samples[len(samples) // 4 : len(samples) // 2], samples[-(len(samples) // 4) :]
        for name, slack in (("rss_mb", 60), ("files", 15), ("pending", 5)):
            a, b = (max(sample[name] for sample in some) for some in (early, late))
            rows.append(f"{name} {a} -> {b}")
            assert b <= a + slack, rows[-1]
    return ", ".join(rows)


def last_closable(rig: Rig) -> int:
    """Start of the last bucket that closes without further images."""
    cursors = rig.store.partitions.cursors(rig.partitions)
    left_out = rig.store.catalog.left_out()
    low_ms = min(cursor.high_ms for partition, cursor in cursors.items() if cursor and partition not in left_out)
    return (low_ms - LATENESS_MS) // BUCKET_MS * BUCKET_MS - BUCKET_MS


def _is_of_a_rule(document: Mapping[str, Any]) -> bool:
    return not document["data"]["rule"].startswith(OWN_RULES)


def _ids(hook: Hook) -> dict[str, dict[str, Any]]:
    """{alert id: the data of a document about it} of the alerts of rules."""
    return {d["data"]["alert_id"]: d["data"] for d in hook.accepted if _is_of_a_rule(d)}


def _first_s(hook: Hook, document_id: str) -> float:
    """Monotonic time of the first try to deliver a document to the webhook."""
    return min((at_s for at_s, tried in hook.tries if tried == document_id), default=float("inf"))


def _cause(seen: Seen, document: Mapping[str, Any]) -> Drift | None:
    """The drift that an alert is about."""
    fired_s = datetime.fromisoformat(document["fired_at"]).timestamp() - seen.begun_ms / 1000
    for drift in seen.drifts:
        near = drift.begin_s <= fired_s <= drift.begin_s + FIRED_WITHIN_S
        if near and document["stream"] in {f"cam-{lane}" for lane in drift.lanes}:
            return drift
    return None
