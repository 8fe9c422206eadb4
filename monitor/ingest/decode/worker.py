"""The decoder process, started by `DecoderPool`: untrusted bytes may crash or hang it, but not the daemon.

It receives the decoder, then lists of records and of `LargePicture`, and answers each in order, so that the parent
knows at which one it died. Answers are plain msgpack: the daemon never unpickles what a broken process sends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
import warnings
from multiprocessing.connection import Connection

from monitor.core.types import Record
from monitor.ingest.decode.answers import pack_images, pack_large, pack_refusal
from monitor.ingest.decode.confinement import confine
from monitor.ingest.decode.large import LargePicture
from monitor.ingest.decode.records import Decoder
from monitor.ingest.decode.remote import UNAVAILABLE, UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.telemetry.failpoints import failpoint

READY = b"ready"
"""Sent once, when the decoder has been received; followed by what this kernel could not take away from the process."""
READY_BYTES = 500


def main(descriptor: int) -> None:
    """Serve until the parent closes its end."""
    with Connection(descriptor) as connection:
        decoder: Decoder = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own parent
        reader = decoder.reader
        unconfined = confine(decoder.settings.worker_memory_bytes, reader.asks_servers, reader.files)
        warnings.simplefilter("ignore")  # those of Pillow are about single images: what matters of them is an error
        connection.send_bytes((READY + unconfined.encode())[:READY_BYTES])
        with contextlib.suppress(EOFError, OSError):
            while True:
                for asked in pickle.loads(connection.recv_bytes()):  # noqa: S301
                    connection.send_bytes(answer(decoder, asked))


def answer(decoder: Decoder, asked: Record | LargePicture) -> bytes:
    """Decode one record; the message is read by `read_answer`, or by `read_large`."""
    started = time.perf_counter()
    record = asked.record if isinstance(asked, LargePicture) else asked
    try:
        failpoint("decode", record.value)
        if isinstance(asked, LargePicture):
            return pack_large(decoder.large(asked), time.perf_counter() - started)
        return pack_images(decoder(record), time.perf_counter() - started)
    except DecodeError as error:
        reason, text = error.reason, str(error)
    except UnavailableError as error:
        reason, text = UNAVAILABLE, str(error)
    except MemoryError:
        reason, text = "memory", "decoding needs more than decoding.worker_memory_bytes"
    except Exception as error:  # a bug in a library costs one record, not the stream
        reason, text = "crashed", f"{type(error).__name__}: {error}"
    return pack_refusal(reason, text, time.perf_counter() - started)


if __name__ == "__main__":
    parent = int(sys.argv[2])
    if os.getppid() == parent:
        main(int(sys.argv[1]))
