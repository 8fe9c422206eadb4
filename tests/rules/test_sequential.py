import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import betaln
from scipy.stats import binom

from detectors.profile.calibration import Calibration, jitter
from monitor.core import buckets
from monitor.core.buckets import IMAGES, Layout
from monitor.rules.bounds import anytime_interval
from monitor.rules.sequential.detector import advance, drift_start, log_ratios
from monitor.rules.sequential.plan import Sequential, State, fleet_budget_s, initial, pack, plan_of, unpack
from monitor.rules.sequential.rule import SequentialRule
from tests.vectors import fill

BUCKET_MS = 10_000


def layout_of(n: int = 2000, signals: tuple[str, ...] = ("ood",), dependence: float = 1.0) -> Layout:
    s = len(signals)
    return Layout(signals, (n,) * s, (False,) * s, (True,) * s, (dependence,) * s)


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
    state, plan, m = initial(rule, layout), plan_of(rule, layout), 12
    alpha, beta = (x[0] for x in log_ratios(rule, plan, state))
    for t in range(len(plan.cuts)):
        upper, lower = state["upper"][0, t], state["lower"][0, t]
        for share in (0.2, 0.7, 1.0):
            c = np.arange(m + 1)[:, None]
            gain = np.exp(c * alpha[t] + (m - c) * beta[t])
            up = binom.pmf(c, m, share * (upper + (1 - upper) * pi_min))
            down = binom.pmf(c, m, 1 - share * (1 - lower * (1 - pi_min)))
            assert ((up * gain)[:, :8].sum(axis=0) <= 1 + 1e-9).all()
            assert ((down * gain)[:, 8:].sum(axis=0) <= 1 + 1e-9).all()


def test_no_bet_gains_on_blocks_of_identical_images_when_d_is_their_length() -> None:
    layout = layout_of(dependence=8.0)
    rule = Sequential()
    state, plan = initial(rule, layout), plan_of(rule, layout)
    alpha, beta = (x[0] for x in log_ratios(rule, plan, state))
    p = state["upper"][0][:, None]
    assert (p * np.exp(8 * alpha[:, :8]) + (1 - p) * np.exp(8 * beta[:, :8]) <= 1 + 1e-9).all()


def test_weights_add_up_to_one_and_half_of_them_bet_on_the_first_signal_and_on_the_users_cut() -> None:
    names = ("ood", "layer1", "layer2")
    for signals, first in ((names[:1], 0.5), (names[:2], 0.25), (names, 0.25)):
        plan = plan_of(Sequential(signals=signals), layout_of(signals=names))
        weights = np.exp(plan.log_weights)
        assert weights.sum() == pytest.approx(1)
        assert weights[plan.cuts.index(("ood", 3)), :8].sum() == pytest.approx(first)
    assert weights[plan.cuts.index(("layer2", 3)), :8].sum() == pytest.approx(0.125)


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
    layout = layout_of(500)
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
    assert (alarms == 1).all()
    assert (state["images"] < past + 1000).all(), "the baseline must not learn from drifted images"
    _, verdicts = advance(rule, layout, state, 0, np.zeros((streams, layout.size), dtype=np.uint32))
    severities = [v.severity for v in verdicts if v.severity is not None]
    assert len(severities) == len(verdicts)
    assert np.mean([low <= 0.2 <= high for low, _, high in severities]) > 0.9
    assert np.median([estimate for _, estimate, _ in severities]) == pytest.approx(0.2, abs=0.05)
    assert "ood: more images beyond the" in verdicts[0].cause
    assert "at least" in verdicts[0].summary
    assert all((v.value, v.bound) == (s[1], s[0]) for v, s in zip(verdicts, severities, strict=True))
    assert {v.threshold for v in verdicts} == {0.01}
    _, state = run(rule, layout, state, clean, rng, 6000, start_s=4500)
    assert state["firing"].mean() < 0.1


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
    assert verdicts[0].summary.startswith("no drift any more: less than 1% of the images drift")


def test_images_that_look_too_normal_are_drift_as_well() -> None:
    rng = np.random.default_rng(2)
    layout = layout_of()
    rule = Sequential()
    half = np.full((1, buckets.BINS), 0.0)
    half[0, 0] = 1.0
    alarms, state = run(rule, layout, initial(rule, layout), half, rng, 500)
    assert alarms.tolist() == [1]
    _, verdicts = advance(rule, layout, state, 0, np.zeros((1, layout.size), dtype=np.uint32))
    assert "ood: fewer images beyond the" in verdicts[0].cause
    assert verdicts[0].severity is not None
    assert verdicts[0].severity[0] > 0.5
    _, state = run(rule, layout, state, id_masses(rng, layout, 1), rng, 3000, start_s=500)
    assert not state["firing"][0]


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
    assert abs(np.median(errors)) <= (1 if share > 0.1 else 10)


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
