"""What the last renewal of each store of profiles came to, for pages, API and command line."""

from __future__ import annotations

from typing import Literal

import structlog
from pydantic import Field, ValidationError

from monitor.fleet.answers import Answer, Count, Share, Time
from monitor.store import Store

log = structlog.get_logger(__name__)

Outcome = Literal["candidate", "accepted", "refused", "failed", "began"]
"""accepted: it has moved by more than the limit, and a person said why that is right. began: a scheduled one is under
way, or its process was ended."""


class ShiftJson(Answer):
    """By how much a renewed profile has moved from an earlier version beyond one cut of one signal."""

    against: Literal["first", "last"]
    """The version that a person made or accepted last, or the one that it was made from."""
    version: int
    condition: str
    """Of the images; empty for the profile's own calibration."""
    signal: str
    which: Literal["new", "old"]
    """new: its images by the earlier version; old: those that the earlier version learned, by it."""
    end: Literal["high", "low"]
    level: Share
    """Share of normal images beyond the cut."""
    share: Share
    """Of these."""
    images: Count
    moved: Share
    """The difference; 0 where it may be chance."""


class MovedImageJson(Answer):
    """One of the images that lie farthest beyond the cuts of the first version."""

    id: str
    signal: str
    p_value: float
    picture: str
    """A JPEG as a data URI, as the network sees it."""


class FaultsJson(Answer):
    """The kept pictures of what people called a real fault, by the version before and by the renewed one."""

    images: Count
    seen_before: Count
    """With an OOD p-value of at most .05."""
    seen: Count


class RenewalJson(Answer):
    """A renewal: what it learned from, how far its normal has moved, and what became of it."""

    store: str
    at: Time
    outcome: Outcome
    reason: str
    """Why it failed or was refused; of an accepted one what the person said."""
    version: int | None = None
    """The candidate; null where none was made."""
    fingerprint: str = ""
    from_version: int | None = None
    first_version: int | None = None
    """The one that a person made or accepted last."""
    images: Count = 0
    hours: Count = 0
    """Calm hours that the images come from."""
    streams: Count = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    """Images by why they were left out."""
    limit: Share = 0.0
    """A candidate that has moved by more is refused."""
    smallest_seen: Share = 0.0
    """A smaller move of the OOD score cannot be told from chance by the calibration of the first version."""
    moved: Share = 0.0
    shifts: list[ShiftJson] = Field(default_factory=list)
    """The farthest first."""
    faults: FaultsJson | None = None
    pictures: list[MovedImageJson] = Field(default_factory=list)


def keep_renewal(store: Store, renewal: RenewalJson) -> None:
    """Keep it in the place of the last one of that store of profiles.

    Raises:
        StoreError: Redis does not answer.
    """
    store.renewals.put(renewal.store, renewal.model_dump_json())
    log.info("renewal.done", **renewal.model_dump(include={"store", "outcome", "reason", "version", "moved"}))


def read_renewals(store: Store) -> list[RenewalJson]:
    """The last one of each store of profiles, the latest first; one that cannot be read is left out.

    Raises:
        StoreError: Redis does not answer.
    """
    found = []
    for name, text in store.renewals.all().items():
        try:
            found.append(RenewalJson.model_validate_json(text))
        except ValidationError as error:
            log.warning("renewal.unreadable", store=name, error=str(error))
    return sorted(found, key=lambda renewal: -renewal.at)
