"""Takes up the version of a profile that is made active in its store, while the process runs. One thread.

It looks at the stores every few seconds, loads the new profiles beside the old ones, and lets the consumer switch
between two batches. Profiles that cannot be loaded, or by which the rules cannot judge, leave the old ones in use.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import structlog

from detectors import ProfileError
from monitor.ingest.maintenance import Every
from monitor.ingest.scoring.profiles import Profiles, pointers
from monitor.ingest.serving import Serving, free_memory
from monitor.ingest.settings import ScoringSettings
from monitor.notify.self_alerts import PROFILE, SelfAlerts
from monitor.store import Store, StoreError
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

LOOK_S = 5.0
"""Between looks at the store, a listing each; more or less, so that replicas do not load at the same moment."""
ALERT_TRIES = 2
"""Failed looks before an alert is raised: a store may be away for a moment."""
RETRY_S = (5.0, 10.0, 20.0, 60.0)
"""Between tries of the same version: each reads all of it."""
PROFILES = "profiles"
"""Subject of the alert about profiles that are not taken up: one for all replicas."""


class ProfileWatch:
    """Between `start` and `stop` the process scores with the active versions of its profiles.

    Args:
        load: loads the profiles that the configuration names now, and checks that every rule can judge by them; may
            raise anything.
    """

    def __init__(
        self,
        store: Store,
        serving: Serving,
        scoring: ScoringSettings,
        load: Callable[[], Profiles],
        alerts: SelfAlerts,
    ) -> None:
        self._store, self._serving, self._load, self._alerts = store, serving, load, alerts
        self._pointers = pointers(scoring)
        self._failures, self._retry_at_s, self._raised = 0, 0.0, False
        self._refused: dict[str, str] = {}
        """The pins that could not be loaded."""
        self._end_every = Every(30.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="profiles", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; what is being loaded is not waited for."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S * random.uniform(0.7, 1.3)):
            try:
                self.look()
            except StoreError as error:
                log.warning("profiles.redis_away", error=str(error))
            except Exception:
                log.exception("profiles.failed")  # no reason not to count, nor to look no more

    def look(self) -> None:
        """Take up other versions where the stores name some.

        Raises:
            StoreError: Redis does not answer; look again.
        """
        try:
            pins = {pointer.address: pointer.pinned() for pointer in self._pointers}
        except ProfileError as error:
            self._failed({}, str(error))
            return
        if pins != self._serving.profiles.pins:
            if pins == self._refused and time.monotonic() < self._retry_at_s:
                return
            if not self._taken_up(pins):
                return
        if self._serving.failure:
            self._serving.failure, self._failures, self._refused, self._raised = "", 0, {}, False
            self._serving.report()
            self._end_every.soon()
        # whichever process raised it: that one may have ended
        if self._end_every.due() and not any(replica.failure for replica in self._store.catalog.replicas()):
            self._alerts.end([PROFILES], PROFILE, why="every process scores with the active version")

    def _taken_up(self, pins: dict[str, str]) -> bool:
        log.info("profiles.loading", profiles=pins)
        profiles: Profiles | None = None
        try:
            profiles = self._load()
            profiles.probe_all()
            if not self._serving.replace(profiles, self._stop):
                return False
        except StoreError:
            raise
        except Exception as error:  # a file, a library or the memory is not as it should be: the old ones go on
            log.warning("profiles.refused", profiles=pins, error=f"{type(error).__name__}: {error}")
            self._failed(pins, str(error) or type(error).__name__)
            return False
        finally:
            profiles = None  # else what was refused would stay
            free_memory()
        metrics.PROFILE_SWITCHES.labels("done").inc()
        log.info("profiles.switched", profiles=pins, fingerprints=self._serving.profiles.fingerprints)
        return True

    def _failed(self, pins: dict[str, str], error: str) -> None:
        metrics.PROFILE_SWITCHES.labels("failed").inc()
        self._failures = self._failures + 1 if pins == self._refused else 1
        self._retry_at_s = time.monotonic() + RETRY_S[min(self._failures, len(RETRY_S)) - 1]
        self._refused, self._serving.failure = pins, error
        self._serving.report()
        # Redis may have lost the alert
        if self._failures >= ALERT_TRIES and not (self._raised and self._alerts.is_open(PROFILE, PROFILES)):
            text = f"the active version of a profile cannot be taken up, and the one before goes on: {error}"
            self._alerts.raise_alert(PROFILE, PROFILES, text)
            self._raised = True
