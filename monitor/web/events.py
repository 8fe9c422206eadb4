"""Server-sent events: one line when something changed; what it is, the page fetches itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from monitor.fleet.overview import Overview

MOST_WATCHERS = 100
"""Each is one open connection."""
LOOK_S = 0.25
ALIVE_S = 15.0
"""Proxies cut connections that are quiet for longer, usually a minute."""


class Events:
    """The endpoint."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    async def answer(self, request: Request) -> Response:
        """One watcher; the browser comes again by itself when it is cut off."""
        del request
        if self._overview.watchers >= MOST_WATCHERS:
            return PlainTextResponse("too many watchers\n", 503, {"Retry-After": "30"})
        return StreamingResponse(self._follow(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _follow(self) -> AsyncIterator[str]:
        overview = self._overview
        overview.watch(1)
        try:
            told, quiet_s = overview.number, 0.0
            yield f"retry: 3000\ndata: {told}\n\n"
            while not overview.stopping:
                await asyncio.sleep(LOOK_S)
                quiet_s += LOOK_S
                if overview.number != told:
                    told, quiet_s = overview.number, 0.0
                    yield f"data: {told}\n\n"
                elif quiet_s >= ALIVE_S:
                    quiet_s = 0.0
                    yield ": still here\n\n"
        finally:
            overview.watch(-1)
