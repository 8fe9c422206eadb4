"""The decoder process, started by `DecoderPool`: untrusted bytes may crash or hang it, but not the daemon.

It receives the decoder, then lists of records, and answers each record in order, so that the parent knows at which one
it died. Answers are plain msgpack: the daemon never unpickles what a broken process sends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection

from monitor.core.types import Record
from monitor.ingest.decode.answers import pack_images, pack_refusal
from monitor.ingest.decode.records import Decoder
from monitor.ingest.decode.values import DecodeError
from monitor.telemetry.failpoints import failpoint

PR_SET_PDEATHSIG = 1  # from linux/prctl.h
READY = b"ready"
"""Sent once, when the decoder has been received."""


def main(descriptor: int) -> None:
    """Serve until the parent closes its end."""
    with Connection(descriptor) as connection:
        decoder: Decoder = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own parent
        _confine(decoder.settings.worker_memory_bytes)
        connection.send_bytes(READY)
        with contextlib.suppress(EOFError, OSError):
            while True:
                for record in pickle.loads(connection.recv_bytes()):  # noqa: S301
                    connection.send_bytes(answer(decoder, record))


def answer(decoder: Decoder, record: Record) -> bytes:
    """Decode one record; the message is read by `read_answer`."""
    started = time.perf_counter()
    try:
        failpoint("decode", record.value)
        return pack_images(decoder(record), time.perf_counter() - started)
    except DecodeError as error:
        reason, text = error.reason, str(error)
    except MemoryError:
        reason, text = "memory", "decoding needs more than decoding.worker_memory_bytes"
    except Exception as error:  # a bug in a library costs one record, not the stream
        reason, text = "crashed", f"{type(error).__name__}: {error}"
    return pack_refusal(reason, text, time.perf_counter() - started)


def _confine(memory_bytes: int) -> None:
    """Limit the memory, write no core dump with images in it, and end with the parent."""
    with contextlib.suppress(ValueError, OSError):  # the hard limit is lower than ours
        # data, not address space: libraries reserve gigabytes of addresses that they never use
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # a decoder that hangs in C code does not notice the end of the parent
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    parent = int(sys.argv[2])
    if os.getppid() == parent:
        main(int(sys.argv[1]))
