"""Rules: what turns a window of counts into a verdict. Pure; no rule knows where the counts come from.

A window rule (Rate, Shift, Rejected, Frozen) is a frozen record of its parameters with `judge(layout, window) ->
Verdict`, where `window` is the sum of the stream's closed buckets (`buckets.sum_vectors`), and `check(layout)`, which
tells at start-up whether the profile can carry it. `Silence` judges by the clock. The sequential rule keeps state from
bucket to bucket and lives in `monitor.rules.sequential`.
"""

from monitor.rules.quality import Frozen, Rejected, Silence
from monitor.rules.rate import Rate
from monitor.rules.shift import Shift

WindowRule = Rate | Shift | Rejected | Frozen

__all__ = ["Frozen", "Rate", "Rejected", "Shift", "Silence", "WindowRule"]
