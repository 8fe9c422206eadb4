"""Rules: what turns a window of counts into a verdict. Pure; one kind per file.

A window rule is a frozen record of its parameters with `judge(layout, window) -> Verdict`, where `window` is the sum of
the stream's closed buckets (`buckets.sum_vectors`). `check(layout)` tells at start-up whether the profile can carry the
rule. The sequential rule keeps state from bucket to bucket and lives in `monitor.sequential`.
"""

from monitor.rules.rate import Rate

__all__ = ["Rate"]
