"""uvicorn in a thread of the daemon."""

from __future__ import annotations

import socket
import threading
import time

import structlog
import uvicorn

from monitor.web.app import build_app
from monitor.web.pages import Pages
from monitor.web.site import Site

log = structlog.get_logger(__name__)

START_TIMEOUT_S = 10.0


class WebServerError(Exception):
    """The address cannot be bound; the message names it."""


class WebServer:
    """Serves a site between `start` and `stop`, and keeps its overview up to date meanwhile.

    Args:
        host, port: where to listen; port 0 picks a free one.
    """

    def __init__(self, site: Site, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._overview, self._pages = site.overview, Pages(site)
        app = build_app(site, self._pages)
        settings = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(settings)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """`http://host:port` as bound."""
        host, port = self._socket.getsockname()[:2] if self._socket else (self._host, self._port)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        """Bind and serve.

        Raises:
            WebServerError: the address is taken or not ours.
        """
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=128)
        except OSError as error:
            raise WebServerError(f"web: cannot listen on {self._host}:{self._port}: {error.strerror}") from error
        self._overview.start()
        try:
            self._pages.first()  # the first visitor must not wait longer than the others
        except Exception:
            log.exception("web.first_page_failed")  # no reason not to count and to alert
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """Finish open requests and free the address."""
        self._overview.stop()  # first: those who watch for events would keep their connections open
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        if self._socket is not None:
            self._socket.close()
