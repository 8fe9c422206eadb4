"""When the demo passes, and what it says when it does not."""

from __future__ import annotations

from monitor.demo.story import CALM_S, DRIFT, DRIFT_S, FAULTS, RATE, WINDOW_S, AlertLedger
from tests.demo.documents import START_MS, episode


def ledger_of(*episodes: tuple[str, int], resolved: bool = True, triage: str | None = None) -> AlertLedger:
    """Alerts of every rule that must see the fault of the stream, told as what it is unless `triage` is given."""
    ledger = AlertLedger(START_MS)
    for stream, since_s in episodes:
        fault = FAULTS.get(stream)
        for rule in fault.rules if fault else (RATE,):
            firing, calm = episode(stream, since_s, rule)
            firing["data"]["triage"] = triage or (fault.triage if fault else "sensor")
            ledger.note(firing)
            if resolved:
                ledger.note(calm)
    return ledger


def all_of(begins_s: int = CALM_S, without: str = "") -> list[tuple[str, int]]:
    return [(stream, begins_s) for stream in FAULTS if stream != without]


def test_every_drift_alerted_on_and_resolved_is_all_that_is_asked() -> None:
    ledger = ledger_of(*all_of(CALM_S + 20))
    assert not ledger.missing()
    assert ledger.problems() == []


def test_an_alert_that_does_not_resolve_is_named() -> None:
    ledger = ledger_of(*all_of(), resolved=False)
    assert ledger.missing()
    assert ledger.problems() == [
        f"missing: {rule} on {stream} did not resolve"
        for stream, rules in (("line-2", (DRIFT, RATE)), ("line-3", (DRIFT, RATE)), ("line-4", (DRIFT,)))
        for rule in rules
    ]


def test_a_drift_without_an_alert_is_named() -> None:
    ledger = ledger_of(*all_of(without="line-4"))
    assert ledger.missing()
    assert ledger.problems() == ["missing: drift did not alert on line-4 (missing part)"]


def test_a_drift_that_is_told_as_something_else_is_named() -> None:
    ledger = ledger_of(*all_of(without="line-4"))
    ledger.episodes |= ledger_of(("line-4", CALM_S), triage="content").episodes
    assert ledger.problems() == ["told wrongly: drift on line-4 as content, not as mix"]


def test_an_alert_on_the_line_that_stayed_normal_is_a_false_alarm() -> None:
    ledger = ledger_of(*all_of(), ("line-1", CALM_S + 20))
    assert ledger.problems() == [f"false alarm: rate on line-1 at {CALM_S + 20} s"]


def test_an_alert_before_the_drift_or_long_after_it_is_a_false_alarm() -> None:
    after_s = CALM_S + DRIFT_S + WINDOW_S
    ledger = ledger_of(*all_of(), ("line-4", CALM_S - 10), ("line-4", after_s))
    assert ledger.problems() == [f"false alarm: drift on line-4 at {at_s} s" for at_s in (CALM_S - 10, after_s)]


def test_a_document_that_arrives_twice_changes_nothing() -> None:
    ledger = ledger_of(*all_of())
    before = dict(ledger.episodes)
    ledger.note(episode("line-2", CALM_S)[0])
    assert ledger.episodes == before
