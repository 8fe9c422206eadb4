"""Per-image verdicts of real daemons that crash: at least one for every accepted image, in the order of its log."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from monitor.core.buckets import cut_index, exceedances
from monitor.core.types import Partition
from monitor.sources.redis_streams.log import log_key, open_connection, parse_record
from monitor.store.settings import RedisSettings
from tests.faults.rig import Rig, read_log, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

MakeRig = Callable[..., Rig]
LEVEL = 0.05


def read_verdicts(rig: Rig) -> list[dict[str, Any]]:
    """Everything in the sink, in its order; streams keep to one partition of it."""
    sink = rig.settings["verdicts"]
    if sink["type"] == "jsonl":
        return [json.loads(line) for line in Path(sink["target"]).read_text().splitlines()]
    if sink["type"] == "kafka":
        return [
            json.loads(r.value or b"") for i in range(2) for r in read_log(rig.cluster, Partition(sink["target"], i))
        ]
    partition = Partition(sink["target"], 0)
    connection = open_connection(RedisSettings(url=SecretStr(rig.settings["redis"]["url"])))
    entries = connection.client.xrange(log_key(partition))
    connection.close()
    return [json.loads(parse_record(partition, entry, fields).value or b"") for entry, fields in entries]


def check_order(rig: Rig, ids: Sequence[str]) -> None:
    """Without repeats each partition's images stand in the order of its log."""
    firsts = list(dict.fromkeys(ids))
    for index in range(len(rig.partitions)):
        offsets = [int(name.rsplit("/", 1)[1]) for name in firsts if name.startswith(f"{rig.topic}/{index}/")]
        assert offsets == sorted(offsets)


def sink_of(rig: Rig, kind: str, tmp_path: Path) -> dict[str, Any]:
    """Settings of a sink that is there to be written."""
    if kind == "kafka":
        return {"type": kind, "target": rig.cluster.create_topic(f"{rig.name}.verdicts", 2)}
    return {"type": kind, "target": str(tmp_path / "verdicts.jsonl") if kind == "jsonl" else f"{rig.name}.verdicts"}


@pytest.mark.parametrize(
    "kind", ["kafka", *(pytest.param(k, marks=pytest.mark.faults) for k in ("jsonl", "redis-stream"))]
)
def test_every_accepted_image_has_a_verdict_whatever_crashed(rig: Rig, kind: str, tmp_path: Path) -> None:
    rig.settings["verdicts"] = sink_of(rig, kind, tmp_path)
    rig.tell()
    for place in ("before_apply:kill@2", "after_apply:kill@1"):  # enough batches for both, however large they are
        crashing = rig.start(place)
        wait_for(f"the crash at {place}", crashing.ended)
        assert crashing.status == -signal.SIGKILL
    daemon = rig.start()
    rig.await_counted()
    rejected = {(letter.key or b"").decode() for letter in rig.letters()}
    rows = read_verdicts(rig)
    ids = [row["id"] for row in rows]
    logs = [record for i in range(len(rig.partitions)) for record in rig.log_of(i)]
    accepted = {
        f"{r.partition.topic}/{r.partition.index}/{r.offset}": r
        for r in logs
        if f"{r.partition}:{r.offset}" not in rejected
    }
    assert set(ids) == set(accepted)
    assert len(accepted) == sum(t.applied for t in rig.store.counts.totals(rig.partitions).values())
    assert len(ids) > len(set(ids))  # the first crash came between writing and counting
    check_order(rig, ids)
    for row in rows:
        assert row["stream"] == (accepted[row["id"]].key or b"").decode()
        assert row["ood"] == (row["p_values"]["ood"] <= LEVEL)
    assert daemon.terminate() == 0
    assert len(read_verdicts(rig)) == len(rows)


def test_a_level_lets_the_unusual_ones_through_alone(make_rig: MakeRig, tmp_path: Path) -> None:
    sink = {"type": "jsonl", "target": str(tmp_path / "verdicts.jsonl"), "max_p_value": LEVEL}
    rig = make_rig(settings={"verdicts": sink})
    rig.tell()
    rig.start()
    rig.await_counted()
    layout = rig.store.catalog.layouts()[rig.fingerprint()]
    buckets = rig.store.counts.buckets(rig.partitions, rig.fingerprint(), 0, 2**52)
    vectors = [vector for streams in buckets.values() for vector in streams.values()]
    unusual = sum(int(exceedances(layout, vector, "ood")[cut_index(LEVEL)]) for vector in vectors)
    rows = read_verdicts(rig)
    assert all(row["ood"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == unusual > 40
    check_order(rig, [row["id"] for row in rows])


@pytest.mark.faults
def test_a_topic_that_is_not_there_holds_the_cursor_and_is_told(rig: Rig) -> None:
    target = f"{rig.name}.verdicts"
    rig.settings["verdicts"] = {"type": "kafka", "target": target}
    rig.tell()
    daemon = rig.start()
    wait_for("the alert", lambda: rig.hook.own("layerwatch-verdicts"))
    assert rig.counted() == 0
    assert not daemon.events("source.failed")  # nothing is read, decoded or scored again
    rig.cluster.create_topic(target, 2)
    rig.check_story()
    wait_for("the end of the alert", lambda: len(rig.hook.own("layerwatch-verdicts")) == 2)
    ids = [row["id"] for row in read_verdicts(rig)]
    assert len(set(ids)) == sum(rig.produced) - len(rig.letters())
    check_order(rig, ids)
