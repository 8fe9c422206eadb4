"""Another version of a profile is taken up by replicas that read and count, and one dies while it switches."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detectors.profile.fit import recalibrate
from detectors.profile.profile import Profile
from detectors.versions.store import ProfileStore
from monitor.core.types import Partition, Record
from tests.faults.recount import Rates, recount
from tests.faults.rig import BUCKET_MS, LATENESS_MS, STEP_MS, Daemon, Rig, normal, read_log, wait_for
from tests.pictures import pictures

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(400)]

PARTITIONS, PER_PARTITION = 3, 1667


def pss_mb(pid: int) -> float:
    """Of a process and its decoders."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = next(float(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:"))
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return own + sum(pss_mb(int(child)) for task in tasks for child in (task / "children").read_text().split())


def two_versions(profile_folder: Path, tmp_path: Path) -> tuple[ProfileStore, dict[str, Path]]:
    """A store of which the first is active, and {fingerprint: folder} of both."""
    store, folders = ProfileStore(str(tmp_path / "store")), [profile_folder, tmp_path / "second"]
    second = Profile.load(profile_folder, "cpu")
    recalibrate(second, pictures(61, 200))
    second.save(folders[1])
    for folder in folders:
        store.add(folder)
    store.promote("1")
    return store, dict(zip((v.fingerprint for v in store.journal().versions), folders, strict=True))


def test_three_replicas_take_a_version_up_and_back_and_count_every_image_under_one(
    make_rig: Callable[..., Rig], profile_folder: Path, tmp_path: Path
) -> None:
    store, by_fingerprint = two_versions(profile_folder, tmp_path)
    rig = make_rig(partitions=PARTITIONS, settings={"scoring": {"profile": store.root}})
    lines = rig.cluster.create_topic(f"{rig.name}.verdicts")
    rig.settings["verdicts"] = {"type": "kafka", "target": lines}

    def write(until: int) -> None:
        for index in range(PARTITIONS):
            numbers = range(rig.produced[index], until)
            rig.write(index, [normal()[i % 80] for i in numbers], [rig.start_ms + i * STEP_MS // 4 for i in numbers])

    def score_with(fingerprint: str) -> Callable[[], bool]:
        def agreed() -> bool:
            replicas = [
                r for r in rig.store.catalog.replicas() if int(r.name.rpartition("/")[2]) in pids(rig.running())
            ]
            assert all(daemon.ready()[0] == 200 for daemon in settled)
            return len(replicas) == PARTITIONS and all(list(r.fingerprints) == [fingerprint] for r in replicas)

        return agreed

    first, other = by_fingerprint
    dying, *settled = [rig.start("before_switch:kill"), rig.start(), rig.start()]
    wait_for("partitions for all", lambda: all(d.metric("layerwatch_partitions_owned") for d in rig.running()))
    write(600)
    rig.await_counted(900)
    before_mb = [pss_mb(daemon.pid) for daemon in settled]
    store.promote("2")
    write(1000)
    wait_for("the death of one at its switch", dying.ended)
    assert dying.status == -signal.SIGKILL
    rig.start()
    wait_for("all to score with the second", score_with(other))
    write(1400)
    rig.await_counted(PARTITIONS * 1200)
    store.roll_back("as before")
    write(PER_PARTITION)
    wait_for("all to score with the first", score_with(first))
    rig.await_counted()
    wait_for("the old ones to be freed", lambda: all(d.events("profiles.switched")[1:] for d in settled))
    after_mb = [pss_mb(daemon.pid) for daemon in settled]
    print(f"PSS in MB before the first switch {before_mb}, after the second {after_mb}")
    assert sum(after_mb) < 1.2 * sum(before_mb)

    # of a line that was written again the last counts: the one before was not applied
    rows: list[dict[str, Any]] = [
        json.loads(record.value or b"") for record in read_log(rig.cluster, Partition(lines, 0))
    ]
    judges = {row["id"]: by_fingerprint[row["profile"]] for row in rows}
    assert len(judges) == PARTITIONS * PER_PARTITION == 5001

    def judged_by(record: Record) -> Path:
        return judges[f"{record.partition.topic}/{record.partition.index}/{record.offset}"]

    logs = [rig.log_of(i) for i in range(PARTITIONS)]
    expected = recount(logs, profile_folder, Rates(BUCKET_MS, LATENESS_MS), judged_by)
    for fingerprint, folder in by_fingerprint.items():
        buckets = rig.store.counts.buckets(rig.partitions, fingerprint, 0, 2**52)
        found = {start: {s: v.tolist() for s, v in streams.items()} for start, streams in buckets.items()}
        assert found == expected.by_profile[folder]
    totals = rig.store.counts.totals(rig.partitions)
    assert {s: (t.applied, t.rejected) for s, t in totals.items()} == expected.totals
    assert min(Counter(judges.values()).values()) > 500
    assert not rig.store.outbox.self_alerts()


def pids(daemons: list[Daemon]) -> set[int]:
    return {daemon.pid for daemon in daemons}
