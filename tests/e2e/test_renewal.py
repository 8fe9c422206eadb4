"""A profile is renewed from what a monitor watched: a real daemon, Redis and store of profiles, and a poisoned hour."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from detectors.profile.profile import Profile
from detectors.versions.journal import State
from detectors.versions.store import ProfileStore
from monitor.cli.renewal.due import take_step
from monitor.cli.renewal.renew import renew
from monitor.cli.renewal.selection import Request, Selection, Wanted, read_calm
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.core.buckets import counted_under
from monitor.core.calm import HOUR_MS
from monitor.core.shadow import shadow_of
from monitor.fleet.feedback import Wanted as Said
from monitor.fleet.feedback import give_feedback
from monitor.fleet.overview import Overview
from monitor.fleet.renewal import read_renewals
from monitor.fleet.stream_view import Asked, view_stream
from monitor.sources import open_producer
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.shards import whole_state
from monitor.telemetry.clock import wall_ms
from tests.e2e.running import config_file, wait_for
from tests.faults.rig import Daemon, Hook, Zygote
from tests.pictures import encoded, pictures

pytestmark = pytest.mark.story

START_MS = 1_780_000_000_000 // HOUR_MS * HOUR_MS
HOURS, AN_HOUR = 16, 24
"""Of the story, and images of each stream in each."""
POISONED = 7
"""The hour in which half of the images of `line-1` show a fault."""
STREAMS = ("line-1", "line-2")


@dataclass
class Watched:
    """A monitor that has read the whole story and is still running."""

    store: Store
    settings: Config
    config: Path
    versions: ProfileStore
    hook: Hook
    zygote: Zygote
    send: Callable[[Iterable[tuple[int, str, bytes]]], None]
    """Writes (event time in ms, stream, image)."""
    poisoned: set[str]
    """Ids of the images that show the fault."""


def quiet(_step: str, _share: float) -> None:
    """Shows no progress."""


@pytest.fixture(scope="module")
def watched(
    redis_server: PrivateRedis, zygote: Zygote, profile_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    plan = {"every": "7d", "shadow": "1h", "calibrate_only": True, "max_shift": 0.1}
    with watching(redis_server, zygote, profile_folder, tmp_path_factory.mktemp("renewal"), plan) as found:
        yield found


@contextmanager
def watching(
    redis: PrivateRedis, zygote: Zygote, profile_folder: Path, folder: Path, plan: dict[str, Any]
) -> Iterator[Watched]:
    """A monitor that has read the whole story; `plan` is its section `renewal`."""
    topic = f"renewal-{folder.name}"
    versions = ProfileStore(str(folder / "store"))
    versions.add(profile_folder)
    versions.promote("1")
    hook = Hook()
    settings: dict[str, Any] = {
        "monitor": topic,
        "source": "redis-stream",
        "redis": {"url": redis.url},
        "redis_stream": {"topics": [topic], "partitions": 1, "dead_letter_topic": f"{topic}.dead"},
        "scoring": {"profile": versions.root, "device": "cpu", "shadow": [{"version": f"{versions.root}@shadow"}]},
        "decoding": {"workers": 1},
        "buckets": {"seconds": 150, "idle_timeout_s": 1},
        "rules": [
            {"name": "unusual", "kind": "rate", "level": 0.05, "window_s": 1800, "threshold": 0.2, "min_images": 10}
        ],
        "renewal": plan,
        "receivers": [{"name": "hook", "type": "webhook", "url": hook.url}],
    }
    path = config_file(folder, settings)
    config = load_config(path)
    poisoned = set[str]()
    normal = [encoded(image) for _, image in pictures(90, HOURS * AN_HOUR * len(STREAMS))]
    faulty = [encoded(image) for _, image in pictures(91, AN_HOUR, stripes=True)]

    def story() -> Iterator[tuple[int, str, bytes]]:
        for i, image in enumerate(normal):
            hour, stream = i // (AN_HOUR * len(STREAMS)), STREAMS[i % len(STREAMS)]
            is_fault = hour == POISONED and stream == STREAMS[0] and i % 4 < 2
            if is_fault:
                poisoned.add(f"{topic}/0/{i}")
            yield START_MS + HOUR_MS * i // (AN_HOUR * len(STREAMS)), stream, faulty[i % AN_HOUR] if is_fault else image

    daemon = Daemon(zygote, path, path.with_suffix(".log"))
    store = open_store(config.redis, topic)
    with closing(open_producer(config.source_settings())) as producer, closing(store):

        def send(images: Iterable[tuple[int, str, bytes]]) -> None:
            for at_ms, stream, image in images:
                producer.send(topic, image, stream.encode(), (), at_ms)
            producer.flush()

        try:
            send(story())
            last_ms = START_MS + HOURS * HOUR_MS - 600_000
            wait_for("all to be judged", lambda: daemon.check() or (decided_ms(store) or 0) >= last_ms)
            wait_for("the end of the alert", lambda: "alert.resolved" in {d["type"] for d in hook.accepted})
            yield Watched(store, config, path, versions, hook, zygote, send, poisoned)
        finally:
            daemon.kill()
            hook.close()


def decided_ms(store: Store) -> int | None:
    return whole_state(store.shards.states()).bucket_ms


def chosen(watched: Watched, **changed: Any) -> Selection:
    wanted = Wanted(**{"streams": "*", "since_ms": START_MS, "margin_ms": HOUR_MS, "most": 20_000, **changed})
    profile = Profile.load(watched.versions.root, "cpu")
    calm = read_calm(watched.store, watched.settings, wanted)
    selection = Selection(watched.settings, wanted, calm, profile, watched.versions.root)
    selection.choose(quiet)
    return selection


def offsets(selection: Selection) -> set[int]:
    return {place[2] for place in selection.chosen}


def hours_of(selection: Selection, stream: str) -> dict[int, int]:
    """{hour of the story: images}"""
    found: dict[int, int] = {}
    for offset in offsets(selection):
        if STREAMS[offset % len(STREAMS)] == stream:
            hour = offset // (AN_HOUR * len(STREAMS))
            found[hour] = found.get(hour, 0) + 1
    return found


def test_a_poisoned_hour_never_enters_nor_the_time_around_it(watched: Watched) -> None:
    selection = chosen(watched)
    names = {name for name, _ in selection.images()}
    assert len(names) == selection.count() == len(selection.chosen) > 300
    assert len(watched.poisoned) >= AN_HOUR // 2
    assert not names & watched.poisoned
    disturbed, other = (hours_of(selection, stream) for stream in STREAMS)
    assert POISONED not in disturbed
    assert sum(disturbed.get(hour, 0) for hour in (POISONED - 1, POISONED)) < AN_HOUR  # nor the hour before its onset
    assert sum(disturbed.get(hour, 0) for hour in (POISONED, POISONED + 1)) < AN_HOUR  # nor after its end
    assert other[POISONED] == AN_HOUR  # it was calm on the other line
    assert max(other) == HOURS - 2  # the newest hour is too new: a fault in it may not have been noticed yet
    assert selection.left_out["during an alert, or near one"] >= 2 * AN_HOUR


def test_every_hour_of_every_stream_gives_as_many_images(watched: Watched) -> None:
    most = 120
    selection = chosen(watched, most=most)
    given = [count for stream in STREAMS for count in hours_of(selection, stream).values()]
    allowed = max(given)
    available = [c for stream in STREAMS for c in hours_of(chosen(watched), stream).values()]
    assert sorted(given) == sorted(min(count, allowed) for count in available)  # fewer only where there are fewer
    assert sum(given) <= most < sum(min(count, allowed + 1) for count in available)
    assert offsets(selection) == offsets(chosen(watched, most=most))  # the same ones in every pass


def test_what_people_call_expected_joins_and_what_they_call_a_fault_never_does(watched: Watched) -> None:
    overview = Overview(watched.store, watched.settings.buckets.lateness_ms)
    (alert,) = [a for a in overview.snapshot().alerts if a.stream == STREAMS[0]]
    give_feedback(watched.store, overview.snapshot(), Said(alert.id, "expected"))
    assert POISONED not in hours_of(chosen(watched), STREAMS[0])  # only where it is asked for
    selection = chosen(watched, expected=True)
    assert {name for name, _ in selection.images()} >= watched.poisoned
    view = view_stream(watched.store, overview.snapshot(), STREAMS[0], Asked(alert.id))
    shown = next(image.id for image in view.exemplars if image.id in watched.poisoned)
    give_feedback(watched.store, overview.snapshot(), Said(alert.id, "fault", shown))
    assert {name for name, _ in chosen(watched, expected=True).images()} >= watched.poisoned - {shown}
    assert shown not in {name for name, _ in chosen(watched, expected=True).images()}
    for image in ("", shown):
        give_feedback(watched.store, overview.snapshot(), Said(alert.id, "withdrawn", image))


def test_a_candidate_is_added_with_its_lineage_and_a_shift_is_refused_unless_a_person_accepts_it(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("profile", "renew", watched.versions.root, "--json", "-c", str(watched.config), "--max-images", "400")
    done = watched.zygote.layerwatch(*common)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["outcome"], found["version"], found["from_version"], found["first_version"]) == ("candidate", 2, 1, 1)
    assert found["moved"] <= found["limit"] == 0.03
    lineage = watched.versions.manifest(watched.versions.find("2"))["renewal"]
    first = watched.versions.find("1")
    assert (lineage["from"], lineage["first"], lineage["accepted"]) == (first.content, first.content, "")
    assert lineage["hours"] == found["hours"] >= 12
    assert [renewal.version for renewal in read_renewals(watched.store)] == [2]

    overview = Overview(watched.store, watched.settings.buckets.lateness_ms)
    (alert,) = [a for a in overview.snapshot().alerts if a.stream == STREAMS[0]]
    give_feedback(watched.store, overview.snapshot(), Said(alert.id, "expected"))
    request = Request(
        watched.versions.root, "line-1", 72_000.0, calibrate_only=True, expected=True, max_shift=0.02, reason="a test"
    )
    words = ("--from-stream", "line-1", "--since", "20h", "--calibrate-only", "--expected", "--max-shift", "2%")
    shown = watched.config.parent / "moved"
    done = watched.zygote.layerwatch(*common[:3], *words, "--pictures", str(shown), *common[4:6])
    (refused,) = read_renewals(watched.store)
    assert (done.returncode, refused.outcome, refused.version) == (1, "refused", None), done.stderr
    assert f"refused: normal has moved by {refused.moved:.1%}, which is more than 2.0%" in done.stdout
    assert f"{refused.images} images of {refused.hours} calm hours of 1 stream\n" in done.stdout
    assert refused.moved > 0.02
    listed = [json.loads(line) for line in (shown / "images.jsonl").read_text().splitlines()]
    assert [line["id"] for line in listed] == [image.id for image in refused.pictures]
    assert all((shown / line["file"]).is_file() for line in listed)
    assert len(watched.versions.journal().versions) == 2
    moved = {image.id for image in refused.pictures}
    assert len(moved & watched.poisoned) > len(moved) / 2  # the pictures are those that moved
    accepted = renew(watched.store, watched.settings, replace(request, accept="new print"), quiet)
    assert (accepted.outcome, accepted.version, accepted.reason) == ("accepted", 3, "new print")
    # a renewal of it is compared with it, no longer with the first
    again = renew(
        watched.store, watched.settings, replace(request, profile=f"{watched.versions.root}@3", most=300), quiet
    )
    assert (again.outcome, again.first_version) == ("candidate", 3)
    give_feedback(watched.store, overview.snapshot(), Said(alert.id, "withdrawn"))


def step(watched: Watched, now_ms: int, **plan: Any) -> str:
    """One step of the schedule at that time, with these changes of the section `renewal`."""
    renewal = watched.settings.renewal.model_copy(update=plan)
    settings = watched.settings.model_copy(update={"renewal": renewal})
    return take_step(watched.store, settings, quiet, lambda: now_ms)


def asked(watched: Watched) -> list[tuple[str, str]]:
    """(phase, summary) of every alert about renewals."""
    found = [d["data"] for d in watched.hook.accepted if d["data"]["rule"] == "layerwatch-renewal"]
    return [(data["phase"], data["summary"]) for data in found]


def test_a_schedule_tries_a_candidate_in_shadow_and_asks_a_person_or_promotes_it(watched: Watched) -> None:
    """The newest version was renewed by a person just now: the schedule takes it from there."""
    versions, long_after = watched.versions, 2**45
    number = len(versions.journal().versions)
    assert step(watched, 0) == f"version {number} is in shadow"
    assert versions.find(str(number)).state is State.SHADOW
    assert "another" in step(watched, 0)
    assert "it has scored" in step(watched, long_after)  # too little is known of it
    assert asked(watched) == []
    shadow = shadow_of(counted_under(versions.find("shadow").fingerprint))
    wait_for("the shadow", lambda: shadow in watched.store.catalog.shadows())
    later = [encoded(image) for _, image in pictures(92, 600)]
    watched.send((START_MS + HOURS * HOUR_MS + 6000 * i, STREAMS[i % 2], image) for i, image in enumerate(later))
    wait_for("all images in shadow", lambda: "waits for a person" in step(watched, long_after))
    wait_for("the question", lambda: [phase for phase, _ in asked(watched)] == ["firing"])
    assert "was quiet in shadow" in asked(watched)[0][1]
    assert step(watched, long_after, then="promote") == f"version {number} is active"
    assert versions.find().number == number
    wait_for("its end", lambda: [phase for phase, _ in asked(watched)] == ["firing", "resolved"])


def test_a_schedule_asks_what_is_left_to_a_person_and_goes_on_after_its_process_was_ended(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, before, now_ms = watched.versions, len(asked(watched)), wall_ms()

    def since() -> list[str]:
        return [phase for phase, _ in asked(watched)[before:]]

    assert step(watched, now_ms) == "no renewal is due"
    now_ms += 8 * 24 * HOUR_MS
    assert step(watched, now_ms, since=60.0).startswith("failed: images of calm times come from")
    wait_for("the failure", lambda: since() == ["firing"])
    assert read_renewals(watched.store)[0].outcome == "failed"
    # one whose process was ended, as if for its memory, is tried again after an hour
    now_ms = read_renewals(watched.store)[0].at + 8 * 24 * HOUR_MS
    with monkeypatch.context() as changed:
        changed.setattr("monitor.cli.renewal.renew.renew", interrupted)
        with pytest.raises(KeyboardInterrupt):
            step(watched, now_ms)
    assert step(watched, now_ms) == "no renewal is due"
    assert read_renewals(watched.store)[0].outcome == "began"
    assert step(watched, now_ms + HOUR_MS, since=60.0).startswith("failed")
    # each try ends the question before: of the failure, of the one that did not end
    wait_for("the questions", lambda: since() == ["firing", "resolved", "firing", "resolved", "firing"])
    assert ["did not end" in text for phase, text in asked(watched)[before:] if phase == "firing"] == [
        False,
        True,
        False,
    ]
    # one that dies after its candidate was added, before that was noted: the next step goes on with the candidate
    watched.store.renewals.remove(versions.root)  # its time is in the future here
    now_ms = wall_ms()
    with monkeypatch.context() as changed:
        changed.setattr("monitor.cli.renewal.renew.keep_renewal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            step(watched, now_ms, every=0.001)
    added = versions.journal().versions[-1]
    assert (added.state, read_renewals(watched.store)[0].outcome) == (State.CANDIDATE, "began")
    assert step(watched, now_ms) == f"version {added.number} is in shadow"
    wait_for("the end of the last question", lambda: since()[5:] == ["resolved"])
    versions.retire(str(added.number), "a test")
    assert step(watched, now_ms + 2 * HOUR_MS) == "no renewal is due"
    assert len(versions.journal().versions) == added.number


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_daemon_renews_on_its_own_and_promotes_what_is_quiet(
    redis_server: PrivateRedis, zygote: Zygote, profile_folder: Path, tmp_path: Path
) -> None:
    plan = {"every": "20s", "shadow": "5s", "then": "promote", "calibrate_only": True, "max_shift": 0.1}
    later = [encoded(image) for _, image in pictures(93, 600)]
    with watching(redis_server, zygote, profile_folder, tmp_path, plan) as watched:
        wait_for("a candidate in shadow", lambda: watched.versions.journal().shadow)
        shadow = shadow_of(counted_under(watched.versions.find("shadow").fingerprint))
        wait_for("the shadow", lambda: shadow in watched.store.catalog.shadows())
        watched.send((START_MS + HOURS * HOUR_MS + 6000 * i, STREAMS[i % 2], image) for i, image in enumerate(later))
        wait_for("its promotion", lambda: watched.versions.find().number >= 2)
        active = watched.versions.find()
        assert active.changes[-1].reason == "renewed on schedule; quiet in shadow"
        assert watched.versions.manifest(active)["renewal"]["from"] == watched.versions.find("1").content
