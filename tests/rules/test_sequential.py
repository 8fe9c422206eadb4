import json
import re
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import betaln

from detectors.deferred import Deferred
from detectors.profile.calibration import Calibration, jitter
from monitor.core import buckets
from monitor.core.buckets import IMAGES, Layout
from monitor.core.table import Table
from monitor.rules.bounds import anytime_interval
from monitor.rules.sequential.detector import advance, down_ratios, drift_start, up_ratios
from monitor.rules.sequential.ending import images_left
from monitor.rules.sequential.plan import Sequential, fleet_budget_s, plan_of
from monitor.rules.sequential.rows import State, initial, pack, unpack
from monitor.rules.sequential.rule import SequentialRule
from monitor.rules.sequential.table import RowTable
from tests.vectors import fill

stats = Deferred("scipy.stats")
BUCKET_MS = 10_000


def layout_of(
    n: int = 2000, signals: tuple[str, ...] = ("ood",), dependence: float = 1.0, learned: bool = True
) -> Layout:
    s = len(signals)
    return Layout(signals, (n,) * s, (False,) * s, (learned,) * s, (dependence,) * s)


def every_kind(n: int = 2000, seen: bool = False) -> Layout:
    """Two learned signals, two properties and two mixes; a `seen` signal where asked for."""
    signals = ("ood", "layer1", "noise", "luma", *(["seen"] if seen else []), "mix1", "mix2")
    s = len(signals)
    learned = tuple(signal in ("ood", "layer1", "mix1", "mix2") for signal in signals)
    two_sided = tuple(signal in ("noise", "luma") for signal in signals)
    return Layout(signals, (n,) * s, two_sided, learned, (1.0,) * s, mix=("mix1", "mix2"))


def id_masses(rng: np.random.Generator, layout: Layout, streams: int) -> NDArray[np.float64]:
    """(K, 9) true shares per bin under a calibration set of each stream's own."""
    k = buckets.reference_counts(layout, "ood")
    gaps = -np.diff(np.concatenate([[layout.calibration_sizes[0] + 1], k, [0]]))
    weights = rng.standard_gamma(gaps, size=(streams, buckets.BINS))
    return weights / weights.sum(axis=1, keepdims=True)


def draw(rng: np.random.Generator, layout: Layout, masses: NDArray[np.float64], images: int) -> NDArray[np.uint32]:
    vectors = np.zeros((len(masses), layout.size), dtype=np.uint32)
    vectors[:, : buckets.BINS] = rng.multinomial(images, masses)
    vectors[:, IMAGES] = images
    return vectors


def mixed(masses: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """`share` of the images lies beyond the 5 % cut, spread evenly over it."""
    ood = masses.copy()
    ood[:, :4] = 0
    return (1 - share) * masses + share * ood / ood.sum(axis=1, keepdims=True)


def run(
    rule: Sequential,
    layout: Layout,
    state: State,
    masses: NDArray[np.float64],
    rng: np.random.Generator,
    seconds: int,
    start_s: int = 0,
    per_bucket: int = 10,
) -> tuple[NDArray[np.int_], State]:
    """Alarms per stream, and the state after that many seconds at one bucket of `per_bucket` images per 10 s."""
    alarms = np.zeros(len(state), dtype=int)
    for start in range(start_s, start_s + seconds, 10):
        before = state["firing"].copy()
        state, verdicts = advance(rule, layout, state, start * 1000, draw(rng, layout, masses, per_bucket))
        assert [v.breached for v in verdicts] == state["firing"].tolist()
        alarms += state["firing"] & ~before
    return alarms, state


# ------------------------------------------------------------------------------------------------ the bound


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 2000])
def test_false_alarms_stay_below_the_bound_over_many_calibration_sets(n: int) -> None:
    rng = np.random.default_rng(n)
    layout, streams, seconds = layout_of(n), 150, 5000
    rule = Sequential(seconds_per_false_alarm=1000.0)
    alarms, _ = run(rule, layout, initial(rule, layout, streams), id_masses(rng, layout, streams), rng, seconds)
    assert alarms.mean() <= seconds / rule.seconds_per_false_alarm
    assert (alarms > 0).any(), "with a bound this loose something should alarm, else the test has no power"


@pytest.mark.parametrize("pi_min", [0.0, 0.01])
def test_no_bet_gains_on_average_at_any_rate_within_the_reference(pi_min: float) -> None:
    """Step 1 and 2 of the proof, exactly: E[L] <= 1 for every p up to p0 (upward) and down to it (downward)."""
    layout = layout_of(500)
    rule = Sequential(pi_min=pi_min)
    plan, m = plan_of(rule, layout), 12
    lower, upper = plan.start
    ups, downs = (zip(*f(rule, x, plan.dependence), strict=True) for f, x in ((up_ratios, upper), (down_ratios, lower)))
    for t, ((alpha, beta), (alpha_down, beta_down)) in enumerate(zip(ups, downs, strict=True)):
        for share in (0.2, 0.7, 1.0):
            c = np.arange(m + 1)[:, None]
            up = stats.binom.pmf(c, m, share * (upper[t] + (1 - upper[t]) * pi_min))
            down = stats.binom.pmf(c, m, 1 - share * (1 - lower[t] * (1 - pi_min)))
            assert ((up * np.exp(c * alpha + (m - c) * beta)).sum(axis=0) <= 1 + 1e-9).all()
            assert ((down * np.exp(c * alpha_down + (m - c) * beta_down)).sum(axis=0) <= 1 + 1e-9).all()


def test_no_bet_gains_on_blocks_of_identical_images_when_d_is_their_length() -> None:
    rule, plan = Sequential(), plan_of(Sequential(), layout_of(dependence=8.0))
    upper = plan.start[1]
    alpha, beta = up_ratios(rule, upper, plan.dependence)
    p = upper[:, None]
    assert (p * np.exp(8 * alpha) + (1 - p) * np.exp(8 * beta) <= 1 + 1e-9).all()


@pytest.mark.parametrize("signals", [("*",), ("ood",), ("learned",), ("properties",), ("mix",), ("noise", "mix")])
def test_weights_of_all_bets_add_up_to_one(signals: tuple[str, ...]) -> None:
    up, down = plan_of(Sequential(signals=signals), every_kind()).weights
    assert up.sum() + down.sum() == pytest.approx(1)


def test_half_of_the_weight_is_on_the_first_signal_and_the_kinds_share_the_rest() -> None:
    plan = plan_of(Sequential(signals=("*",)), every_kind())
    of_signal = dict.fromkeys(("ood", "layer1", "noise", "luma", "mix1", "mix2"), 0.0)
    for weights, cuts in zip(plan.weights, ([*range(len(plan.cuts))], plan.falling.tolist()), strict=True):
        for weight, cut in zip(weights.sum(axis=1), cuts, strict=True):
            of_signal[plan.cuts[cut][0]] += weight
    expected = {"ood": 1 / 2, "layer1": 1 / 6, "noise": 1 / 12, "luma": 1 / 12, "mix1": 1 / 12, "mix2": 1 / 12}
    assert of_signal == pytest.approx(expected)
    assert plan.weights[0][plan.cuts.index(("ood", 3))].sum() == pytest.approx(1 / 4)
    even = plan_of(Sequential(signals=("properties",)), every_kind()).weights[0]
    assert even[:7].sum() == pytest.approx(even[7:].sum())  # seven usable cuts each


def test_learned_signals_bet_upward_only_and_mixes_on_the_middle_in_both_directions() -> None:
    plan = plan_of(Sequential(signals=("*",)), every_kind())
    falling = [plan.cuts[cut] for cut in plan.falling]
    assert {signal for signal, _ in falling} == {"noise", "luma", "mix1", "mix2"}
    mix = [("mix1", 0), ("mix1", 1), ("mix1", 2)]
    assert [cut for cut in plan.cuts if cut[0] == "mix1"] == [cut for cut in falling if cut[0] == "mix1"] == mix


@pytest.mark.parametrize("rate", [0.55, 0.45])
def test_some_bet_grows_nearly_as_fast_as_the_best_one_where_a_mean_moves_a_little(rate: float) -> None:
    half, d = np.array([0.5]), np.array([1.0])
    alpha, beta = up_ratios(Sequential(), half, d) if rate > 0.5 else down_ratios(Sequential(), half, d)
    best = rate * np.log(rate / 0.5) + (1 - rate) * np.log((1 - rate) / 0.5)
    assert (rate * alpha + (1 - rate) * beta).max() > 0.95 * best


def test_a_group_of_which_the_profile_has_none_is_refused_and_named() -> None:
    for signals in (("mix",), ("*", "mix")):
        with pytest.raises(ValueError, match="the profile has no mix signals; fit it again"):
            plan_of(Sequential(signals=signals), layout_of())


def test_a_group_of_signals_is_the_same_as_its_names() -> None:
    layout = Layout(("ood", "layer1", "noise"), (500,) * 3, (False,) * 3, (True, True, False), (1.0,) * 3)
    vectors = fill(layout, np.random.default_rng(0).uniform(1e-6, 1, (40, 3)))[None]
    stored = []
    for signals in (("learned",), ("ood", "layer1")):
        rule = Sequential(signals=signals)
        plan_of(rule, layout)
        state, _ = advance(rule, layout, initial(rule, layout), 0, vectors)
        stored.append(pack(state))
    assert stored[0] == stored[1]


def tied_stream(rng: np.random.Generator, distinct: int, jitters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(images, 1) p-values of images whose scores take few values, calibrated on 500 others; jitters by image key."""
    scores = rng.choice(np.arange(distinct) / 7, 2500, p=rng.dirichlet(np.ones(distinct)))
    calibration = Calibration.of(scores[:500], jitters[:500], two_sided=False)
    return calibration.p_values(scores[500:], jitters[500:])[:, None]


def alarms_on(p_values: NDArray[np.float64]) -> bool:
    layout = layout_of(500, learned=False)
    rule = Sequential(seconds_per_false_alarm=1e7)
    state = initial(rule, layout)
    for i, start in enumerate(range(0, len(p_values), 50)):
        state, _ = advance(rule, layout, state, i * BUCKET_MS, fill(layout, p_values[start : start + 50])[None])
    return bool(state["firing"][0])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_ties_broken_by_the_images_keys_do_not_break_the_downward_bets(seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    keys = jitter([f"{seed}/{i}".encode() for i in range(2500)])
    assert not alarms_on(tied_stream(rng, distinct, keys))


def test_ties_left_unbroken_would_alarm() -> None:
    """Why the keys are needed: with all jitters equal, tied images crowd at large p-values."""
    assert alarms_on(tied_stream(np.random.default_rng(0), 1, np.zeros(2500, dtype=np.uint64)))


def test_the_fleets_budget_grows_with_its_streams() -> None:
    week = 7 * 86400
    assert fleet_budget_s(1) == 30 * 86400
    assert fleet_budget_s(1000) == 1000 * week


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=12), st.sampled_from([0.0, 0.01]))
def test_upward_drift_never_loosens_the_reference(passed: list[int], pi_min: float) -> None:
    layout = layout_of(500)
    rule = Sequential(seconds_per_false_alarm=1e300, pi_min=pi_min)
    state = initial(rule, layout)
    nominal = plan_of(rule, layout).nominal
    for i, beyond in enumerate(passed):
        vector = np.zeros((1, layout.size), dtype=np.uint32)
        vector[0, [0, 5, IMAGES]] = 900 - beyond, beyond, 900
        before = state
        state, _ = advance(rule, layout, state, i * BUCKET_MS, vector)
        assert (state["upper"] <= before["upper"]).all()
        assert (state["lower"] >= before["lower"]).all()
        assert (state["upper"] >= nominal).all()
        assert (state["lower"] <= nominal).all()


def test_a_fixed_reference_is_not_tightened() -> None:
    rng = np.random.default_rng(5)
    layout = layout_of()
    rule = Sequential(reference="fixed")
    first = initial(rule, layout, 3)
    _, state = run(rule, layout, first, id_masses(rng, layout, 3), rng, 3000)
    assert (state["upper"] == first["upper"]).all()


# ------------------------------------------------------------------------------------------------ what it sees


def test_drift_is_seen_measured_and_its_end_too() -> None:
    rng = np.random.default_rng(1)
    layout, streams = layout_of(), 40
    rule = Sequential(seconds_per_false_alarm=1e6)
    clean = id_masses(rng, layout, streams)
    alarms, state = run(rule, layout, initial(rule, layout, streams), clean, rng, 3000)
    assert alarms.sum() == 0
    past = state["images"].copy()
    alarms, state = run(rule, layout, state, mixed(clean, 0.2), rng, 1500, start_s=3000)
    assert (alarms >= 1).all()
    assert alarms.sum() <= streams + 2, "an alert must not come and go while its drift goes on"
    assert (state["images"] < past + 1000).all(), "the baseline must not learn from drifted images"
    _, verdicts = advance(rule, layout, state, 0, np.zeros((streams, layout.size), dtype=np.uint32))
    severities = [v.severity for v in verdicts if v.severity is not None]
    assert len(severities) == len(verdicts)
    assert np.mean([low <= 0.2 <= high for low, _, high in severities]) > 0.9
    assert np.median([estimate for _, estimate, _ in severities]) == pytest.approx(0.2, abs=0.05)
    assert "ood: more images beyond the" in verdicts[0].cause
    assert "at least" in verdicts[0].summary
    assert all((v.value, v.bound) == (s[1], s[0]) for v, s in zip(verdicts, severities, strict=True))
    # spread evenly over the 5 % tail: beyond that cut or the next, half of 20 % or of 8 %
    assert all(0.02 < v.threshold < 0.15 for v in verdicts)
    assert all("; clears after about " in v.summary for v in verdicts)
    _, state = run(rule, layout, state, clean, rng, 600, start_s=4500)
    assert not state["firing"].any()


def test_the_verdict_at_the_alarm_measures_the_images_since_the_drift_began() -> None:
    rng, layout = np.random.default_rng(8), layout_of()
    rule = SequentialRule(name="drift", kind="sequential")
    clean = id_masses(rng, layout, 1)
    counts = [draw(rng, layout, clean, 10)[0] for _ in range(100)]
    counts += [draw(rng, layout, mixed(clean, 1.0), 10)[0] for _ in range(20)]
    state = initial(rule.statistic(10), layout)
    for i, vector in enumerate(counts):
        state, verdicts = advance(rule.statistic(10), layout, state, i * BUCKET_MS, vector[None])
        if state["firing"][0]:
            break
    (row,), held = pack(state), [(j * BUCKET_MS, vector) for j, vector in enumerate(counts[: i + 1])]
    onset_ms = rule.onset_ms(layout, row, held)
    assert onset_ms == 100 * BUCKET_MS
    window = buckets.sum_vectors(vector for start, vector in held if start >= onset_ms)
    verdict = rule.verdict_since_onset(layout, row, verdicts[0], window)
    assert verdict.images == 10 * (i - 99) > 0
    assert verdict.severity is not None
    assert verdict.severity == pytest.approx((0.0, 1.0, 1.0), abs=0.05)
    assert verdict.summary.startswith("about 100 % of the images drifted; ood: more images")


def test_the_verdict_that_clears_says_so_with_the_images_it_rests_on() -> None:
    rng, layout, rule = np.random.default_rng(9), layout_of(), Sequential()
    clean = id_masses(rng, layout, 1)
    alarms, state = run(rule, layout, initial(rule, layout), mixed(clean, 0.9), rng, 400)
    assert alarms.tolist() == [1]
    bucket = 40
    while state["firing"][0]:
        since = int(state["since"][0])
        state, verdicts = advance(rule, layout, state, bucket * BUCKET_MS, draw(rng, layout, clean, 10))
        bucket += 1
    assert verdicts[0].images == since + 10
    assert re.match(r"no drift any more: less than [2-4]\d% of the images drift, by", verdicts[0].summary)


def test_more_images_than_normal_in_the_middle_of_a_property_are_drift() -> None:
    rng = np.random.default_rng(2)
    layout = layout_of(learned=False)
    rule = Sequential()
    half = np.full((1, buckets.BINS), 0.0)
    half[0, 0] = 1.0
    alarms, state = run(rule, layout, initial(rule, layout), half, rng, 500)
    assert alarms.tolist() == [1]
    _, verdicts = advance(rule, layout, state, 0, np.zeros((1, layout.size), dtype=np.uint32))
    assert "ood: fewer images beyond the" in verdicts[0].cause
    assert verdicts[0].severity is not None
    assert verdicts[0].severity[0] > 0.5
    _, state = run(rule, layout, state, id_masses(rng, layout, 1), rng, 500, start_s=500)
    assert not state["firing"][0]


def test_images_that_look_too_normal_to_the_detector_are_no_drift() -> None:
    layout, rule = layout_of(), Sequential()
    too_normal = np.zeros((1, buckets.BINS))
    too_normal[0, 0] = 1.0
    alarms, _ = run(rule, layout, initial(rule, layout), too_normal, np.random.default_rng(2), 5000)
    assert alarms.tolist() == [0]


@pytest.mark.parametrize("moved", [-0.3, 0.3])
def test_a_mean_that_moves_either_way_is_seen_by_a_mix(moved: float) -> None:
    rng, layout = np.random.default_rng(7), every_kind()
    rule = Sequential(signals=("*",))
    state = initial(rule, layout, 4)
    for bucket in range(80):
        z = rng.standard_normal((4 * 50, 6))
        z[:, 4] += moved * (bucket >= 40)
        state, verdicts = advance(
            rule,
            layout,
            state,
            bucket * BUCKET_MS,
            buckets.fill_groups(layout, stats.norm.sf(z), np.arange(200) // 50, 4),
        )
        assert bucket >= 40 or not state["firing"].any()
    assert state["firing"].all()
    side = "more" if moved > 0 else "fewer"
    assert all(v.cause.startswith(f"mix1: {side} images beyond the") for v in verdicts)
    # the mean of a normal distribution that moves by .3 sd: 12 % of it lies elsewhere
    assert all(v.severity and v.severity[0] <= 0.12 <= v.severity[2] for v in verdicts)
    assert 0.06 < np.mean([v.severity[1] for v in verdicts if v.severity]) < 0.15
    assert all("of the images are others" in v.summary for v in verdicts)


def played_again(rng: np.random.Generator, layout: Layout, images: int, again: int) -> NDArray[np.uint32]:
    """(1, V) one bucket; `again` of the images are of the reference, and everything about them is most unusual."""
    p = rng.uniform(0.01, 1, (images, len(layout.signals)))
    p[:again] = 1 / 2001
    return fill(layout, p)[None]


def test_images_of_the_reference_played_again_are_no_evidence_but_drifted_ones_are() -> None:
    rng, layout = np.random.default_rng(11), every_kind(seen=True)
    rule = Sequential(signals=("*",))
    assert "seen" not in {signal for signal, _ in plan_of(rule, layout).cuts}
    state, _ = advance(rule, layout, initial(rule, layout), 0, played_again(rng, layout, 50, 0))
    before = state.copy()
    for bucket in range(1, 20):
        state, verdicts = advance(rule, layout, state, bucket * BUCKET_MS, played_again(rng, layout, 20, 11))
        assert "most images are of the reference" in verdicts[0].summary
    before["bucket_ms"] = state["bucket_ms"]
    assert (state == before).all()
    state, verdicts = advance(rule, layout, state, 20 * BUCKET_MS, played_again(rng, layout, 20, 10))
    assert verdicts[0].breached
    for bucket in range(21, 60):
        state, _ = advance(
            rule, layout, state, bucket * BUCKET_MS, fill(layout, np.tile(0.6, (20, 7)) ** [1, 1, 1, 1, 20, 1, 1])[None]
        )
    assert not state["firing"][0], "an alert ends on images of the reference, too"


def test_seen_is_bet_on_where_it_is_named() -> None:
    layout = every_kind(seen=True)
    rule = Sequential(signals=("seen",))
    rng, state = np.random.default_rng(12), initial(rule, layout)
    state, verdicts = advance(rule, layout, state, 0, played_again(rng, layout, 60, 60))
    assert verdicts[0].cause.startswith("seen: more images")


@pytest.mark.slow
def test_a_drift_that_goes_on_keeps_firing_and_one_that_weakens_fires_or_fires_again() -> None:
    rng, layout, streams = np.random.default_rng(13), layout_of(), 20
    rule = Sequential(seconds_per_false_alarm=1e6)
    clean = id_masses(rng, layout, streams)
    _, state = run(rule, layout, initial(rule, layout, streams), clean, rng, 2000)
    alarms, state = run(rule, layout, state, mixed(clean, 0.3), rng, 3000, start_s=2000)
    assert alarms.sum() <= streams + 1
    assert state["firing"].all()
    _, state = run(rule, layout, state, mixed(clean, 0.05), rng, 6000, start_s=5000)
    assert state["firing"].mean() > 0.8


def test_what_a_clear_needs_is_told_and_holds() -> None:
    rng, layout, streams = np.random.default_rng(14), layout_of(), 40
    rule = Sequential()
    clean = id_masses(rng, layout, streams)
    _, state = run(rule, layout, initial(rule, layout, streams), mixed(clean, 0.3), rng, 1000)
    told = images_left(rule, plan_of(rule, layout), state)
    took = np.zeros(streams)
    for bucket in range(100, 200):
        took += 10 * state["firing"]
        state, _ = advance(rule, layout, state, bucket * BUCKET_MS, draw(rng, layout, clean, 10))
    assert np.median(took) == pytest.approx(np.median(told), rel=0.5)


def test_nothing_alarms_before_fifty_images() -> None:
    layout = layout_of()
    rule = Sequential(seconds_per_false_alarm=100.0)
    vector = np.zeros((1, layout.size), dtype=np.uint32)
    vector[0, [8, IMAGES]] = 49
    state, verdicts = advance(rule, layout, initial(rule, layout), 0, vector)
    assert verdicts[0].breached is False
    assert verdicts[0].value == 1
    vector[0, [8, IMAGES]] = 1
    state, verdicts = advance(rule, layout, state, BUCKET_MS, vector)
    assert verdicts[0].breached is True


# ------------------------------------------------------------------------------------------------ state


def test_the_same_bucket_twice_and_empty_buckets_change_nothing() -> None:
    rng = np.random.default_rng(3)
    layout = layout_of()
    rule = Sequential()
    masses = mixed(id_masses(rng, layout, 5), 0.3)
    _, state = run(rule, layout, initial(rule, layout, 5), masses, rng, 300)
    again, verdicts = advance(rule, layout, state, 290_000, draw(rng, layout, masses, 10))
    assert (again == state).all()
    empty, unchanged = advance(rule, layout, state, 300_000, np.zeros((5, layout.size), dtype=np.uint32))
    assert unchanged == verdicts
    empty["bucket_ms"] = state["bucket_ms"]
    assert (empty == state).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())
def test_replicas_order_and_storage_never_change_a_verdict(seed: int, streams: int, one_by_one: bool) -> None:
    """Counts of a bucket come from several partitions in any order; rows are advanced alone or together, and stored."""
    rng = np.random.default_rng(seed)
    layout = layout_of(400, signals=("ood", "layer1"))
    rule = Sequential(signals=("ood", "layer1"), seconds_per_false_alarm=500.0, clear_images=50)
    whole, parted = initial(rule, layout, streams), initial(rule, layout, streams)
    for bucket in range(25):
        p = rng.uniform(1e-6, 1, (streams * 8, 2)) ** rng.choice([1, 4])
        group, partition = rng.integers(0, streams, len(p)), rng.integers(0, 3, len(p))
        together = buckets.fill_groups(layout, p, group, streams)
        whole, verdicts = advance(rule, layout, whole, bucket * BUCKET_MS, together)

        parts = [buckets.fill_groups(layout, p[partition == i], group[partition == i], streams) for i in range(3)]
        vectors = buckets.sum_vectors([parts[i] for i in rng.permutation(3)])
        rows = unpack(rule, layout, pack(parted))
        if one_by_one:
            steps = [
                advance(rule, layout, rows[i : i + 1], bucket * BUCKET_MS, vectors[i : i + 1]) for i in range(streams)
            ]
            parted, others = np.concatenate([s for s, _ in steps]), [v[0] for _, v in steps]
        else:
            order = rng.permutation(streams)
            moved, shuffled = advance(rule, layout, rows[order], bucket * BUCKET_MS, vectors[order])
            parted, others = moved[np.argsort(order)], [shuffled[i] for i in np.argsort(order)]
        assert others == verdicts
        assert pack(parted) == pack(whole)


def test_state_of_other_signals_or_calibration_starts_anew_and_the_rest_is_kept() -> None:
    rng, layout, rule = np.random.default_rng(4), layout_of(), Sequential()
    _, state = run(rule, layout, initial(rule, layout, 2), id_masses(rng, layout, 2), rng, 100)
    (one, two), first = pack(state), initial(rule, layout)[0]
    assert unpack(rule, layout, []).shape == (0,)
    assert pack(unpack(Sequential(seconds_per_false_alarm=1e9), layout, [one, two])) == [one, two]
    other = pack(initial(rule, layout_of(3000)))[0]
    longer = pack(initial(Sequential(signals=("ood", "b")), layout_of(signals=("ood", "b"))))[0]
    taken_up = unpack(rule, layout, [None, two, other, longer])
    assert pack(taken_up[1:2]) == [two]
    assert (taken_up[[0, 2, 3]] == first).all()


def test_a_profile_that_cannot_carry_the_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        plan_of(Sequential(), layout_of(5))
    with pytest.raises(KeyError, match="no signal"):
        plan_of(Sequential(signals=("layer9",)), layout_of())


OF_1 = json.loads((Path(__file__).parent / "rows_v1.json").read_text())
"""Rows that version 1 wrote, and what it said of them."""


def rows_of_1() -> tuple[Sequential, Layout, dict[str, bytes]]:
    layout = Layout.from_json(json.dumps(OF_1["layout"]))
    rows = {name: zlib.decompress(b64decode(row)) for name, row in OF_1["rows"].items()}
    return Sequential(signals=("*",)), layout, rows


def test_rows_of_version_1_go_on_and_what_fires_keeps_firing() -> None:
    rule, layout, rows = rows_of_1()
    state = unpack(rule, layout, [None, *rows.values()])
    assert state["firing"].tolist() == [False, False, True, True, True]
    assert state["images"].tolist() == [0, 1800, 1550, 1500, 1500]
    assert unpack(rule, layout, pack(state)).tobytes() == state.tobytes()
    _, verdicts = advance(rule, layout, state, 0, np.zeros((5, layout.size), dtype=np.uint32))
    assert verdicts[1].summary.startswith("no alarm; the evidence for drift is ")
    for verdict, before in zip(verdicts[2:], list(OF_1["summaries"].values())[1:], strict=True):
        assert verdict.summary.partition("; clears")[0] == before
    for rule_of_others in (Sequential(signals=("ood",)), Sequential(signals=("*",), delta=0.02)):
        assert not unpack(rule_of_others, layout, list(rows.values()))["firing"].any()


def test_alerts_of_version_1_still_end_when_their_drift_does() -> None:
    rule, layout, rows = rows_of_1()
    rng, state = np.random.default_rng(15), unpack(rule, layout, list(rows.values()))
    for bucket in range(40, 80):
        p = rng.uniform(1e-6, 1, (200, 2))
        state, _ = advance(
            rule, layout, state, bucket * BUCKET_MS, buckets.fill_groups(layout, p, np.arange(200) // 50, 4)
        )
    assert not state["firing"].any()


# ------------------------------------------------------------------------------------------------ since when


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_start_of_the_drift_is_found_from_the_buckets_before_the_alarm(share: float) -> None:
    rng = np.random.default_rng(6)
    layout, errors = layout_of(), []
    rule = Sequential(seconds_per_false_alarm=1e6)
    for _ in range(10):
        masses, state = id_masses(rng, layout, 1), initial(rule, layout)
        history: list[NDArray[np.uint32]] = []
        while not state["firing"][0]:
            drifted = len(history) >= 100
            history.append(draw(rng, layout, mixed(masses, share) if drifted else masses, 10))
            state, _ = advance(rule, layout, state, len(history) * BUCKET_MS, history[-1])
        errors.append(drift_start(rule, layout, state, np.concatenate(history)) - 100)
    assert abs(np.median(errors)) <= (1 if share > 0.1 else 20)


def test_empty_buckets_before_the_drift_are_not_part_of_it() -> None:
    layout = layout_of()
    rule = Sequential(min_images=1)
    history = np.zeros((6, layout.size), dtype=np.uint32)
    history[0, [0, IMAGES]] = 30
    history[4:, [8, IMAGES]] = 30
    state, _ = advance(rule, layout, initial(rule, layout), 0, history.sum(axis=0, keepdims=True, dtype=np.uint32))
    assert drift_start(rule, layout, state, history) == 4
    with pytest.raises(ValueError, match="firing"):
        drift_start(rule, layout, initial(rule, layout), history)


# ------------------------------------------------------------------------------------------------ severity


@pytest.mark.parametrize(("passed", "total"), [(0, 10), (10, 10), (3, 10), (90, 1000), (2.5, 125.0)])
def test_the_anytime_interval_is_where_the_mixture_does_not_reject(passed: float, total: float) -> None:
    low, high = (float(x[0]) for x in anytime_interval(np.array([float(passed)]), np.array([float(total)]), 0.025))
    assert low <= passed / total <= high
    grid = np.linspace(1e-6, 1 - 1e-6, 20_001)
    mixture = betaln(0.5 + passed, 0.5 + total - passed) - betaln(0.5, 0.5)
    kept = grid[mixture < passed * np.log(grid) + (total - passed) * np.log1p(-grid) - np.log(0.025)]
    assert low == pytest.approx(kept[0], abs=1e-4)
    assert high == pytest.approx(kept[-1], abs=1e-4)


def test_without_images_the_interval_says_nothing() -> None:
    low, high = anytime_interval(np.array([0.0]), np.array([0.0]), 0.025)
    assert (low[0], high[0]) == (0, 1)


@pytest.mark.slow
def test_rows_advanced_in_place_are_those_of_advance_and_every_alarm_is_told() -> None:
    layout = Layout(("ood", "luma"), (999, 1999), (False, True), (True, False), (1.0, 1.5))
    rule = Sequential(signals=("*",), seconds_per_false_alarm=3000.0, min_images=20)
    rng, names = np.random.default_rng(3), [f"cam-{i}" for i in range(50)]
    table, rows = RowTable(rule, layout), {name: initial(rule, layout) for name in names}
    told: set[str] = set()
    for bucket in range(60):
        sent = [name for name in names if rng.random() < 0.7]
        p = rng.random((len(sent), 40, 2)) ** (3.0 if 20 < bucket < 40 else 1.0)
        vectors = np.stack([fill(layout, np.maximum(one, 1e-3)) for one in p])
        asked = set(sent[:2])
        found = table.advance(rule, bucket, Table(sent, vectors), asked)
        for name, vector in zip(sent, vectors, strict=True):
            fired = bool(rows[name]["firing"][0])
            rows[name], (verdict,) = advance(rule, layout, rows[name], bucket, vector[None])
            if name in asked or fired or verdict.breached:
                assert found.pop(name) == verdict
                told.add(name)
        assert not found
    assert len(told) == len(names)
    assert [table.get(name) for name in names] == [pack(rows[name])[0] for name in names]
    table.drop(names[:10])
    assert table.get(names[0]) is None
    again = RowTable(rule, layout)
    again.put({name: table.get(name) or b"" for name in names[10:]})
    assert [again.get(name) for name in names[10:]] == [pack(rows[name])[0] for name in names[10:]]
