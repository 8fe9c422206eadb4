"""One monitor under test: a topic, a Redis, a receiver, real daemons; and what must hold after every fault."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from monitor.core.types import AlertPhase, Partition, Record
from monitor.sources.kafka.client import connect
from monitor.store import StoreError, open_store
from monitor.store.settings import RedisSettings
from monitor.store.shards import whole_state
from monitor.telemetry.failpoints import VARIABLE
from tests.faults.recount import Rates, Recount, recount
from tests.kafka.broker import Cluster
from tests.pictures import encoded, pictures
from tests.plain_http import get

PATIENCE_S = 90.0
COMMAND_PATIENCE_S = 200.0
"""Some commands score thousands of images."""
BUCKET_MS, LATENESS_MS = 10_000, 10_000
STEP_MS = 1000
STORY = 200
"""Records per partition: normal, then strange from DRIFT[0] to DRIFT[1], then normal again."""
DRIFT = (60, 120)
BAD_EVERY = 40
MONITOR = "faults"


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value; Redis being away is no answer. Fails with `what` when it never comes."""
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(StoreError):
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:.0f} s in vain for {what}")
        time.sleep(0.05)


class Zygote:
    """The process that forks daemons and commands, which tests/shared.py starts; see tests/faults/zygote.py."""

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)

    def ask(self, **request: Any) -> Any:
        """One request, one answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._path)
            with connection.makefile("rw") as lines:
                lines.write(json.dumps(request) + "\n")
                lines.flush()
                return json.loads(lines.readline())

    def layerwatch(
        self, *arguments: str, environ: Mapping[str, str] | None = None, patience_s: float = COMMAND_PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """One command of the command line, run to its end, with these environment variables besides the usual ones."""
        with tempfile.TemporaryDirectory() as folder:
            output, log = Path(folder, "output"), Path(folder, "log")
            pid = self.ask(argv=arguments, env=dict(environ or {}), output=str(output), log=str(log))["pid"]
            deadline = time.monotonic() + patience_s
            while (status := self.ask(wait=pid)["status"]) is None:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    raise AssertionError(f"layerwatch {arguments[0]} did not end:\n{log.read_text()[-3000:]}")
                time.sleep(0.02)
            return subprocess.CompletedProcess(arguments, status, output.read_text(), log.read_text())


class Daemon:
    """One forked `layerwatch run`.

    Args:
        zygote: forks it.
        config: its configuration.
        log: where its log goes.
        failpoints: armed in it.
    """

    def __init__(self, zygote: Zygote, config: Path, log: Path, failpoints: str = "") -> None:
        self._zygote = zygote
        self.log = log
        self.port = _port_of(config)
        argv = ["run", "-c", str(config)]
        self.pid = int(zygote.ask(argv=argv, env={VARIABLE: failpoints}, log=str(log))["pid"])
        self._status: int | None = None

    def ended(self) -> bool:
        """Whether it has ended, however."""
        if self._status is None:
            self._status = self._zygote.ask(wait=self.pid)["status"]
        return self._status is not None

    @property
    def status(self) -> int:
        """Exit status; negative where a signal ended it."""
        wait_for("the daemon to end", self.ended, 45)
        assert self._status is not None
        return self._status

    def metric(self, name: str) -> float:
        """One number of its metrics page; 0 where it, or the page, is not there."""
        try:
            page = get(f"http://127.0.0.1:{self.port}/metrics").text
        except httpx.TransportError:
            return 0.0
        return next((float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} ")), 0.0)

    def ready(self) -> tuple[int, str]:
        """Status and text of its readiness page."""
        page = get(f"http://127.0.0.1:{self.port}/readyz")
        return page.status_code, page.text

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def check(self) -> None:
        """Fail with the end of its log if it has ended by itself."""
        if self.ended():
            raise AssertionError(f"the daemon ended with {self._status}:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if not self.ended():
            self.send(signal.SIGKILL)
            assert self.status == -signal.SIGKILL

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.send(signal.SIGTERM)
        return self.status

    def events(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of that event."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        found = [line for line in lines if f'"event": "{event}"' in line]
        return [json.loads(line) for line in found]


class Hook:
    """A webhook that answers as told: `answers` is asked with each delivery's number for (status, headers, delay)."""

    def __init__(self) -> None:
        self.tries: list[tuple[float, str]] = []
        """(when, id) of every delivery that reached it."""
        self.accepted: list[dict[str, Any]] = []
        self.answers: Callable[[int], tuple[int, dict[str, str], float]] = lambda _: (204, {}, 0.0)
        self._lock = threading.Lock()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with hook._lock:
                    hook.tries.append((time.monotonic(), body["id"]))
                    status, headers, delay_s = hook.answers(len(hook.tries))
                time.sleep(delay_s)
                if 200 <= status < 300:
                    hook.accepted.append(body)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def ids(self) -> set[str]:
        """Of what was accepted, without what the monitor tells of itself."""
        return {d["id"] for d in self.accepted if not d["data"]["rule"].startswith("layerwatch-")}

    def own(self, rule: str) -> list[dict[str, Any]]:
        """What it told of itself under that rule, each once."""
        return list({d["id"]: d for d in self.accepted if d["data"]["rule"] == rule}.values())

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@cache
def normal() -> list[bytes]:
    """Pictures as the profile knows them."""
    return [encoded(image) for _, image in pictures(11, 80)]


@cache
def strange() -> list[bytes]:
    """Pictures with stripes."""
    return [encoded(image) for _, image in pictures(12, 40, stripes=True)]


class Rig:
    """A topic with its records and everything that reads them.

    Args:
        settings: laid over the configuration, section by section.
    """

    def __init__(
        self,
        zygote: Zygote,
        cluster: Cluster,
        redis_url: str,
        folder: Path,
        profile: Path,
        *,
        partitions: int = 2,
        settings: Mapping[str, Any] | None = None,
        daemon_redis_url: str = "",
        linger_ms: int = 5,
    ) -> None:
        self.zygote, self.cluster, self.folder, self.profile = zygote, cluster, folder, profile
        self.name = f"faults-{uuid.uuid4().hex[:8]}"
        # a broker refuses timestamps of tomorrow by default; a monitor must live with them
        configs = {"message.timestamp.after.max.ms": str(2**62)}
        self.topic = cluster.create_topic(self.name, partitions, configs)
        self.letters_topic = cluster.create_topic(f"{self.name}.dead-letter")
        self.partitions = [Partition(self.topic, i) for i in range(partitions)]
        # recent, so that a rebuild from the log reaches back to the start; on a full minute, so that buckets are alike
        self.start_ms = (time.time_ns() // 1_000_000 - 1_500_000) // 60_000 * 60_000
        self.future_ms = 2**62
        self.hook = Hook()
        self._linger_ms = linger_ms
        self.daemons: list[Daemon] = []
        self.produced = [0] * partitions
        self._producer: Any = None
        self.settings: dict[str, Any] = {
            "monitor": MONITOR,
            "kafka": {
                "bootstrap_servers": cluster.bootstrap_servers.split(","),
                "topics": [self.topic],
                "group_id": self.name,
                "dead_letter_topic": self.letters_topic,
                "session_timeout_s": 6,
                "request_timeout_s": 8,
                "max_poll_records": 40,
            },
            "redis": {"url": daemon_redis_url or redis_url, "timeout_s": 2},
            "scoring": {"profile": str(profile), "device": "cpu", "engine": "torch", "batch_images": 16},
            "decoding": {"workers": 1},
            # nobody falls idle here: two runs must close the same buckets with the same counts
            "buckets": {"seconds": BUCKET_MS // 1000, "lateness_s": LATENESS_MS / 1000, "idle_timeout_s": 600},
            "rules": [
                {"name": "drift", "kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.3, "min_images": 20},
                # watches nothing; makes a rebuild reach back an hour
                {"name": "hour", "kind": "shift", "streams": "none", "window_s": 3600, "min_images": 500},
            ],
            "receivers": [{"name": "hook", "type": "webhook", "url": self.hook.url, "timeout_s": 2}],
        }
        for section, values in (settings or {}).items():
            old = self.settings.get(section)
            self.settings[section] = {**old, **values} if isinstance(old, dict) else values
        self.store = open_store(RedisSettings.model_validate({**self.settings["redis"], "url": redis_url}), MONITOR)

    # ---------------------------------------------------------------- acting

    def start(self, failpoints: str = "", log: str = "") -> Daemon:
        """One more daemon; `log` is where its log goes instead of a file."""
        number = len(self.daemons)
        config = self.folder / f"{self.name}-{number}.yaml"
        config.write_text(yaml.safe_dump({**self.settings, "web": {"port": _free_port()}}))
        path = Path(log or self.folder / f"{self.name}-{number}.log")
        daemon = Daemon(self.zygote, config, path, failpoints)
        self.daemons.append(daemon)
        return daemon

    def running(self) -> list[Daemon]:
        """Those that have not ended."""
        return [daemon for daemon in self.daemons if not daemon.ended()]

    def write(
        self, index: int, values: Sequence[bytes | None], timestamps_ms: Sequence[int], key: bytes | None = None
    ) -> None:
        """Records of one partition, in this order."""
        self._producer = self._producer or connect(
            KafkaProducer,
            {
                "bootstrap_servers": self.cluster.bootstrap_servers.split(","),
                "linger_ms": self._linger_ms,
                "batch_size": 2**20,
                "acks": "all",
                "max_request_size": 2**23,
            },
        )
        key = f"cam-{index}".encode() if key is None else key
        futures = [
            self._producer.send(self.topic, value, key, partition=index, timestamp_ms=at)
            for value, at in zip(values, timestamps_ms, strict=True)
        ]
        self._producer.flush()  # all of it is there: no use in lingering
        for future in futures:
            future.get(timeout=60)
        self.produced[index] += len(values)

    def renew_producer(self) -> None:
        """Forget what the producer knows of a cluster that has changed."""
        if self._producer is not None:
            self._producer.close(timeout=2)
            self._producer = None

    def tell(self, begin: int = 0, end: int = STORY) -> None:
        """Write that part of the story to every partition: normal, strange, normal; some bad, some late."""
        for index in range(len(self.partitions)):
            values, stamps = [], []
            for i in range(begin, end):
                picture = strange()[i % 40] if DRIFT[0] <= i < DRIFT[1] and index == 0 else normal()[i % 80]
                values.append(b"no picture" if i % BAD_EVERY == 7 else picture)
                late_ms = 25_000 if i % 50 == 33 else (i * 7) % 5 * 1000
                stamps.append(self.start_ms + i * STEP_MS - late_ms)
            self.write(index, values, stamps)

    # ---------------------------------------------------------------- looking

    def counted(self) -> int:
        """Records accepted and rejected so far."""
        totals = self.store.counts.totals(self.partitions).values()
        return sum(t.applied + t.rejected for t in totals)

    def stands(self, index: int) -> int:
        """Cursor of a partition; -1 where it has none."""
        cursor = self.store.partitions.cursors(self.partitions)[self.partitions[index]]
        return cursor.next_offset if cursor else -1

    def committed(self) -> int:
        """Sum of the offsets that the group has committed."""
        return sum(commits(self.cluster, self.name, self.partitions).values())

    def await_counted(self, records: int | None = None, patience_s: float = PATIENCE_S) -> None:
        """Wait until that many records (all, by default) are counted."""
        wanted = sum(self.produced) if records is None else records

        def done() -> bool:
            if not self.running():
                raise AssertionError(f"no daemon runs any more:\n{self.daemons[-1].log.read_text()[-3000:]}")
            return self.counted() >= wanted

        try:
            wait_for(f"{wanted} records", done, patience_s)
        except AssertionError as error:
            with contextlib.suppress(StoreError):
                error.add_note(f"counted {self.counted()}")
            for daemon in self.daemons:
                if daemon.log.is_file():
                    error.add_note(daemon.log.read_text()[-2500:])
            raise

    def log_of(self, index: int) -> list[Record]:
        """Everything that a partition holds."""
        return read_log(self.cluster, self.partitions[index])

    def letters(self) -> list[Record]:
        """Everything in the dead-letter topic."""
        return read_log(self.cluster, Partition(self.letters_topic, 0))

    def fingerprint(self) -> str:
        """Of the one profile."""
        (fingerprint,) = self.store.catalog.layouts()
        return fingerprint

    # ---------------------------------------------------------------- what must hold

    def check_counts(
        self, logs: Sequence[Sequence[Record]] | None = None, earlier_letters: Sequence[Record] = ()
    ) -> Recount:
        """Nothing lost, nothing twice: Redis against the log, bin by bin; dead letters; cursors; commits.

        Args:
            logs: of each partition, where they are no longer what was read.
            earlier_letters: dead letters that are no longer in their topic.
        """
        logs = [self.log_of(i) for i in range(len(self.partitions))] if logs is None else logs
        expected = recount(logs, self.profile, Rates(BUCKET_MS, LATENESS_MS, self.future_ms))
        cursors = self.store.partitions.cursors(self.partitions)
        ends = {p: end for p, (_, end) in bounds(self.cluster, self.partitions).items()}
        assert {p: c.next_offset for p, c in cursors.items() if c} == ends
        totals = self.store.counts.totals(self.partitions)
        assert {s: (t.applied, t.rejected) for s, t in totals.items()} == expected.totals
        assert sum(t.applied for t in totals.values()) == expected.accepted
        assert sum(t.applied + t.rejected for t in totals.values()) == sum(map(len, logs))
        buckets = self.store.counts.buckets(self.partitions, self.fingerprint(), 0, 2**52)
        found = {start: {s: v.tolist() for s, v in streams.items()} for start, streams in buckets.items()}
        assert found == expected.buckets
        letters = {(letter.key or b"").decode() for letter in (*earlier_letters, *self.letters())}
        assert letters == expected.rejected
        for partition, commit in commits(self.cluster, self.name, self.partitions).items():
            assert commit <= ends[partition]
        return expected

    def check_alerts(self) -> set[str]:
        """Every transition of every alert that is kept reached the receiver; returns their ids."""
        expected: set[str] = set()
        for alert in self.store.shards.alerts().values():
            if alert.phase in {AlertPhase.FIRING, AlertPhase.RESOLVED}:
                expected |= {f"{alert.id}-firing"}
            if alert.phase is AlertPhase.RESOLVED:
                expected |= {f"{alert.id}-resolved"}
        wait_for(f"deliveries of {expected}", lambda: self.hook.ids() >= expected)
        assert self.hook.ids() == expected
        return expected

    def await_story_closed(self) -> None:
        """Until every bucket that can be closed is."""
        last = self.start_ms + (STORY - 1) * STEP_MS - LATENESS_MS - 4000
        closed = last // BUCKET_MS * BUCKET_MS - BUCKET_MS
        wait_for("the buckets to close", lambda: (whole_state(self.store.shards.states()).bucket_ms or 0) >= closed)

    def check_story(self) -> None:
        """The whole story is told once: counts, and the alert that fired and resolved."""
        self.await_counted()
        self.await_story_closed()
        self.check_counts()
        assert len(self.check_alerts()) == 2

    def close(self) -> None:
        """End everything."""
        for daemon in self.daemons:
            with contextlib.suppress(ProcessLookupError):
                daemon.send(signal.SIGCONT)
                daemon.kill()
        if self._producer is not None:
            self._producer.close(timeout=2)
        self.hook.close()
        self.store.close()


def read_log(cluster: Cluster, partition: Partition) -> list[Record]:
    """Everything a Kafka partition holds."""
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, group_id=None)
    at = TopicPartition(partition.topic, partition.index)
    consumer.assign([at])
    first, end = consumer.beginning_offsets([at])[at], consumer.end_offsets([at])[at]
    consumer.seek(at, first)
    records: list[Record] = []
    deadline = time.monotonic() + 30
    while consumer.position(at) < end:
        assert time.monotonic() < deadline
        records += [
            Record(partition, item.offset, item.timestamp, item.key, item.value, tuple(item.headers))
            for item in consumer.poll(100).get(at, ())
        ]
    consumer.close()
    return records


def bounds(cluster: Cluster, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
    """(first, end) of each partition's log."""
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, group_id=None)
    places = [TopicPartition(p.topic, p.index) for p in partitions]
    first, end = consumer.beginning_offsets(places), consumer.end_offsets(places)
    consumer.close()
    return {p: (first[at], end[at]) for p, at in zip(partitions, places, strict=True)}


def commits(cluster: Cluster, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
    """What the group has committed."""
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, group_id=group, enable_auto_commit=False)
    found = {p: consumer.committed(TopicPartition(p.topic, p.index)) for p in partitions}
    consumer.close()
    return {p: int(offset) for p, offset in found.items() if offset is not None}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _port_of(config: Path) -> int:
    return int(yaml.safe_load(config.read_text())["web"]["port"])


@contextlib.contextmanager
def closing(rig: Rig) -> Iterator[Rig]:
    """The rig, ended for sure."""
    try:
        yield rig
    finally:
        rig.close()
