"""What the processes of a monitor say of the profiles that they score with. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

GONE_S = 60.0
"""Without a report, of which each makes one every ten seconds: the process has ended, or hangs."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One process."""

    name: str
    """Host and process number."""
    profiles: Mapping[str, str]
    """Address in the configuration -> address of the profile that it scores with; of a store it names the version."""
    fingerprints: Sequence[str]
    """Of these profiles, as counts carry them."""
    failure: str = ""
    """Why another version that is the active one is not taken up; empty where there is none."""
    seen_ms: int = 0
    """When it said so, by the clock of Redis."""

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Replica:
        """Inverse of `to_json`; ValueError or TypeError where it is none."""
        return cls(**json.loads(text))


def disagree(replicas: Iterable[Replica]) -> bool:
    """Whether two of them score with different profiles."""
    return len({tuple(sorted(replica.fingerprints)) for replica in replicas}) > 1
