from dataclasses import replace

import numpy as np
import pytest

from monitor.core import buckets
from monitor.core.alert_document import MovedSignal
from monitor.core.buckets import IMAGES, Layout
from monitor.core.types import Vector
from monitor.rules.evidence import moved_signals, triage
from tests.vectors import fill

SIGNALS = ("ood", "layer1", "contrast", "sharpness")
LAYOUT = Layout(SIGNALS, (2000,) * 4, (False, False, True, True), (True, True, False, False), (1.0,) * 4)


def window(seed: int = 0, images: int = 1000, **changed: tuple[float, float]) -> Vector:
    """Uniform p-values, except that a share of a signal's images has the p-value given: contrast=(0.3, 0.001)."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(1e-6, 1, (images, 4))
    for signal, (share, value) in changed.items():
        p[: int(share * images), SIGNALS.index(signal)] = value
    return fill(LAYOUT, p)


def test_the_signals_that_moved_come_strongest_first_with_their_histograms() -> None:
    found = moved_signals(LAYOUT, window(sharpness=(0.5, 0.001), ood=(0.3, 0.001)))
    assert [m.signal for m in found] == ["sharpness", "ood"]
    assert found[0].effect == pytest.approx(0.5, abs=0.04)
    assert 0.3 < found[0].bound < found[0].effect
    assert [m.learned for m in found] == [False, True]
    assert all(m.direction == "low" for m in found)
    assert sum(found[0].histogram) == 1000
    assert found[0].histogram[8] >= 500
    assert len(moved_signals(LAYOUT, window(sharpness=(0.5, 0.001), ood=(0.3, 0.001)), limit=1)) == 1


def test_images_that_look_too_normal_have_the_direction_high() -> None:
    (found,) = moved_signals(LAYOUT, window(layer1=(0.6, 0.9)))
    assert (found.signal, found.direction) == ("layer1", "high")


def test_without_a_sure_signal_the_likeliest_are_named_and_none_without_images() -> None:
    found = moved_signals(LAYOUT, window(images=12, ood=(0.2, 0.001)))
    assert found
    assert all(m.bound == 0 < m.effect for m in found)
    assert triage(found) is None
    assert moved_signals(LAYOUT, buckets.empty(LAYOUT)) == ()
    assert triage(()) is None


def test_normal_windows_are_called_sure_as_rarely_as_promised() -> None:
    """Every window under calibration sets of its own; the risk counts all signals together."""
    rng = np.random.default_rng(3)
    sure = 0
    for _ in range(200):
        vector = buckets.empty(LAYOUT)
        for i, signal in enumerate(SIGNALS):
            gaps = -np.diff(np.concatenate([[2001], buckets.reference_counts(LAYOUT, signal), [0]]))
            weights = rng.standard_gamma(np.maximum(gaps, 1e-9))
            vector[i * 9 : i * 9 + 9] = rng.multinomial(800, weights / weights.sum())
        vector[IMAGES] = 800
        sure += any(m.bound > 0 for m in moved_signals(LAYOUT, vector, risk=0.1))
    assert sure <= 20


def test_learned_signals_alone_mean_content_and_properties_that_moved_as_much_mean_sensor() -> None:
    assert triage(moved_signals(LAYOUT, window(ood=(0.4, 0.001)))) == "content"
    assert triage(moved_signals(LAYOUT, window(contrast=(0.4, 0.001)))) == "sensor"
    assert triage(moved_signals(LAYOUT, window(ood=(0.4, 0.001), contrast=(0.4, 0.001)))) == "sensor"


def test_properties_that_move_a_little_with_new_content_do_not_make_it_the_sensor() -> None:
    found = moved_signals(LAYOUT, window(ood=(0.5, 0.001), contrast=(0.12, 0.001)))
    assert {m.signal for m in found} == {"ood", "contrast"}
    assert triage(found) == "content"


def test_signals_of_the_mix_alone_mean_that_the_mix_changed() -> None:
    mixed = replace(LAYOUT, learned=(True, False, False, False), mix=("layer1",))
    found = moved_signals(mixed, window(layer1=(0.4, 0.9)))
    assert [(m.signal, m.mix, m.learned) for m in found] == [("layer1", True, False)]
    assert triage(found) == "mix"
    assert triage(moved_signals(mixed, window(layer1=(0.4, 0.9), ood=(0.4, 0.001)))) == "content"
    assert triage(moved_signals(mixed, window(layer1=(0.4, 0.9), contrast=(0.4, 0.001)))) == "sensor"
    assert triage(moved_signals(mixed, window(layer1=(0.8, 0.9), contrast=(0.2, 0.001)))) == "mix"
    assert triage(moved_signals(mixed, buckets.empty(mixed), ["layer1"]), ["layer1"]) == "mix"


def test_images_that_were_learned_from_explain_whatever_else_moved() -> None:
    signals = ("ood", "layer1", "contrast", "seen")
    layout = replace(LAYOUT, signals=signals, two_sided=(False, False, True, False))

    def found(*causes: str, **changed: tuple[float, float]) -> str | None:
        names = dict(zip(signals, SIGNALS, strict=True))
        counts = window(0, 1000, **{names[signal]: change for signal, change in changed.items()})
        return triage(moved_signals(layout, counts, causes), causes)

    assert found(seen=(0.9, 0.001)) == "replay"
    assert found(seen=(0.9, 0.001), layer1=(0.5, 0.9), contrast=(0.5, 0.001)) == "replay"
    assert found(seen=(0.3, 0.001)) is None  # some are: neither sensor nor content
    assert found("seen", seen=(0.3, 0.001)) == "replay"
    assert found(seen=(0.3, 0.001), layer1=(0.5, 0.001)) == "content"
    assert found(seen=(0.9, 0.9), contrast=(0.5, 0.001)) == "sensor"  # fewer of them than normal


def test_where_no_signal_is_sure_the_cause_of_the_alarm_decides() -> None:
    found = moved_signals(LAYOUT, window(images=12, ood=(0.2, 0.001)))
    assert all(m.bound == 0 for m in found)
    for cause, kind in (("layer1", "content"), ("contrast", "sensor")):
        moved = moved_signals(LAYOUT, window(images=12, ood=(0.2, 0.001)), [cause])
        assert [m.signal for m in moved] == [cause]
        assert triage(moved, [cause]) == kind
        assert triage(moved_signals(LAYOUT, buckets.empty(LAYOUT), [cause]), [cause]) == kind


def test_the_signal_that_raised_the_alert_is_named_however_many_others_moved_more() -> None:
    counts = window(ood=(0.5, 0.001), layer1=(0.5, 0.001), contrast=(0.5, 0.001))
    assert {m.signal for m in moved_signals(LAYOUT, counts, ["sharpness"], limit=2)} >= {"sharpness"}


def test_the_verdict_on_the_sensor_needs_a_sure_signal() -> None:
    unsure = MovedSignal("contrast", False, 0.3, 0.0, "low", (0,) * 9)
    sure = MovedSignal("ood", True, 0.2, 0.1, "low", (0,) * 9)
    assert triage([sure, unsure]) == "content"
