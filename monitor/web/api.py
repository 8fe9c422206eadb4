"""The JSON API under /api/v1: what the pages show, for scripts. Each function here is one endpoint.

The signature of an endpoint also describes it in the OpenAPI document (`monitor.web.openapi`): its return type is the
answer, and a third argument is the JSON body.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, get_type_hints

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from monitor.core.feedback import as_fields
from monitor.fleet.answers import Answer
from monitor.fleet.feedback import read_feedback
from monitor.fleet.stream_view import SPANS_MS, Asked, view_stream
from monitor.web import feedback, silencing
from monitor.web.answers import (
    AlertsJson,
    DependenceJson,
    FeedbackJson,
    FeedbackListJson,
    HealthJson,
    ProfilesJson,
    SilenceJson,
    SilencesJson,
    StreamsJson,
    StreamViewJson,
)
from monitor.web.feedback import NewFeedback
from monitor.web.guard import from_our_pages
from monitor.web.silencing import NewSilence, RequestError, read_body
from monitor.web.site import Site

Run: TypeAlias = Callable[..., Answer | None]
"""run(site, request), or run(site, request, body)."""


@dataclass(frozen=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    """As Starlette routes it, below /api/v1."""
    summary: str
    run: Run
    answer: type[Answer] | None
    body: type[NewSilence] | type[NewFeedback] | None
    """Of its JSON body."""
    paged: bool
    """Whether it takes `limit` and `after`."""

    @property
    def writes(self) -> bool:
        """Whether it changes the state."""
        return self.method != "GET"


ENDPOINTS: list[Endpoint] = []


def _endpoint(method: str, path: str, summary: str, *, paged: bool = False) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        types = get_type_hints(run)
        answer = types["return"] if issubclass(types["return"], Answer) else None
        body = next((model for model in (NewSilence, NewFeedback) if model in types.values()), None)
        ENDPOINTS.append(Endpoint(method, path, summary, run, answer, body, paged))
        return run

    return register


# ------------------------------------------------------------------------------------------------ endpoints


@_endpoint("GET", "/streams", "Every stream, or a page of them: counts and state", paged=True)
def _streams(site: Site, request: Request) -> StreamsJson:
    asked, after = request.query_params.get("limit", ""), request.query_params.get("after")
    if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 10 and int(asked)):
        raise RequestError("limit: a number of streams, at least 1", 422)
    snapshot = site.overview.snapshot()
    names = list(snapshot.streams)
    first = 0 if after is None else bisect_right(names, after)
    page = names[first : first + int(asked)] if asked else names[first:]
    return StreamsJson(
        watermark=snapshot.watermark_ms,
        streams={name: snapshot.streams[name] for name in page},
        total=len(names),
        next=page[-1] if page and page[-1] != names[-1] else None,
    )


@_endpoint("GET", "/streams/{name:path}", "One stream: time line, what moved, most unusual images")
def _stream(site: Site, request: Request) -> StreamViewJson:
    name = request.query_params.get("name", "") or request.path_params["name"]
    snapshot = site.overview.snapshot()
    if name not in snapshot.streams:
        raise RequestError("no such stream", 404)
    span = request.query_params.get("span", "")
    if span and span not in SPANS_MS:
        raise RequestError(f"span: one of {', '.join(SPANS_MS)}", 422)
    view = view_stream(site.store, snapshot, name, Asked(request.query_params.get("alert", ""), span, rules=site.rules))
    return StreamViewJson(
        **dict(snapshot.streams[name]),
        stream=name,
        known_alerts=site.alerts(snapshot, name),
        evidence=view.evidence,
        exemplars=list(view.exemplars),
        typical=list(view.typical),
        images_by_condition=dict(view.by_condition),
        dependence=DependenceJson.model_validate(view.spread) if view.spread else None,
        mix=view.mix,
        warming=list(view.warming),
        step_s=view.step_ms / 1000,
        history=list(view.points),
    )


@_endpoint("GET", "/alerts", "Alerts under way, and those of the last week")
def _alerts(site: Site, _: Request) -> AlertsJson:
    return AlertsJson(alerts=site.alerts(site.overview.snapshot()))


@_endpoint("GET", "/silences", "All silences, ended ones of the last week too")
def _silences(site: Site, _: Request) -> SilencesJson:
    return SilencesJson(silences=site.silences(site.overview.snapshot()))


@_endpoint("POST", "/silences", "Create a silence, in force at once")
def _add_silence(site: Site, _: Request, wanted: NewSilence) -> SilenceJson:
    silence = silencing.keep(site.store, wanted)
    site.overview.changed()
    return SilenceJson.of(silence, silence.starts_ms)


@_endpoint("DELETE", "/silences/{id}", "End a silence")
def _expire_silence(site: Site, request: Request) -> None:
    if not silencing.expire(site.store, request.path_params["id"]):
        raise RequestError("no such silence", 404)
    site.overview.changed()


@_endpoint("GET", "/feedback", "All that people said of alerts and their images, in the order in which they said it")
def _feedback(site: Site, _: Request) -> FeedbackListJson:
    answers = [FeedbackJson.model_validate(as_fields(answer)) for answer in read_feedback(site.store)]
    return FeedbackListJson(feedback=answers)


@_endpoint("POST", "/feedback", "Say of an alert, or of one of its images, what it was")
def _give_feedback(site: Site, request: Request, wanted: NewFeedback) -> FeedbackJson:
    answer = feedback.keep(site, request, wanted)
    site.overview.changed()
    return FeedbackJson.model_validate(as_fields(answer))


@_endpoint("GET", "/profile", "The profiles that images are compared with")
def _profile(site: Site, _: Request) -> ProfilesJson:
    return site.profiles(site.overview.snapshot())


@_endpoint("GET", "/health", "Health of the monitor itself")
def _health(site: Site, _: Request) -> HealthJson:
    return site.health()


# ------------------------------------------------------------------------------------------------ answering


def routes(site: Site) -> list[BaseRoute]:
    """All endpoints, below /api/v1; they raise RequestError and StoreError."""
    return [Route(e.path, partial(_answer, site, e), methods=[e.method]) for e in ENDPOINTS]


async def _answer(site: Site, endpoint: Endpoint, request: Request) -> Response:
    if endpoint.writes and not site.credentials.configured:
        raise RequestError("nothing can be written without a token or password: set web.token", 403)
    if endpoint.writes and not from_our_pages(request.headers):
        raise RequestError("sent by another site", 403)
    body = [silencing.parsed(endpoint.body, await _json_body(request))] if endpoint.body else []
    found = await run_in_threadpool(endpoint.run, site, request, *body)
    if found is None:
        return Response(status_code=204)
    return Response(found.model_dump_json(), 201 if endpoint.writes else 200, media_type="application/json")


async def _json_body(request: Request) -> bytes:
    # a form of another site cannot have this type unless the browser asks first
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("content-type must be application/json", 415)
    return await read_body(request)
