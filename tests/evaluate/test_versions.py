"""An alert across the change to another version of the profile, on a real Redis."""

from __future__ import annotations

import pytest

from monitor.core.types import AlertPhase
from monitor.fleet.overview import Overview
from monitor.fleet.stream_view import Asked, view_stream
from monitor.fleet.warming import warming_of_alert
from monitor.rules.stream_health import RejectedRule
from monitor.store.private_server import PrivateRedis
from tests.evaluate.test_conditions import DRIFT, LOG, PER_BUCKET, RATE, Camera

REJECTED = RejectedRule(name="rejected", kind="rejected", min_images=20)
FIRING, RESOLVED = AlertPhase.FIRING, AlertPhase.RESOLVED
NEEDED = DRIFT.settled_images // PER_BUCKET
"""Buckets."""


def firing(redis_url: str, monitor: str) -> Camera:
    """A camera with a fault that version 1 of its profile has raised alerts about."""
    camera = Camera(redis_url, monitor, DRIFT, RATE)
    camera.send(20, plain=0.0)
    camera.send(10, plain=0.6)
    assert [camera.alert(rule).phase for rule in ("drift", "rate")] == [FIRING, FIRING]
    return camera


def test_an_alert_ends_by_the_next_version_only_after_enough_images(redis_server: PrivateRedis) -> None:
    camera = firing(redis_server.url, "versions-ends")
    camera.send(1, plain=0.6, next=0.0)  # the bucket in which the version changes
    camera.send(1, next=0.0)
    assert camera.alert("rate").phase is FIRING
    waits = warming_of_alert(camera.alert("drift"), DRIFT)
    assert waits is not None
    assert (waits.profile, waits.images, waits.needed) == ("fp-next", PER_BUCKET, DRIFT.settled_images)
    snapshot = Overview(camera.store, 0).snapshot()
    found = view_stream(camera.store, snapshot, "cam", Asked(rules=(DRIFT, RATE))).warming
    assert [(w.rule, w.profile, w.images, w.needed) for w in found] == [("drift", "fp-next", 2 * PER_BUCKET, 50)]
    camera.start()  # another process takes the lease
    camera.send(NEEDED - 3, next=0.0)
    alert = camera.alert("drift")
    assert (alert.phase, alert.fresh) == (FIRING, (("fp-next", (NEEDED - 2) * PER_BUCKET),))
    assert camera.alert("rate").phase is RESOLVED  # its window was full after two buckets, and calm for 30 s
    camera.send(2, next=0.0)
    assert warming_of_alert(camera.alert("drift"), DRIFT) is None
    assert (camera.alert("drift").phase, camera.alert("drift").fresh) == (RESOLVED, ())
    for rule in ("drift", "rate"):
        fired, resolved = camera.documents(rule)
        assert (fired["phase"], resolved["phase"]) == ("firing", "resolved")
        assert fired["alert_id"] == resolved["alert_id"]
    camera.store.close()


def test_a_fault_that_the_next_version_sees_too_stays_the_same_alert_until_it_is_over(
    redis_server: PrivateRedis,
) -> None:
    camera = firing(redis_server.url, "versions-goes-on")
    camera.send(NEEDED + 10, next=0.6)
    assert camera.alert("drift").breached_by == ("fp", "fp-next")
    assert len(camera.documents("drift")) == len(camera.documents("rate")) == 1
    camera.send(60, next=0.0)
    for rule in ("drift", "rate"):
        fired, resolved = camera.documents(rule)
        assert (fired["alert_id"], resolved["phase"]) == (resolved["alert_id"], "resolved")
    camera.store.close()


def test_a_roll_back_goes_on_where_the_version_before_stood(redis_server: PrivateRedis) -> None:
    camera = firing(redis_server.url, "versions-back")
    camera.send(20, next=0.0)
    camera.send(3, plain=0.6)
    assert (camera.alert("drift").phase, len(camera.documents("drift"))) == (FIRING, 1)
    camera.send(60, plain=0.0)
    fired, resolved = camera.documents("drift")
    assert (fired["alert_id"], resolved["phase"]) == (resolved["alert_id"], "resolved")
    # an old version that saw nothing before has as little to say at first as a new one
    camera.send(10, next=0.6)
    assert camera.alert("drift").phase is FIRING
    camera.send(NEEDED // 2, plain=0.0)
    assert camera.alert("drift").phase is FIRING
    camera.store.close()


@pytest.mark.parametrize("shadow", [0.6, 0.0])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_version_counted_in_shadow_is_in_its_window_when_it_is_made_active(
    redis_server: PrivateRedis, shadow: float, restarted: bool
) -> None:
    camera = Camera(redis_server.url, f"versions-shadow-{shadow}-{restarted}", DRIFT, RATE, REJECTED)
    camera.send(10, plain=0.0, shadow=shadow)
    assert not camera.store.evaluation.alerts()  # no rule judges it
    totals = camera.store.counts.totals([LOG])["cam"]
    assert totals.applied == 10 * PER_BUCKET
    if restarted:
        camera.start()
    camera.send(1, next=0.6)  # of 20 images alone nothing could be said
    assert (("rate", "cam") in camera.store.evaluation.alerts()) is (shadow > 0)
    if shadow:
        (fired,) = camera.documents("rate")
        assert fired["images"] == 6 * PER_BUCKET
    camera.store.close()
