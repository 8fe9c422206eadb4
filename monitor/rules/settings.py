"""What the entries of the `rules` section have in common; the section of each kind stands in the file of its rule."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import ConfigDict, Field, NonNegativeFloat

from monitor.core.settings import Glob, Names, Section
from monitor.rules.judge import Judge


class RuleSettings(Section):
    """What every rule has: a name, the streams it watches, and how long a breach must last.

    A kind narrows `kind` to its own name, a Literal, and adds its own keys.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    streams: Glob = "*"
    except_streams: Names = Field(default=(), alias="except")
    for_s: NonNegativeFloat = Field(default=0.0, alias="for")
    keep_firing_for_s: NonNegativeFloat = Field(default=0.0, alias="keep_firing_for")
    labels: dict[str, str] = Field(default_factory=dict)
    kind: str

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def watches(self, stream: str) -> bool:
        """Whether `streams` matches (case-sensitive; without wildcards: equality) and none of the exceptions does."""
        left_out = any(fnmatchcase(stream, glob) for glob in self.except_streams)
        return fnmatchcase(stream, self.streams) and not left_out

    def bind(self, bucket_s: int) -> Judge:
        """What judges for this rule: the section itself, where it is a `Judge` too.

        Raises:
            ValueError: its numbers do not go together.
        """
        raise NotImplementedError
