"""`layerwatch profile renew-due`: the next step of the renewal that the configuration schedules.

    nothing waits, and the last renewal is long ago    renew; put the candidate in shadow
    a candidate is in shadow                           wait; then promote it if it was quiet, or ask a person

Where things stand follows from the store of profiles and from Redis alone, so a step can be repeated, and whoever comes
next goes on. An own alert says what waits for a person.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console

import detectors
from detectors.images.reading import InputError
from detectors.versions.journal import Change, Journal, Kind, State, Version
from detectors.versions.store import ProfileStore, split_address
from monitor.cli.options import add_config_option
from monitor.cli.progress import show_progress
from monitor.cli.renewal.selection import Progress, Request
from monitor.config.errors import EXIT_UNAVAILABLE, CommandError, as_command_error
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.core.buckets import Layout, counted_under
from monitor.core.shadow import PREFIX, shadow_of
from monitor.fleet.comparison import Buckets, as_judging, compare, sides_of
from monitor.fleet.history import LEVEL
from monitor.fleet.rehearsal import would_fire
from monitor.fleet.renewal import Outcome, RenewalJson, keep_renewal, read_renewals
from monitor.fleet.state import newest_event_ms, read_layouts
from monitor.notify.self_alerts import RENEWAL, SelfAlerts
from monitor.store import Store, StoreConfigError, StoreError, open_store
from monitor.telemetry.clock import wall_ms

NICENESS = 15
"""The daemon beside it goes first."""
AGAIN_S = 3600.0
"""After a renewal whose process was ended: not at once, as it may have run out of memory."""
COMPARED_S = 86_400.0
"""Of event time, at least: of the images in it, those that both versions scored."""
LEAST_IMAGES = 500
"""In shadow, before a candidate is called quiet."""

add_arguments = add_config_option


def run(args: argparse.Namespace) -> int:
    settings, console = load_config(args.config), Console(stderr=True)
    if settings.renewal.every is None:
        raise CommandError("layerwatch profile renew-due: renewal.every is not set, so nothing is ever due")
    os.nice(NICENESS)
    with (
        as_command_error("profile renew-due", detectors.ProfileError),
        as_command_error("profile renew-due", StoreError, StoreConfigError, status=EXIT_UNAVAILABLE),
        closing(open_store(settings.redis, settings.monitor)) as store,
        show_progress(console, "renew") as show,
    ):
        sys.stdout.write(take_step(store, settings, show) + "\n")
    return 0


def take_step(store: Store, settings: Config, progress: Progress, now: Callable[[], int] = wall_ms) -> str:
    """Do what is due; returns what was done, or why nothing was.

    Raises:
        ProfileError: the store of profiles cannot be used.
        StoreError: Redis does not answer.
    """
    root, _ = split_address(settings.renewed)
    return _Step(store, settings, progress, now, ProfileStore(root)).take()


@dataclass
class _Step:
    store: Store
    settings: Config
    progress: Progress
    now: Callable[[], int]
    versions: ProfileStore

    def take(self) -> str:
        journal = self.versions.journal()
        last = next((renewal for renewal in read_renewals(self.store) if renewal.store == self.versions.root), None)
        if waiting := self._waiting(journal):
            return self._try(waiting, journal)
        if journal.shadow:
            return f"version {journal.shadow.number} is in shadow: a renewal would end that"
        if self.now() < self._due_ms(last, journal):
            self._say(self._open_question(last, journal))
            return "no renewal is due"
        self._end("it is tried again")  # what is asked next is another question
        found = self._renew()
        if found.version is not None:
            self.versions.shadow(str(found.version), "renewed on schedule")
            return f"version {found.version} is in shadow"
        self._say(self._open_question(found, journal))
        return f"{found.outcome}: {found.reason}"

    # ---------------------------------------------------------------- renew

    def _due_ms(self, last: RenewalJson | None, journal: Journal) -> int:
        """When the next renewal may begin: also after a person has added a version it is not due at once."""
        wait_s, last_ms = self.settings.renewal.every or 0.0, last.at if last else 0
        added_ms = _ms(journal.versions[-1].added.at) if journal.versions else 0
        if last and last.outcome == "began" and added_ms < last_ms:  # else only what it came to was not kept
            wait_s = min(wait_s, AGAIN_S)
        return max(last_ms, added_ms) + round(1000 * wait_s)

    def _renew(self) -> RenewalJson:
        from monitor.cli.renewal.renew import renew  # noqa: PLC0415 - loads torch

        plan = self.settings.renewal
        request = Request(
            self.settings.renewed,
            plan.streams,
            plan.since,
            plan.margin,
            calibrate_only=plan.calibrate_only,
            expected=plan.expected,
            max_shift=plan.max_shift,
            reason="renewed on schedule",
            device=self.settings.scoring.device,
        )
        keep_renewal(self.store, self._outcome("began", "its process is at work, or was ended before it was through"))
        try:
            return renew(self.store, self.settings, request, self.progress)
        except (InputError, detectors.TooFewImagesError, detectors.ProfileError) as error:
            found = self._outcome("failed", str(error))
            keep_renewal(self.store, found)
            return found

    def _outcome(self, outcome: Outcome, reason: str) -> RenewalJson:
        return RenewalJson(store=self.versions.root, at=self.now(), outcome=outcome, reason=reason)

    def _waiting(self, journal: Journal) -> Version | None:
        """The newest version, where it was renewed and nobody has decided about it yet."""
        newest = journal.versions[-1] if journal.versions else None
        undecided = newest and newest.state in {State.CANDIDATE, State.SHADOW} and not _was(newest, Kind.PROMOTE)
        return newest if newest and undecided and self.versions.manifest(newest).get("renewal") else None

    # ---------------------------------------------------------------- shadow

    def _try(self, version: Version, journal: Journal) -> str:
        if version.state is State.CANDIDATE:
            if journal.shadow:
                return f"version {version.number} waits until version {journal.shadow.number} is no longer in shadow"
            self.versions.shadow(str(version.number), "renewed")
            self._end("a renewed version is tried in shadow")
            return f"version {version.number} is in shadow"
        plan, since_ms = self.settings.renewal, _ms(_was(version, Kind.SHADOW)[-1].at)
        left_ms = since_ms + round(1000 * plan.shadow) - self.now()
        if left_ms > 0:
            return f"version {version.number} is in shadow for another {left_ms // 60_000 + 1} minutes"
        why, enough = self._disquiet(version)
        if not enough:
            return f"version {version.number} stays in shadow: {why}"
        if not why and plan.then == "promote":
            self.versions.promote(str(version.number), "renewed on schedule; quiet in shadow")
            self._end(f"version {version.number} is active")
            return f"version {version.number} is active"
        was = f"was not quiet in shadow: {why}" if why else "was quiet in shadow"
        text = (
            f"version {version.number} of {self.versions.root}, renewed on schedule, {was}. It waits for a person: "
            f"`layerwatch profile promote {self.versions.root} {version.number}`, or `retire`"
        )
        self._say(text)
        return text

    def _disquiet(self, version: Version) -> tuple[str, bool]:
        """(what speaks against a version in shadow, whether it scored enough images to say so)."""
        store, shadow = self.store, shadow_of(counted_under(version.fingerprint))
        until_ms = newest_event_ms(store.partitions.cursors(store.catalog.partitions())) + 1
        span_ms = until_ms - round(1000 * max(self.settings.renewal.shadow, COMPARED_S)), until_ms
        if shadow not in store.catalog.shadows():
            return "it has scored no image", False
        layouts = read_layouts(store)
        sides = sides_of(store, layouts, shadow, span_ms)
        found = compare(store, layouts, sides).shadow_side
        if found.images < LEAST_IMAGES:
            return f"it has scored {found.images} images, {LEAST_IMAGES} are needed", False
        allowed = LEVEL + self.settings.renewal.max_shift
        if (share := found.ood_share or 0.0) > allowed:
            return f"it finds {share:.1%} of the images unusual, more than {allowed:.1%}", True
        own = {shadow.removeprefix(PREFIX): store.catalog.shadows()[shadow]}
        fired = self._fired(as_judging(sides.shadow), own) - self._fired(sides.judging, layouts)
        if fired:
            rule, stream = min(fired)
            return f"{len(fired)} alerts that the active version would not have raised, as {rule} on {stream}", True
        return "", True

    def _fired(self, buckets: Buckets, layouts: Mapping[str, Layout]) -> set[tuple[str, str]]:
        bucket_ms, counting = self.settings.buckets.length_ms, {n for tables in buckets.values() for n in tables}
        known = {name: layout for name, layout in layouts.items() if name in counting}
        return {(alert.rule, alert.stream) for alert in would_fire(self.settings.rules, known, buckets, bucket_ms, "")}

    # ---------------------------------------------------------------- alerts

    def _open_question(self, last: RenewalJson | None, journal: Journal) -> str:
        """What is left to a person of the last renewal; empty where nothing is, or somebody has changed the store."""
        if last is None or last.version is not None:
            return ""
        changed = [change for version in journal.versions for change in version.changes if _ms(change.at) > last.at]
        what = {"refused": "was refused", "failed": "failed"}.get(last.outcome, "did not end")
        text = f"a renewal of {last.store} {what}: {last.reason}"
        return "" if changed else text

    def _say(self, text: str) -> None:
        """Raise the alert with that text; end it where there is none."""
        if text:
            url = self.settings.web.external_url
            page = f"{url.rstrip('/')}/profile" if url else ""
            self._alerts().raise_alert(RENEWAL, self.versions.root, text, page)
        else:
            self._end("nothing waits for a person")

    def _end(self, why: str) -> None:
        self._alerts().end([self.versions.root], RENEWAL, why=why)

    def _alerts(self) -> SelfAlerts:
        return SelfAlerts(self.store, self.settings.monitor, has_receivers=bool(self.settings.receivers))


def _was(version: Version, kind: Kind) -> list[Change]:
    return [change for change in version.changes if change.kind is kind]


def _ms(at: str) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1000)
