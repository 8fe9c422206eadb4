"""The JSON API under /api/v1: what the pages show, for scripts. Each function here is one endpoint.

The signature of an endpoint also describes it in the OpenAPI document (`monitor.web.openapi`): its return type is the
answer, and a third argument is the JSON body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import get_type_hints

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from monitor.store import StoreError
from monitor.web import silencing
from monitor.web.answers import AlertJson, AlertsJson, Answer, ProfilesJson, SilenceJson, SilencesJson
from monitor.web.guard import from_our_pages
from monitor.web.health import HealthJson, read_health
from monitor.web.silencing import NewSilence, RequestError, read_body
from monitor.web.site import Site, now_ms
from monitor.web.stream_answers import StreamsJson, StreamViewJson


@dataclass(frozen=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    """As Starlette routes it, below /api/v1."""
    summary: str
    run: Callable[..., Answer | None]
    """run(site, request), or run(site, request, body)."""
    may_miss: bool
    """Whether it answers 404 where there is nothing of that name."""

    @property
    def writes(self) -> bool:
        """Whether it changes the state."""
        return self.method != "GET"

    @property
    def answer(self) -> type[Answer] | None:
        """Type of the answer."""
        returned: type[Answer] = get_type_hints(self.run)["return"]
        return returned if isinstance(returned, type) and issubclass(returned, Answer) else None

    @property
    def takes_body(self) -> bool:
        """Whether it takes a JSON body."""
        return "wanted" in self.run.__annotations__


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


ENDPOINTS: list[Endpoint] = []


def _endpoint(
    method: str, path: str, summary: str, may_miss: bool = False
) -> Callable[[Callable[..., Answer | None]], Callable[..., Answer | None]]:
    def register(run: Callable[..., Answer | None]) -> Callable[..., Answer | None]:
        ENDPOINTS.append(Endpoint(method, path, summary, run, may_miss))
        return run

    return register


# ------------------------------------------------------------------------------------------------ endpoints


@_endpoint("GET", "/streams", "Every stream: counts and state")
def _streams(site: Site, _: Request) -> StreamsJson:
    return StreamsJson.of(site.overview.snapshot())


@_endpoint("GET", "/streams/{name:path}", "One stream: time line, what moved, most unusual images", may_miss=True)
def _stream(site: Site, request: Request) -> StreamViewJson:
    name = request.query_params.get("name", "") or request.path_params["name"]
    snapshot = site.overview.snapshot()
    if name not in snapshot.rows:
        raise ApiError(404, "no such stream")
    view = site.view_stream(snapshot, name, request.query_params.get("alert", ""))
    return StreamViewJson.of_view(name, snapshot.rows[name], site.alert_views(snapshot, name), view)


@_endpoint("GET", "/alerts", "Alerts under way, and those of the last week")
def _alerts(site: Site, _: Request) -> AlertsJson:
    return AlertsJson(alerts=[AlertJson.of(view) for view in site.alert_views(site.overview.snapshot())])


@_endpoint("GET", "/silences", "All silences, ended ones of the last week too")
def _silences(site: Site, _: Request) -> SilencesJson:
    return SilencesJson(silences=[SilenceJson.of(silence, now_ms()) for silence in site.overview.snapshot().silences])


@_endpoint("POST", "/silences", "Make a silence, in force at once")
def _add_silence(site: Site, _: Request, wanted: NewSilence) -> SilenceJson:
    silence = silencing.keep(site.store, wanted)
    site.overview.changed()
    return SilenceJson.of(silence, silence.starts_ms)


@_endpoint("DELETE", "/silences/{id}", "End a silence", may_miss=True)
def _expire_silence(site: Site, request: Request) -> None:
    if not silencing.expire(site.store, request.path_params["id"]):
        raise ApiError(404, "no such silence")
    site.overview.changed()


@_endpoint("GET", "/profile", "What normal is compared with")
def _profile(site: Site, _: Request) -> ProfilesJson:
    return site.profiles(site.overview.snapshot())


@_endpoint("GET", "/health", "How the monitor itself fares")
def _health(site: Site, _: Request) -> HealthJson:
    return HealthJson.of(read_health(site.store, site.overview, site.why_unready()))


# ------------------------------------------------------------------------------------------------ answering


def routes(site: Site) -> list[BaseRoute]:
    """All endpoints, below /api/v1; an error is `{"error": text}`."""
    return [Route(e.path, _answering(site, e), methods=[e.method]) for e in ENDPOINTS]


def _answering(site: Site, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            if endpoint.writes:
                _check_may_write(site, request)
            body = [silencing.from_json(await _json_body(request))] if endpoint.takes_body else []
            found = await run_in_threadpool(endpoint.run, site, request, *body)
        except ApiError as error:
            return JSONResponse({"error": str(error)}, error.status)
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 422)
        except StoreError:
            return JSONResponse({"error": "Redis does not answer"}, 503)
        if found is None:
            return Response(status_code=204)
        return Response(found.model_dump_json(), 201 if endpoint.writes else 200, media_type="application/json")

    return answer


def _check_may_write(site: Site, request: Request) -> None:
    if not site.credentials.configured:
        raise ApiError(403, "nothing can be written without a token or password: set web.token")
    if not from_our_pages(request.headers):
        raise ApiError(403, "sent by another site")


async def _json_body(request: Request) -> bytes:
    # a form of another site cannot have this type unless the browser asks first
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "content-type must be application/json")
    return await read_body(request)
