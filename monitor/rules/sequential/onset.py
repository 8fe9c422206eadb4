"""Since when: the bucket in which a drift most likely began, from the buckets before the alarm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import IMAGES, Layout, exceedances
from monitor.rules.sequential.detector import log_ratios
from monitor.rules.sequential.rule import BETS, Sequential, plan_of
from monitor.rules.sequential.state import State


def drift_start(rule: Sequential, layout: Layout, state: State, vectors: NDArray[np.uint32]) -> int:
    """Position of the first drifted bucket, by maximum likelihood; the last position where none looks drifted.

    The bet that caused the alarm says how drifted images are spread; the change point is where its likelihood ratio,
    added up from there to the end, is largest. Only the alarm needs it, so it is worked out from the stored buckets
    and not carried along in every stream's state.

    Args:
        state: (1,) the row of a stream that is firing.
        vectors: (B, V) buckets of that stream in order, the alarm's last; drift before the first cannot be seen.

    Raises:
        ValueError: not one firing row, or no buckets.
    """
    if len(state) != 1 or not state["firing"][0] or len(vectors) == 0:
        raise ValueError("drift_start needs one firing row and at least one bucket")
    plan = plan_of(rule, layout)
    cut, bet = divmod(int(state["cause"][0]), BETS)
    alpha, beta = (ratio[0, cut, bet] for ratio in log_ratios(rule, plan, state))
    signal, level = plan.cuts[cut]
    beyond = exceedances(layout, vectors, signal)[:, level]
    gain = beyond * alpha + (vectors[:, IMAGES].astype(np.int64) - beyond) * beta
    to_the_end = np.cumsum(gain[::-1])[::-1]
    # of equal sums the latest: empty buckets before the drift add nothing and are not part of it
    return int(len(gain) - 1 - np.argmax(to_the_end[::-1]))
