"""One connection of the web server, with the limits that uvicorn leaves out."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

log = structlog.get_logger(__name__)

REQUEST_S = 10.0
"""For a whole request, head and body, from when the connection is free for it."""
TAKE_S = 30.0
"""For a client that has let an answer pile up to take most of it."""
MOST_CONNECTIONS = 200
"""Twice the watchers of events; each costs a file descriptor and some 100 KB."""

LOG_EVERY_S = 60.0


class Connection(H11Protocol):
    """Ends a connection whose request is not complete within REQUEST_S, or whose answer nobody takes within TAKE_S.

    One beyond MOST_CONNECTIONS ends that which has waited longest for a request: a probe or a scrape sends its own at
    once, so those who open connections and say nothing cannot keep it out. While all others are busy, the new one is
    refused.
    """

    _logged_s = -math.inf
    """Of all connections."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: asyncio.TimerHandle | None = None
        """Runs while a request is awaited."""
        self._taking: asyncio.TimerHandle | None = None
        """Runs while the client has to take an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it after an abort
        self._request_came()
        self._answer_taken()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()
        self._await_end()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_end()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_client()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._answer_taken()

    def _await_request(self) -> None:
        if self.transport.is_closing() or self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._request_came()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _request_came(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _await_end(self) -> None:
        """A connection that is closed ends only when its client has taken the rest of the answer."""
        if self.transport.is_closing():
            self._await_client()

    def _await_client(self) -> None:
        self._taking = self._taking or self.loop.call_later(TAKE_S, self.transport.abort)

    def _answer_taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _make_room(self) -> None:
        others: set[Any] = self.connections - {self}
        waiting = [c for c in others if c._waiting is not None and not c.transport.is_closing()]
        ended = min(waiting, key=lambda c: c._waiting.when(), default=self)
        ended.transport.abort()
        if self.loop.time() - Connection._logged_s > LOG_EVERY_S:
            Connection._logged_s = self.loop.time()
            log.warning("web.too_many_connections", allowed=MOST_CONNECTIONS)
