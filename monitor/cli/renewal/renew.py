"""The flow of a renewal: choose images, make a candidate, compare it with earlier versions, add it or refuse it."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectors import Profile, ProfileError
from detectors.images.decode import ImageError
from detectors.images.reading import InputError
from detectors.versions.guard import LEVEL, farthest, smallest_seen
from detectors.versions.journal import Version
from detectors.versions.store import ProfileStore, is_folder, split_address
from monitor.cli.learning import command_line
from monitor.cli.renewal.candidate import Compared, compare, make_candidate
from monitor.cli.renewal.selection import Progress, Request, Selection, Wanted, read_calm
from monitor.config.schema import Config
from monitor.core.alert_document import rfc3339
from monitor.fleet.feedback import images_of, read_feedback
from monitor.fleet.history import WINDOW_MS
from monitor.fleet.images import JPEG
from monitor.fleet.overview import Overview
from monitor.fleet.renewal import FaultsJson, MovedImageJson, Outcome, RenewalJson, ShiftJson, keep_renewal
from monitor.store import Store
from monitor.store.shards import whole_state
from monitor.telemetry.clock import wall_ms

SHIFTS_KEPT = 12


def renew(store: Store, settings: Config, request: Request, progress: Progress) -> RenewalJson:
    """Choose images, make a candidate, compare it with the first and the last version, add it unless it moved too far.

    What it came to is kept in Redis, too.

    Raises:
        InputError, TooFewImagesError: there are no such images, or too few.
        ProfileError: the store or a version in it cannot be used.
        StoreError: Redis does not answer.
    """
    if is_folder(request.profile):
        raise ProfileError(
            f"{request.profile} is one profile: `layerwatch profile add` puts it into a store of versions"
        )
    root, wanted_version = split_address(request.profile)
    versions = ProfileStore(root)
    if not versions.exists():
        raise ProfileError(f"{root}: there are no versions; `layerwatch profile add` makes the first")
    parent = versions.find(wanted_version)
    first = first_of(versions, parent)
    profile = Profile.load(versions.fetch(parent), request.device)
    now_ms = whole_state(store.shards.states()).bucket_ms or wall_ms()
    wanted = Wanted(
        request.streams,
        now_ms - round(1000 * request.since_s),
        round(1000 * request.margin_s),
        request.most,
        request.expected,
    )
    selection = Selection(settings, wanted, read_calm(store, settings, wanted), profile, root)
    selection.choose(progress)
    candidate = make_candidate(profile, selection, request.calibrate_only, progress)
    against = {"first": first, "last": parent} if first.number != parent.number else {"first": first}
    earlier = {name: Profile.load(versions.fetch(v), request.device, "auto") for name, v in against.items()}
    compared = {name: list(compare(by, candidate, selection, progress)) for name, by in earlier.items()}
    if not all(compared.values()):
        raise InputError("the source no longer holds the images that were chosen")
    moved = max(farthest(one.shifts) for ones in compared.values() for one in ones)
    faults = _faults(store, settings, earlier["first"], candidate)
    reason = _too_far(moved, faults, request.max_shift)
    outcome: Outcome = "refused" if reason else "candidate"
    if reason and request.accept:
        outcome, reason = "accepted", request.accept
    found = RenewalJson(
        store=root,
        at=wall_ms(),
        outcome=outcome,
        reason=reason,
        fingerprint=candidate.fingerprint,
        from_version=parent.number,
        first_version=first.number,
        images=len(selection.chosen),
        hours=selection.hours,
        streams=len(selection.streams),
        left_out=dict(selection.left_out),
        limit=request.max_shift,
        smallest_seen=smallest_seen(earlier["first"], max((s.images for s in compared["first"][0].shifts), default=1)),
        moved=moved,
        shifts=_shifts(compared, {name: version.number for name, version in against.items()}),
        faults=faults,
        pictures=_pictures(compared["first"]),
    )
    if outcome != "refused":
        candidate.manifest["renewal"] = _lineage(parent, first, selection, found)
        candidate.manifest["command"] = command_line()
        with tempfile.TemporaryDirectory(prefix="layerwatch-renewal-") as folder:
            candidate.save(folder)
            added = versions.add(Path(folder), request.reason or request.accept or f"renewed from {parent.number}")
        found = found.model_copy(update={"version": added.number})
    keep_renewal(store, found)
    return found


def _lineage(parent: Version, first: Version, selection: Selection, found: RenewalJson) -> dict[str, Any]:
    """What the manifest says of where a candidate comes from."""
    calm = selection.calm
    return {
        "from": parent.content,
        "first": first.content,
        "accepted": found.reason,
        "streams": list(selection.streams),
        "since": rfc3339(max(selection.wanted.since_ms, calm.since_ms)),
        "until": rfc3339(calm.until_ms),
        **found.model_dump(include={"images", "hours", "left_out", "moved", "limit", "faults"}),
    }


def first_of(versions: ProfileStore, parent: Version) -> Version:
    """The version that a person made or accepted last, on the way that leads to this one: what a renewal may not leave.

    Raises:
        ProfileError: it is not in the store any more.
    """
    lineage = versions.manifest(parent).get("renewal") or {}
    if not lineage or lineage["accepted"]:
        return parent
    for version in versions.journal().versions:
        if version.content == lineage["first"]:
            return version
    raise ProfileError(f"{versions.root}: the version that {parent.number} goes back to is not there any more")


def _faults(store: Store, settings: Config, earlier: Profile, candidate: Profile) -> FaultsJson | None:
    """How many of the pictures that are kept of real faults both find unusual; None where there are none."""
    snapshot = Overview(store, settings.buckets.lateness_ms, reach_ms=WINDOW_MS).snapshot()
    found = images_of(store, snapshot, read_feedback(store), "fault")
    pictures = [picture.jpeg for _, picture in found if picture.large]
    seen = [_seen(profile, pictures) for profile in (earlier, candidate)]
    return FaultsJson(images=len(pictures), seen_before=seen[0], seen=seen[1]) if pictures else None


def _seen(profile: Profile, pictures: Iterable[bytes]) -> int:
    found = 0
    for jpeg in pictures:
        try:
            found += bool(profile.score([jpeg]).p_values[0, 0] <= LEVEL)
        except ImageError:
            continue
    return found


def _too_far(moved: float, faults: FaultsJson | None, limit: float) -> str:
    """Why the candidate is refused; empty where it is not."""
    if moved > limit:
        return f"normal has moved by {moved:.1%}, which is more than {limit:.1%}"
    if faults and (faults.seen_before - faults.seen) / faults.images > limit:
        return f"it finds {faults.seen} of {faults.images} known faults unusual, the first version {faults.seen_before}"
    return ""


def _shifts(compared: dict[str, list[Compared]], numbers: dict[str, int]) -> list[ShiftJson]:
    found = [
        ShiftJson(
            against="first" if name == "first" else "last",
            version=numbers[name],
            condition=one.condition,
            **{key: getattr(shift, key) for key in ("signal", "which", "end", "level", "share", "images", "moved")},
        )
        for name, ones in compared.items()
        for one in ones
        for shift in one.shifts
    ]
    return sorted(found, key=lambda shift: (-shift.moved, shift.level - shift.share))[:SHIFTS_KEPT]


def _pictures(compared: Sequence[Compared]) -> list[MovedImageJson]:
    """Of the signal by which the new images have moved farthest; of the OOD score where none has."""
    new = [(one, shift) for one in compared for shift in one.shifts if shift.which == "new" and shift.end == "high"]
    one, shift = max(new, key=lambda pair: (pair[1].moved, pair[1].signal == "ood"))
    return [
        MovedImageJson(
            id=picture.id,
            signal=shift.signal,
            p_value=picture.p_value,
            picture=JPEG + base64.b64encode(picture.jpeg).decode(),
        )
        for picture in one.worst[shift.signal]
    ]
