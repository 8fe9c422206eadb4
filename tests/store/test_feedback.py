"""Pictures are kept with what was said of them, within bounds, and go with it; on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydantic import SecretStr

from monitor.core.feedback import About, Feedback, FeedbackKind, Picture
from monitor.core.types import Exemplar
from monitor.store import Store, StoreError, connection, open_store
from monitor.store.feedback import FEEDBACK_TTL_S, FeedbackStore
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

START_MS = 1_760_000_400_000
SMALL, LARGE = b"s" * 100, b"L" * 1000


def image(i: int, thumbnail: bytes = SMALL) -> Exemplar:
    return Exemplar(f"images/0/{i}", "cam-1", START_MS + i, START_MS, 0.001 * (i + 1), (), thumbnail, "fp")


@pytest.fixture
def store(redis_server: PrivateRedis, request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), request.node.name)
    yield opened
    opened.close()


@pytest.fixture
def feedback(store: Store) -> FeedbackStore:
    """Pictures of three alerts, of each two large ones and some thumbnails."""
    return FeedbackStore(store.feedback._keys, 2 * len(LARGE) + 700, 3)


def say(feedback: FeedbackStore, kind: FeedbackKind, about: str = "", shown: tuple[int, ...] = (0, 1, 2)) -> None:
    """An answer about alert a, or an image of it, with the images of these numbers; all have a large picture."""
    said = About("a", "drift", "cam-1", START_MS, START_MS + 1, about)
    feedback.add(Feedback("1", said, kind, "ops", "", START_MS), [(image(i), LARGE) for i in shown])


def kept(feedback: FeedbackStore, about: str = "", alert: str = "a") -> list[tuple[str, bytes]]:
    return [(picture.image, picture.jpeg) for picture in feedback.pictures(alert, about)]


def held(store: Store) -> dict[bytes, bytes]:
    """All that is kept of feedback."""
    client = store._connection.client
    return {key: client.dump(key) for key in client.scan_iter(f"*{store.feedback._keys.key('feedback')[4:]}*")}


def test_a_picture_comes_back_with_what_is_needed_to_list_it(feedback: FeedbackStore) -> None:
    said = Feedback("1", About("a", "drift", "cam-1", START_MS, START_MS + 1, image(1).id), "fault", "", "", START_MS)
    feedback.add(said, [(image(1), LARGE)])
    assert feedback.pictures("a", image(1).id) == [
        Picture(image(1).name, image(1).id, START_MS + 1, "cam-1", LARGE, large=True)
    ]
    feedback.add(replace(said, about=replace(said.about, image="none is kept")), [(image(2, b""), b"")])
    assert feedback.pictures("a", "none is kept") == []


def test_what_does_not_fit_is_kept_as_a_thumbnail_the_least_unusual_first(feedback: FeedbackStore) -> None:
    say(feedback, "fault", shown=tuple(range(9)))
    assert kept(feedback) == [(image(i).id, LARGE if i < 2 else SMALL) for i in range(6)]
    key = feedback._keys.key("feedback-pictures", "a")
    pictures = [v for k, v in feedback._keys.connection.read("HGETALL", key).items() if not k.startswith(b"of ")]
    assert 2 * len(LARGE) < sum(map(len, pictures)) <= 2 * len(LARGE) + 700
    say(feedback, "fault", shown=(7, 8))  # those of the answer before make room
    assert kept(feedback) == [(image(7).id, LARGE), (image(8).id, LARGE)]


def test_a_picture_is_kept_once_and_until_nothing_is_said_of_it(feedback: FeedbackStore, store: Store) -> None:
    say(feedback, "fault")
    whole, size = kept(feedback), len(held(store)[feedback._keys.key("feedback-pictures", "a").encode()])
    say(feedback, "expected", image(1).id, (1,))
    assert len(held(store)[feedback._keys.key("feedback-pictures", "a").encode()]) < size + len(SMALL)
    say(feedback, "withdrawn")
    assert kept(feedback) == []
    assert kept(feedback, image(1).id) == [whole[1]]
    say(feedback, "fault", shown=(1, 2))
    say(feedback, "withdrawn", image(1).id)
    assert [name for name, _ in kept(feedback)] == [image(1).id, image(2).id]
    say(feedback, "withdrawn")
    assert not [key for key in held(store) if b"pictures" in key]


def test_a_large_picture_that_came_later_takes_the_place_of_the_thumbnail_and_never_the_reverse(
    feedback: FeedbackStore,
) -> None:
    said = Feedback("1", About("a", "drift", "cam-1", START_MS, START_MS + 1), "fault", "ops", "", START_MS)
    for large, found in ((b"", SMALL), (LARGE, LARGE), (b"", LARGE)):
        feedback.add(said, [(image(0), large)])
        assert kept(feedback) == [(image(0).id, found)]
    feedback.add(said)  # the evidence has expired
    assert kept(feedback) == [(image(0).id, LARGE)]


def test_the_alerts_answered_last_have_pictures_and_all_have_their_answers(
    feedback: FeedbackStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for alert in ("a", "b", "c", "a"):
        said = Feedback("1", About(alert, "drift", "cam-1", START_MS, START_MS + 1), "fault", "ops", "", START_MS)
        feedback.add(said, [(image(0), LARGE)])
    before = held(store)
    fourth = replace(said, about=replace(said.about, alert_id="d"))
    with monkeypatch.context() as patch:
        patch.setattr(connection, "KEY_ROUNDS", 1)  # it ends where it asked for the key of the alert that makes room
        with pytest.raises(StoreError, match="still needs"):
            feedback.add(fourth, [(image(0), LARGE)])
    assert held(store) == before
    feedback.add(fourth, [(image(0), LARGE)])
    assert {alert: len(kept(feedback, alert=alert)) for alert in "abcd"} == {"a": 1, "b": 0, "c": 1, "d": 1}
    assert len(feedback.all()) == 4
    assert {key for key in held(store) if b"pictures:b" in key} == set()


def test_pictures_expire_with_the_answers(feedback: FeedbackStore, store: Store) -> None:
    say(feedback, "fault")
    assert len(held(store)) == 4
    assert all(FEEDBACK_TTL_S - 60 < store._connection.client.ttl(key) <= FEEDBACK_TTL_S for key in held(store))
