"""Forks daemons: loads torch once, so that a test can start, kill and start again in a second instead of twenty.

One JSON line in, one out: {"argv": [...], "env": {...}, "log": path, "output": path or none} -> {"pid": n}, or
{"wait": pid} -> {"status": n | null}. `log` takes the standard error, and the standard output if `output` is not given.
What it reached is measured, unless it is killed.
What it forks is the real program with the real `main`; only the import of the libraries is shared.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests import measuring


def load() -> None:
    """Everything that a daemon imports."""
    import detectors.profile.lean_timm  # noqa: PLC0415
    import detectors.profile.profile  # noqa: F401, PLC0415
    import monitor.__main__  # noqa: PLC0415
    import monitor.daemon  # noqa: PLC0415
    import monitor.evaluate.evaluator  # noqa: PLC0415
    import monitor.evaluate.lease  # noqa: PLC0415
    import monitor.ingest.watch  # noqa: PLC0415
    import monitor.sources.kafka.source  # noqa: PLC0415
    import monitor.sources.redis_streams.source  # noqa: PLC0415
    from tests.templates import share_templates  # noqa: PLC0415

    monitor.__main__.build_parser()  # imports what the commands need
    share_templates()
    monitor.evaluate.lease.LEASE_S = 4.0  # most tests wait for a dead evaluator's successor
    monitor.evaluate.evaluator.SILENCE_LOOK_S = 1.0
    monitor.ingest.watch.LOOK_S = 1.0
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:  # a lock held by another thread would stay held for ever in the fork
        raise SystemExit(f"{threads} threads run before the fork")
    measuring.save()  # what its forks reach again is not reported again
    gc.freeze()


def become(request: dict[str, Any]) -> None:
    """In the child: be the daemon; never returns."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the zygote
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "output" in request else log
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["env"])
    tempfile.tempdir = None  # TMPDIR may be among them
    status = 1
    try:
        from monitor.__main__ import main  # noqa: PLC0415
        from monitor.telemetry import failpoints  # noqa: PLC0415

        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        status = main(request["argv"])
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        measuring.save()
        os._exit(status)


def serve(server: socket.socket) -> None:
    """One request a connection, until somebody ends this process."""
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as lines:
            request = json.loads(lines.readline())
            if "wait" in request:
                pid, status = 0, None
                with contextlib.suppress(ChildProcessError):
                    pid, status = os.waitpid(request["wait"], os.WNOHANG)
                answer = {"status": os.waitstatus_to_exitcode(status) if pid and status is not None else None}
            else:
                pid = os.fork()
                if pid == 0:
                    os.close(server.fileno())
                    os.close(connection.fileno())
                    become(request)
                answer = {"pid": pid}
            lines.write(json.dumps(answer) + "\n")


def listening(path: str) -> socket.socket:
    """A socket that exists at that path only once it takes requests."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{path}.new")
    server.listen(64)
    Path(f"{path}.new").rename(path)
    return server


if __name__ == "__main__":
    requests = listening(sys.argv[1])
    load()
    serve(requests)
