"""The share of a partition's last records that were rejected. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RejectWindow:
    """Whether each of the last `window` records was rejected; a window of 0 keeps nothing."""

    window: int = 0
    max_share: float = 1.0
    bad: tuple[bool, ...] = ()

    def extended(self, bad: Sequence[bool]) -> RejectWindow:
        """With these records added after the others."""
        return replace(self, bad=(*self.bad, *bad)[-self.window :]) if self.window else self

    @property
    def full(self) -> bool:
        """Whether there are enough records to judge by."""
        return 0 < self.window == len(self.bad)

    @property
    def exceeded(self) -> bool:
        """Whether more than `max_share` of them are bad."""
        return self.full and sum(self.bad) > self.max_share * self.window

    def pack(self) -> bytes:
        """As bytes, for the next owner. Empty where the share is exceeded: a restart then continues the partition."""
        if self.exceeded or not self.window:
            return b""
        bits = int("1" + "".join("01"[bad] for bad in self.bad), 2)  # the leading 1 keeps the zeros behind it
        return bits.to_bytes(len(self.bad) // 8 + 1, "big")

    def unpack(self, packed: bytes) -> RejectWindow:
        """Inverse of `pack`, as far back as this window reaches."""
        bits = bin(int.from_bytes(packed, "big"))[3:]
        return replace(self, bad=()).extended([bit == "1" for bit in bits])
