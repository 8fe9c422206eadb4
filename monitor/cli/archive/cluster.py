"""Work on the shards of an archive by workers on Ray: each an actor that holds the model and does shard after shard.

A worker reads, decodes, scores and writes a whole shard. Its results appear when they are complete, so one that is
killed leaves nothing behind, and Ray Data gives its shard to another. Only facts about finished shards travel.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from detectors.images.reading import InputError
from detectors.profile.spec import EngineName
from monitor.cli.archive.reading import Naming, read_shard
from monitor.cli.archive.results import Results
from monitor.cli.archive.shards import Shard
from monitor.config.errors import EXIT_UNAVAILABLE, CommandError

OBJECTS_BYTES = 256 * 2**20
"""Of a local cluster's shared memory: shards and facts are all that it holds."""
RETRY_S = (1.0, 5.0, 20.0)
"""Until a store that did not answer is asked again; then the shard is left to the next run."""
QUEUED = 2
"""Shards given to a worker: the one under way, and the next."""
WORKERS_PER_GPU = 4
"""So many decode for one GPU, unless there are fewer cores: one alone would let it wait."""


@dataclass(frozen=True)
class Done:
    """What became of one shard; `error` is empty where its results are written."""

    number: int
    images: int = 0
    refused: int = 0
    error: str = ""


@dataclass(frozen=True)
class Job:
    """What every worker needs; it travels to the machines of the cluster.

    profile: where all machines find it, for scores. backbone: the specification as JSON, for features.
    """

    out: str
    naming: Naming
    device: str = "auto"
    engine: EngineName | None = None
    condition: str = ""
    profile: str = ""
    backbone: Mapping[str, Any] = field(default_factory=dict)
    grids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Workers:
    """How many, and the cores of each; 0 lets the machines decide."""

    count: int = 0
    cpus: int = 1
    address: str = ""


class Worker:
    """Holds the model, and works on one shard at a time; an actor of Ray, or a plain object."""

    def __init__(self, job: Job, threads: int) -> None:
        from detectors.profile.steady import use_threads  # noqa: PLC0415 - torch takes seconds
        from monitor.cli.archive.models import table_of  # noqa: PLC0415 - likewise

        use_threads(threads)
        self._job, self._results = job, Results(job.out)
        self._table = table_of(job, threads)

    def work(self, number: int, shard: Shard) -> Done:
        """Read, measure and write one shard."""
        for wait_s in (*RETRY_S, None):
            try:
                table = self._table(read_shard(shard, self._job.naming))
                self._results.write(number, table)
            except (InputError, OSError) as error:
                if wait_s is None or isinstance(error, InputError | FileNotFoundError | PermissionError):
                    return Done(number, error=f"{shard.label}: {str(error) or type(error).__name__}")
                time.sleep(wait_s)
            else:
                return Done(number, table.num_rows, table.num_rows - table["reason"].null_count)
        raise AssertionError("the last try returns")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """For Ray Data: a batch of shards to what became of them."""
        pairs = zip(batch["number"].tolist(), batch["shard"].tolist(), strict=True)
        done = [self.work(number, Shard.from_json(text)) for number, text in pairs]
        return {name: [getattr(each, name) for each in done] for name in ("number", "images", "refused", "error")}


def work_on(shards: Mapping[int, Shard], job: Job, workers: Workers) -> Iterator[Done]:
    """Let workers of a cluster do these shards; yields what became of each as it is finished, in any order.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        CommandError: the cluster does not answer, or the workers cannot begin.
    """
    with _cluster(workers) as ray:
        from ray.data import ActorPoolStrategy  # noqa: PLC0415 - see above

        cores, gpus = (float(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
        count = workers.count or int(min(cores // workers.cpus, gpus * WORKERS_PER_GPU or cores))
        count = max(1, min(count, len(shards)))
        items = [{"number": number, "shard": json.dumps(asdict(shard))} for number, shard in shards.items()]
        results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(job, workers.cpus),
            batch_size=None,
            compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=QUEUED),
            num_cpus=workers.cpus,
            num_gpus=min(1.0, gpus / count) if job.device in {"auto", "cuda"} else 0,
        )
        for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
            columns = (batch[name] for name in ("number", "images", "refused", "error"))
            for number, images, refused, error in zip(*columns, strict=True):
                yield Done(int(number), int(images), int(refused), str(error))


@contextmanager
def _cluster(workers: Workers) -> Iterator[Any]:
    """Join a cluster, or start one on this machine that ends with the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report to its maker
    # each run of Ray Data makes Ray's core print an error about how Ray Data passes its own arguments
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it Ray warns of a default to come
    if not workers.address:
        # a cluster runs whatever is sent to it, and Ray listens on all addresses: nobody else knows this token;
        # set before the import, which reads the mode
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray  # noqa: PLC0415 - optional, and slow to load
    import ray.data  # noqa: PLC0415 - likewise

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # there is one
    context.execution_no_progress_timeout_s = -1  # a shard takes as long as it takes
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # sockets lie in it, whose paths are short; Ray leaves its logs
    folder = None if workers.address else tempfile.mkdtemp(prefix="lw-ray-", dir="/tmp")
    where: dict[str, Any] = {"address": workers.address} if workers.address else {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, workers.count * workers.cpus),
        "object_store_memory": OBJECTS_BYTES,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": folder,
    }  # fmt: skip
    try:
        try:
            _begin(where)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise CommandError(f"layerwatch archive: no Ray cluster: {error}", EXIT_UNAVAILABLE) from error
        try:
            yield ray
        except ray.exceptions.RayError as error:
            raise CommandError(f"layerwatch archive: the workers failed: {_cause(error)}") from error
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _begin(where: Mapping[str, Any]) -> None:
    """Join or start the cluster; a machine that is busy may need several tries.

    Raises:
        ConnectionError, RuntimeError, ValueError: it cannot be joined or started.
    """
    import ray  # noqa: PLC0415 - see above

    for last in (False, False, True):
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError):
            raise
        except Exception as error:  # Ray raises a plain one where its own processes do not start in time
            ray.shutdown()
            if last:
                raise RuntimeError(f"its processes do not start: {error}") from error
        else:
            return


def _cause(error: BaseException) -> str:
    """The last line that says something: Ray puts the traceback of the worker before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
