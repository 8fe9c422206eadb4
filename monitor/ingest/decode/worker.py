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
from typing import Any

import msgpack
import numpy as np

from detectors.images.prepare import Prepared
from monitor.core.types import Record
from monitor.ingest.decode.records import Decoded, DecodeError, Decoder
from monitor.telemetry.failpoints import failpoint

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def main(descriptor: int) -> None:
    """Serve until the parent closes its end."""
    with Connection(descriptor) as connection:
        decoder: Decoder = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own parent
        _confine(decoder.settings.worker_memory_bytes)
        connection.send_bytes(b"ready")
        with contextlib.suppress(EOFError, OSError):
            while True:
                for record in pickle.loads(connection.recv_bytes()):  # noqa: S301
                    connection.send_bytes(answer(decoder, record))


def answer(decoder: Decoder, record: Record) -> bytes:
    """Decode one record; the message is read by `read_answer`."""
    started = time.perf_counter()
    try:
        failpoint("decode", record.value)
        result: list[Any] | tuple[str, str] = [_packed(image) for image in decoder(record)]
    except DecodeError as error:
        result = (error.reason, str(error))
    except MemoryError:
        result = ("memory", "decoding needs more than decoding.worker_memory_bytes")
    except Exception as error:  # a bug in a library costs one record, not the stream
        result = ("crashed", f"{type(error).__name__}: {error}")
    packed: bytes = msgpack.packb((time.perf_counter() - started, result), unicode_errors="surrogatepass")
    return packed


def read_answer(packed: bytes) -> tuple[float, list[Decoded] | tuple[str, str]]:
    """(seconds that decoding took, images or (reason, text) of a rejected record).

    Raises:
        ValueError, TypeError, LookupError: not an answer.
    """
    took_s, result = msgpack.unpackb(packed, use_list=False, unicode_errors="surrogatepass")
    if result and isinstance(result[0], str):
        reason, text = result
        return took_s, (reason, text)
    return took_s, [_unpacked(*image) for image in result]


def _packed(image: Decoded) -> tuple[Any, ...]:
    p = image.prepared
    pixels, properties = np.ascontiguousarray(p.pixels), np.ascontiguousarray(p.properties, dtype="<f8")
    content = (pixels.shape, pixels.data.cast("B"), properties.tobytes(), p.digest, p.key, p.width, p.height, p.mode)
    return (image.id, image.stream, image.event_time_ms, content)


def _unpacked(id_: str, stream: str, event_time_ms: int, content: tuple[Any, ...]) -> Decoded:
    shape, pixels, properties, *rest = content
    array = np.frombuffer(pixels, np.uint8).reshape(shape)
    return Decoded(id_, stream, event_time_ms, Prepared(array, np.frombuffer(properties, "<f8"), *rest))


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
