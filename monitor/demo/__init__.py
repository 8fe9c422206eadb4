"""`layerwatch demo`: a small production line, a drift, and the alerts of a real daemon, all on this machine."""

from __future__ import annotations

import argparse
from typing import Any


def add_command(commands: Any) -> None:
    """Add `demo` to an argparse subparser table; it sets `handler(args) -> exit status`."""
    parser = commands.add_parser("demo", help="fit, watch, drift and recover on this machine; no server needed")
    parser.add_argument("--headless", action="store_true", help="plain lines: no live panel, no colours")
    parser.add_argument("--stay", action="store_true", help="keep the daemon and its pages up at the end, until Ctrl-C")
    parser.set_defaults(handler=_demo)


def _demo(args: argparse.Namespace) -> int:
    from monitor.demo.command import demo  # noqa: PLC0415 - other commands must not pay for its imports

    return demo(args.headless, args.stay)
