"""The daemon's pages: health for orchestrators, metrics for Prometheus, state for people and scripts."""

from monitor.web.app import build_app
from monitor.web.server import WebServer

__all__ = ["WebServer", "build_app"]
