"""When the demo passes, and what it says when it does not."""

from __future__ import annotations

from monitor.demo.story import CALM_S, DRIFT_S, WINDOW_S, AlertLedger
from tests.demo.documents import START_MS, episode


def ledger_of(*episodes: tuple[str, int], resolved: bool = True) -> AlertLedger:
    ledger = AlertLedger(("rate",), START_MS)
    for stream, since_s in episodes:
        firing, calm = episode(stream, since_s)
        ledger.note(firing)
        if resolved:
            ledger.note(calm)
    return ledger


def test_both_drifts_alerted_and_resolved_is_all_that_is_asked() -> None:
    ledger = ledger_of(("line-2", CALM_S + 20), ("line-3", CALM_S + 40))
    assert not ledger.missing()
    assert ledger.problems() == []


def test_an_alert_that_does_not_resolve_is_named() -> None:
    ledger = ledger_of(("line-2", CALM_S), ("line-3", CALM_S), resolved=False)
    assert ledger.missing()
    assert ledger.problems() == [
        "missing: rate on line-2 did not resolve",
        "missing: rate on line-3 did not resolve",
    ]


def test_a_drift_without_an_alert_is_named() -> None:
    ledger = ledger_of(("line-2", CALM_S + 20))
    assert ledger.missing()
    assert ledger.problems() == ["missing: rate did not alert on line-3 (foreign part)"]


def test_an_alert_on_the_line_that_stayed_normal_is_a_false_alarm() -> None:
    ledger = ledger_of(("line-2", CALM_S), ("line-3", CALM_S), ("line-1", CALM_S + 20))
    assert ledger.problems() == [f"false alarm: rate on line-1 at {CALM_S + 20} s"]


def test_an_alert_before_the_drift_or_long_after_it_is_a_false_alarm() -> None:
    after_s = CALM_S + DRIFT_S + WINDOW_S
    ledger = ledger_of(("line-2", CALM_S - 10), ("line-2", CALM_S + 30), ("line-3", CALM_S), ("line-3", after_s))
    assert ledger.problems() == [
        f"false alarm: rate on line-2 at {CALM_S - 10} s",
        f"false alarm: rate on line-3 at {after_s} s",
    ]


def test_a_document_that_arrives_twice_changes_nothing() -> None:
    ledger = ledger_of(("line-2", CALM_S), ("line-3", CALM_S))
    before = dict(ledger.episodes)
    ledger.note(episode("line-2", CALM_S)[0])
    assert ledger.episodes == before
