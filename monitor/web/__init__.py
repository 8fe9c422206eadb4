"""The daemon's pages: health for orchestrators, metrics for Prometheus, state for people and scripts."""

from monitor.web.server import WebServer
from monitor.web.site import Site

__all__ = ["Site", "WebServer"]
