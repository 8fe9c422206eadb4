"""When a failed try is made again. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

STANDARD_WEBHOOKS_S = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Wait before each try, as the Standard Webhooks specification recommends: ten tries in a little over three days."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How often the dispatcher looks and how patient it is; the defaults are for production."""

    delays_s: tuple[float, ...] = STANDARD_WEBHOOKS_S
    """Wait before each try, the first included."""
    jitter: float = 0.2
    """Each wait grows by up to this share, so that what failed together does not come back together."""
    poll_s: float = 1.0
    """Between two looks at the outbox."""
    revisit_s: float = 10.0
    """Between two looks at the alerts that fire while a silence hides them."""

    def next_try_ms(self, now_ms: int, failed: int, after_s: float | None = None) -> int | None:
        """When to try again after `failed` tries; None after the last.

        `after_s` is what the receiver asked for. It lengthens the wait and never shortens it: a receiver that always
        says "in one second" would use up its tries in ten.
        """
        if failed >= len(self.delays_s):
            return None
        wait_s = self.delays_s[failed] * (1 + self.jitter * random.random())
        return now_ms + round(1000 * max(wait_s, after_s or 0.0))
