"""The profiles that a process scores with, and how others take their place while it runs."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import structlog

from detectors.profile.host_memory import release_freed_memory, release_library_pages
from monitor.core.buckets import counted_under
from monitor.core.replicas import Replica
from monitor.ingest.scoring.profiles import Profiles, publish_profiles
from monitor.ingest.stages import ReplaceableStages, StageFactory
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

FINISH_EVIDENCE_S = 60.0
"""For the heat maps and pictures of the last images that the old profiles judged."""


class Serving:
    """The profiles in use and their stages."""

    def __init__(self, factory: StageFactory, profiles: Profiles) -> None:
        self._factory, self.profiles = factory, profiles
        self.stages = ReplaceableStages(factory.start(profiles))
        self.failure = ""
        """Why other profiles that are wanted are not in use."""
        self.on_switch: Callable[[Profiles], None] = lambda _: None
        """Called with the profiles that are in use from now on; must keep none of those before."""
        _export(profiles)

    def publish(self) -> None:
        """Write for all readers of the counts what the profiles are, and which of them this process scores with.

        Raises:
            StoreError, StoreConfigError: as `publish_profiles`.
        """
        publish_profiles(self._factory.store, self.profiles)
        self.report()

    def report(self) -> None:
        """Write which profiles this process scores with; StoreError where Redis does not answer."""
        profiles = self.profiles
        name = f"{socket.gethostname()}/{os.getpid()}"
        replica = Replica(name, dict(profiles.pins), profiles.fingerprints, self.failure)
        self._factory.store.catalog.put_replica(replica, profiles.loaded)

    def replace(self, profiles: Profiles, give_up: threading.Event) -> bool:
        """Score with these once everything in flight is applied, then free what the old ones held.

        Args:
            give_up: ends the wait; then the old ones stay, and the answer is False.

        Raises:
            StoreError, StoreConfigError: as `publish_profiles`; the old ones stay.
        """
        publish_profiles(self._factory.store, profiles)  # first: whoever reads the first counts needs the layouts
        stages = self._factory.start(profiles)
        if (before := self.stages.replace(stages, give_up)) is None:
            stages.close()
            return False
        old, self.profiles = self.profiles, profiles
        _export(profiles)
        self.on_switch(profiles)
        before.evidence.finish(FINISH_EVIDENCE_S)
        before.close()
        _withdraw(old, profiles)
        return True


def free_memory() -> None:
    """Give the memory of profiles that nothing refers to any more back to the system."""
    gc.collect()
    release_freed_memory()


def free_loaded_memory() -> None:
    """Give what only loading profiles and engines took back to the system, before any thread is started."""
    free_memory()
    release_library_pages()


def _export(profiles: Profiles) -> None:
    metrics.DEVICE_MEMORY.clear()
    for device, kind in profiles.device_memory():
        metrics.DEVICE_MEMORY.labels(device, kind).set_function(partial(_device_bytes, profiles, device, kind))
    for profile in profiles.all():
        detector, model = profile.manifest["detector"], profile.backbone.spec.model
        metrics.PROFILE.labels(counted_under(profile.fingerprint), detector, model).set(1)


def _withdraw(old: Profiles, new: Profiles) -> None:
    """Remove the series of profiles that are not in use any more: else there would be more with every version."""
    for profile in old.all():
        counted = counted_under(profile.fingerprint)
        if counted in new.layouts:
            continue
        with suppress(KeyError):
            metrics.PROFILE.remove(counted, profile.manifest["detector"], profile.backbone.spec.model)
        for i in np.flatnonzero(profile.learned):
            with suppress(KeyError):
                metrics.SCORES.remove(counted, profile.signals[i])


def _device_bytes(profiles: Profiles, device: str, kind: str) -> float:
    return profiles.device_memory()[device, kind]
