"""Decoding in separate processes: an image that crashes or hangs its decoder costs one dead letter.

One thread per process sends a few records together and reads the answers one by one, so it knows at which record a
process died or hung. That record is retried once, as the first one of a new process: the cause may be an operator's
kill or a busy machine. If it fails again it becomes a dead letter, and decoding continues with the next record.
A record above the size limit is refused here, before its bytes go anywhere.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import structlog

from monitor.core.types import DeadLetter, Record
from monitor.ingest.decode.answers import Refusal, most_bytes, read_answer, read_large
from monitor.ingest.decode.confinement import environment
from monitor.ingest.decode.flat import FlatError
from monitor.ingest.decode.large import LargePicture
from monitor.ingest.decode.records import Decoded, Decoder, check_size, stream_of
from monitor.ingest.decode.remote import UNAVAILABLE
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.decode.worker import READY, READY_BYTES
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

TASK_RECORDS, TASK_BYTES = 8, 1 << 20
"""Most records and bytes per message: few enough to spread one poll over the processes, enough to pay for a message."""
TRIES = 2
START_TIMEOUT_S = 60.0
STARTS = 3
"""Processes that fail to start in a row before decoding is given up."""
MESSAGE_TIMEOUT_S = 60
HOLD_S, HOLD_STEP_S = 600.0, 5.0
"""How long a record waits for a store or a schema registry that does not answer, and the longest pause between tries.

Its partition waits with it: an outage must cost no images. After that the record is refused, for a store may answer
"not now" to one object for ever.
"""
SLICE_S = 0.5
"""Time-outs are counted in waits of that length: one hour of a suspended machine counts as one wait."""

DecodedRecord = list[Decoded] | DeadLetter
"""Result of one record: all its images, or its dead letter."""


class DecoderError(Exception):
    """No decoder process starts."""


class _LostError(Exception):
    """The process died or hung; `reason` is that of the dead letter if the record is the cause."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(eq=False, slots=True)
class _Job:
    asked: Record | LargePicture
    future: Future[Any] = field(default_factory=Future)
    """Of a `DecodedRecord`; or of a JPEG, empty where there is none."""
    tries: int = 0
    held_s: float = 0.0
    """Monotonic time since which it waits for a server; 0 while it does not."""

    @property
    def record(self) -> Record:
        """That is to be decoded."""
        return self.asked.record if isinstance(self.asked, LargePicture) else self.asked


class DecoderPool:
    """Decodes records in `decoding.workers` processes; `submit` may be called from any thread."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._timeout_s = decoder, decoder.settings.timeout_s
        self._setup, self._answer_bytes = pickle.dumps(decoder), most_bytes(decoder)
        self.max_images = decoder.reader.max_images
        self._tasks: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self.answered_s = 0.0
        """Monotonic time at which a record was last decoded or failed."""
        self._threads = [
            threading.Thread(target=self._serve, name=f"decode-{i}", daemon=True)
            for i in range(decoder.settings.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, records: Sequence[Record]) -> list[Future[DecodedRecord]]:
        """One future per record: its images or its dead letter; DecoderError if no process starts."""
        jobs = [_Job(record) for record in records]
        task: list[_Job] = []
        for job in jobs:
            try:
                check_size(job.record, self._decoder.settings.max_record_bytes)
            except DecodeError as error:
                self._reject(job, error.reason, str(error))
                continue
            task.append(job)
            if len(task) == TASK_RECORDS or sum(job.record.size for job in task) >= TASK_BYTES:
                self._tasks.put(task)
                task = []
        if task:
            self._tasks.put(task)
        return [job.future for job in jobs]

    def large(self, asked: LargePicture) -> Future[bytes]:
        """The JPEG of one image of a record, after all records that are submitted by now; b"" if there is none."""
        job = _Job(asked)
        self._tasks.put([job])
        return job.future

    def close(self) -> None:
        """End the processes. Open futures are cancelled by the thread that takes them from the queue."""
        self._closed.set()
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + 2 * SLICE_S + 1.0  # for all of them: a stop must not take longer with more
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    # ---------------------------------------------------------------- one thread and its process

    def _serve(self) -> None:
        """Decode task by task until None; every thread takes exactly one None, even if `close` does not wait for it."""
        process: _Process | None = None
        waiting: deque[_Job] = deque()
        try:
            process = self._start()  # before the first record: a start takes a third of a second
            while (task := self._tasks.get()) is not None:
                waiting.extend(task)
                while waiting and not self._closed.is_set():
                    process = process or self._start()
                    try:
                        self._work(process, waiting)
                    except _LostError as lost:
                        process.end()
                        process = None
                        self._blame(waiting, lost)
                while waiting:  # only after `close`
                    waiting.popleft().future.cancel()
        except DecoderError as error:
            if not self._closed.is_set():
                log.exception("decode.no_process")
            self._fail_all(waiting, error)
        finally:
            if process is not None:
                process.end()

    def _work(self, process: _Process, waiting: deque[_Job]) -> None:
        process.send(pickle.dumps([job.asked for job in waiting], protocol=pickle.HIGHEST_PROTOCOL))
        held: list[_Job] = []
        try:
            while waiting:
                took_s, answer = self._receive(process, waiting[0])
                job = waiting.popleft()
                self.answered_s = time.monotonic()
                if isinstance(answer, bytes):
                    job.future.set_result(answer)
                    continue
                metrics.STAGE_SECONDS.labels("decode").observe(took_s)
                if isinstance(answer, list):
                    for part in (note for image in answer for note in image.prepared.notes):
                        metrics.IMAGES_PARTLY_USED.labels(part).inc()
                    job.future.set_result(answer)
                elif answer[0] == UNAVAILABLE and self._holds(job, answer[1]):
                    held.append(job)
                else:
                    self._reject(job, *answer)
        finally:
            waiting.extend(held)
        if held:
            self._closed.wait(min(HOLD_STEP_S, max(0.1, time.monotonic() - held[0].held_s)))

    def _holds(self, job: _Job, error: str) -> bool:
        """Whether a record that needs an absent server is tried again; not for a picture of it."""
        if isinstance(job.asked, LargePicture):
            return False
        metrics.DECODE_HOLDS.inc()
        if not job.held_s:
            job.held_s = time.monotonic()
            log.warning(
                "decode.unavailable", error=error, partition=str(job.record.partition), offset=job.record.offset
            )
        return time.monotonic() - job.held_s < HOLD_S

    def _receive(self, process: _Process, job: _Job) -> tuple[float, list[Decoded] | Refusal | bytes]:
        message = process.receive(self._timeout_s, self._answer_bytes)
        try:
            if isinstance(job.asked, LargePicture):
                return 0.0, read_large(message)
            return read_answer(message, job.asked, self._decoder)
        except FlatError as error:
            raise _LostError("crashed", f"the decoder process sent an invalid answer: {error}") from error

    def _blame(self, waiting: deque[_Job], lost: _LostError) -> None:
        metrics.DECODERS_REPLACED.labels(lost.reason).inc()
        self.answered_s = time.monotonic()
        job = waiting[0]
        job.tries += 1
        log.warning(
            "decode.process_lost", reason=lost.reason, error=str(lost), tries=job.tries,
            partition=str(job.record.partition), offset=job.record.offset,
        )  # fmt: skip
        if job.tries >= TRIES:
            self._reject(waiting.popleft(), lost.reason, f"{lost} {TRIES} times")

    def _reject(self, job: _Job, reason: str, error: str) -> None:
        if isinstance(job.asked, LargePicture):
            log.warning("decode.no_large_picture", reason=reason, error=error)
            job.future.set_result(b"")
            return
        job.future.set_result(DeadLetter(job.record, stream_of(job.record, self._decoder.naming), reason, error))

    def _start(self) -> _Process:
        for _ in range(STARTS):
            process = _Process(self._closed, environment(os.environ, self._decoder.reader.asks_servers))
            try:
                process.send(self._setup)
                unconfined = process.receive(START_TIMEOUT_S, READY_BYTES).removeprefix(READY)
            except _LostError as lost:
                process.end()
                log.warning("decode.start_failed", error=str(lost))
            else:
                if unconfined:
                    log.warning("decode.unconfined", error=unconfined.decode())
                return process
            if self._closed.is_set():
                break
        raise DecoderError("decoder processes do not start; see the log")

    def _fail_all(self, waiting: Iterable[_Job], error: DecoderError) -> None:
        task: Iterable[_Job] | None = waiting
        while task is not None:
            for job in task:
                job.future.set_exception(error)
            task = self._tasks.get()


class _Process:
    """One decoder process and our end of the socket to it."""

    def __init__(self, closed: threading.Event, env: Mapping[str, str]) -> None:
        self._closed = closed
        ours, theirs = socket.socketpair()
        # one read or write of a message that has begun; `receive` waits for its beginning
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", MESSAGE_TIMEOUT_S, 0))
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "monitor.ingest.decode.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,  # only the daemon handles Ctrl-C
            )
        self._connection = Connection(ours.detach())

    def send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except BlockingIOError as error:
            raise _LostError("timeout", "the decoder process reads no records") from error
        except OSError as error:
            raise self._lost() from error

    def receive(self, timeout_s: float, most_bytes: int) -> bytes:
        waited_s = 0.0
        try:
            while not self._connection.poll(SLICE_S):
                waited_s += SLICE_S
                if self._closed.is_set() or waited_s >= timeout_s:
                    raise _LostError("timeout", f"the decoder process hung for {timeout_s:g} s")
            return self._connection.recv_bytes(most_bytes)
        except BlockingIOError as error:
            raise _LostError("timeout", "the decoder process stopped in the middle of an answer") from error
        except (EOFError, OSError) as error:
            if "bad message length" in str(error):
                raise _LostError("crashed", f"the decoder process sent more than {most_bytes} bytes") from error
            raise self._lost() from error

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _lost(self) -> _LostError:
        try:
            ended = f"ended with {self._process.wait(1.0)}"
        except subprocess.TimeoutExpired:
            ended = "closed its socket"
        return _LostError("crashed", f"the decoder process {ended}")
