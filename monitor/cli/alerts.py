"""`layerwatch alerts`: what fires, what is silenced, what could not be delivered; silence, expire, send a test."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monitor.cli.run import add_config_option
from monitor.cli.times import DURATION_HELP, parse_duration


def add_command(commands: Any) -> None:
    """Add `alerts` to an argparse subparser table; every action sets `handler(args) -> exit status`."""
    parser = commands.add_parser("alerts", help="what fires, and silences")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_config_option(parser)
    parser.set_defaults(handler=_handler("list"))
    # both options may stand before or after the action; there they must not reset what stood before
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="one JSON object")
    common.add_argument("-c", "--config", type=Path)
    actions = parser.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", parents=[common], help="alerts and silences (the default)")
    listing.set_defaults(handler=_handler("list"))
    silence = actions.add_parser("silence", parents=[common], help="send no alerts that match, for a while")
    silence.add_argument("--stream", metavar="GLOB", help="streams; '*' is all")
    silence.add_argument("--rule", metavar="GLOB", help="rules; '*' is all")
    silence.add_argument("--label", metavar="NAME=GLOB", action="append", default=[], help="a label of the rule")
    silence.add_argument(
        "--for", dest="duration", required=True, type=parse_duration, help=f"how long: {DURATION_HELP}"
    )
    silence.add_argument("--author", default=None, help="who (default: the user's name)")
    silence.add_argument("--comment", default="", help="why")
    silence.set_defaults(handler=_handler("silence"))
    expire = actions.add_parser("expire", parents=[common], help="end a silence")
    expire.add_argument("id")
    expire.set_defaults(handler=_handler("expire"))
    test = actions.add_parser("send-test", parents=[common], help="send a test alert to every receiver")
    test.set_defaults(handler=_handler("send-test"))


def _handler(action: str) -> Callable[[argparse.Namespace], int]:
    def handler(args: argparse.Namespace) -> int:
        from monitor.cli.alerts_actions import run_action  # noqa: PLC0415 - other commands need not wait for its imports

        return run_action(action, args)

    return handler
