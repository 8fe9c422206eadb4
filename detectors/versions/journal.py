"""What happened to the versions of a store, as an append-only list of changes; their state follows from it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from detectors.profile.files import ProfileError


class Kind(StrEnum):
    """What a change does."""

    ADD = "add"
    PROMOTE = "promote"
    ROLL_BACK = "roll-back"
    RETIRE = "retire"
    SHADOW = "shadow"


class State(StrEnum):
    """What a version is."""

    CANDIDATE = "candidate"
    """Added, or active before: it can be promoted."""
    SHADOW = "shadow"
    """It scores the same images as the active one where the configuration says so, to be compared with it."""
    ACTIVE = "active"
    """The one that scores."""
    RETIRED = "retired"
    """Never to be promoted again."""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry; entries are never changed or removed."""

    kind: Kind
    version: int
    """The version that it is about; of a roll-back the one that is active after it."""
    at: str
    """RFC 3339, UTC."""
    by: str
    """Who made it, as that person's machine says: for people to ask, not to be relied on."""
    reason: str = ""
    content: str = ""
    """Of an addition: the digest of the files."""
    fingerprint: str = ""
    """Of an addition."""

    def to_json(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name, value in asdict(self).items() if value != ""}


@dataclass(slots=True)
class Version:
    """A version of the profile."""

    number: int
    fingerprint: str
    content: str
    added: Change
    state: State = State.CANDIDATE
    changes: list[Change] = field(default_factory=list)
    """Those about it, oldest first, its addition among them."""


@dataclass(slots=True)
class Journal:
    """All versions, and which are active."""

    versions: list[Version] = field(default_factory=list)
    changes: int = 0
    _active: list[int] = field(default_factory=list)
    """Numbers that were promoted and not rolled back, the active one last."""
    _shadow: int = 0
    """Number of the one in shadow; 0 for none."""

    @classmethod
    def of(cls, changes: Iterable[Change]) -> Journal:
        """The state after these changes, oldest first."""
        journal = cls()
        for change in changes:
            journal._take(change)
        return journal

    def _take(self, change: Change) -> None:
        self.changes += 1
        if change.kind is Kind.ADD:
            version = Version(len(self.versions) + 1, change.fingerprint, change.content, change)
            self.versions.append(version)
        elif change.kind is Kind.SHADOW:
            self._shadow = change.version
        elif change.kind is Kind.ROLL_BACK:
            self._active.pop()
        elif change.kind is Kind.PROMOTE:
            self._active.append(change.version)
        else:
            self.versions[change.version - 1].state = State.RETIRED
        self.versions[change.version - 1].changes.append(change)
        if change.kind is not Kind.SHADOW and change.version == self._shadow:
            self._shadow = 0
        for version in self.versions:
            if version.state is not State.RETIRED:
                state = State.SHADOW if version.number == self._shadow else State.CANDIDATE
                version.state = State.ACTIVE if self._active[-1:] == [version.number] else state

    @property
    def active(self) -> Version | None:
        """The version that scores; None before the first promotion."""
        return self.versions[self._active[-1] - 1] if self._active else None

    @property
    def shadow(self) -> Version | None:
        """The version in shadow, if one is."""
        return self.versions[self._shadow - 1] if self._shadow else None

    def find(self, wanted: str) -> Version:
        """The version of that number or fingerprint (its beginning is enough), or `active`, or `shadow`.

        Raises:
            ProfileError: there is none, or more than one.
        """
        if wanted == State.SHADOW:
            if self.shadow is None:
                raise ProfileError("no version is in shadow: `layerwatch profile shadow` names one")
            return self.shadow
        if wanted == State.ACTIVE:
            if self.active is None:
                raise ProfileError("no version is active yet: promote one")
            return self.active
        found = [v for v in self.versions if str(v.number) == wanted]
        found = found or [v for v in self.versions if len(wanted) >= 4 and v.fingerprint.startswith(wanted)]
        if len(found) != 1:
            known = ", ".join(f"{v.number} ({v.fingerprint})" for v in self.versions) or "none"
            raise ProfileError(f"{'several versions match' if found else 'no version'} {wanted!r}; there are {known}")
        return found[0]

    def promotable(self, wanted: str) -> Version:
        """The version that `promote` would make active; errors as `find`, and where it must not be."""
        version = self.find(wanted)
        if version.state is State.RETIRED:
            raise ProfileError(
                f"version {version.number} is retired: {version.changes[-1].reason or 'no reason given'}"
            )
        if version.state is State.ACTIVE:
            raise ProfileError(f"version {version.number} is active already")
        return version

    def shadowable(self, wanted: str) -> Version:
        """The version that `shadow` would put in shadow; errors as `find`, and where it must not be."""
        version = self.find(wanted)
        if version.state is not State.CANDIDATE:
            raise ProfileError(f"version {version.number} is {version.state}")
        return version

    def before(self) -> Version:
        """The version that `roll-back` would make active again.

        Raises:
            ProfileError: there is none, or it is retired.
        """
        if len(self._active) < 2:
            raise ProfileError("no version was active before: nothing to roll back to")
        version = self.versions[self._active[-2] - 1]
        if version.state is State.RETIRED:
            raise ProfileError(f"version {version.number}, active before, is retired: promote another one")
        return version

    def retirable(self, wanted: str) -> Version:
        """The version that `retire` would retire; errors as `find`, and where it must not be."""
        version = self.find(wanted)
        if version.state not in {State.CANDIDATE, State.SHADOW}:
            raise ProfileError(f"version {version.number} is {version.state}")
        return version


def from_json(number: int, found: Any) -> Change:
    """A change as it was written.

    Raises:
        ProfileError: it is none, or of a later program.
    """
    try:
        return Change(**{**found, "kind": Kind(found["kind"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ProfileError(f"change {number} is not one that this program knows: {error}") from error


def numbers_of(names: Sequence[str]) -> list[int]:
    """Numbers of the changes with these file names; errors where one is missing.

    Raises:
        ProfileError: a change is missing: what came after it would be misread.
    """
    numbers = sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())
    if numbers != list(range(1, len(numbers) + 1)):
        raise ProfileError(f"change {next(i for i, n in enumerate(numbers, 1) if i != n)} is missing")
    return numbers
