"""`layerwatch alerts`: what fires, what is silenced, what could not be delivered; silence, expire, send a test."""

from __future__ import annotations

import argparse
import getpass
import json
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor import alerts, silences
from monitor.commands import EXIT_UNAVAILABLE, add_config_option
from monitor.config import load_config
from monitor.document import rfc3339, test_document
from monitor.store import Store, StoreConfigError, StoreError, open_store
from monitor.types import Alert, AlertPhase

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
KEPT_AFTER_END_MS = 7 * 86_400_000
"""An ended silence is listed as JSON for a week, so that one can see who hid what."""
EXIT_NOT_FOUND = 1


def add_command(commands: Any) -> None:
    """Add `alerts` to an argparse subparser table; every action sets `handler(args) -> exit status`."""
    parser = commands.add_parser("alerts", help="what fires, and silences")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_config_option(parser)
    parser.set_defaults(handler=_with_store(_list))
    # both options may stand before or after the action; there they must not reset what stood before
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="one JSON object")
    common.add_argument("-c", "--config", type=Path)
    actions = parser.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", parents=[common], help="alerts and silences (the default)")
    listing.set_defaults(handler=_with_store(_list))
    silence = actions.add_parser("silence", parents=[common], help="send no alerts that match, for a while")
    silence.add_argument("--stream", metavar="GLOB", help="streams; '*' is all")
    silence.add_argument("--rule", metavar="GLOB", help="rules; '*' is all")
    silence.add_argument("--label", metavar="NAME=GLOB", action="append", default=[], help="a label of the rule")
    silence.add_argument("--for", dest="duration", required=True, type=duration_s, help="how long: 30m, 2h, 1d12h")
    silence.add_argument("--author", default=None, help="who (default: the user's name)")
    silence.add_argument("--comment", default="", help="why")
    silence.set_defaults(handler=_with_store(_silence))
    expire = actions.add_parser("expire", parents=[common], help="end a silence")
    expire.add_argument("id")
    expire.set_defaults(handler=_with_store(_expire))
    test = actions.add_parser("send-test", parents=[common], help="send a test alert to every receiver")
    test.set_defaults(handler=_with_store(_send_test))


def duration_s(text: str) -> int:
    """`30m`, `2h`, `1d12h` in seconds.

    Raises:
        argparse.ArgumentTypeError: not such a text, or nothing at all.
    """
    parts = re.findall(r"(\d+)([smhdw])", text)
    seconds = sum(int(number) * UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30m, 2h or 1d12h")
    return seconds


def _with_store(action: Callable[[argparse.Namespace, Store, str], int]) -> Callable[[argparse.Namespace], int]:
    """The handler that opens the store for `action(args, store, monitor)`."""

    def handler(args: argparse.Namespace) -> int:
        settings = load_config(args.config)
        try:
            store = open_store(settings.redis, settings.monitor)
            try:
                return action(args, store, settings.monitor)
            finally:
                store.close()
        except (StoreError, StoreConfigError) as error:
            sys.stderr.write(f"layerwatch alerts: {error}\n")
            return EXIT_UNAVAILABLE

    return handler


def _list(args: argparse.Namespace, store: Store, monitor: str) -> int:
    del monitor
    now_ms = _now_ms()
    found = sorted(map(alerts.from_json, store.load_alerts().values()), key=lambda a: (a.phase, a.rule, a.stream))
    kept = sorted(_silences(store), key=lambda s: (s.ends_ms, s.id))
    undelivered = store.dead_alerts()
    if args.json:
        body = {
            "alerts": [_alert_json(alert) for alert in found],
            "silences": [{**json.loads(silences.to_json(s)), "active": s.active(now_ms)} for s in kept],
            "undelivered": [asdict(dead) for dead in undelivered],
        }
        sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
        return 0
    console = Console()
    table = Table("alert", "phase", "rule", "stream", "since", "summary")
    for alert in found:
        summary = alert.verdict.summary if alert.verdict else ""
        cells = [alert.id, str(alert.phase), alert.rule, alert.stream, rfc3339(alert.since_ms), summary]
        table.add_row(*map(Text, cells))
    console.print(table if found else "no alerts")
    table = Table("silence", "hides", "until", "by", "comment")
    for silence in kept:
        if silence.ends_ms > now_ms:
            hides = ", ".join(f"{name}={glob}" for name, glob in silence.matchers.items())
            cells = [silence.id, hides, rfc3339(silence.ends_ms), silence.author, silence.comment]
            table.add_row(*map(Text, cells))
    if table.row_count:
        console.print(table)
    if undelivered:
        console.print(f"{len(undelivered)} undelivered: `--json` lists them with their reasons", markup=False)
    return 0


def _silence(args: argparse.Namespace, store: Store, monitor: str) -> int:
    del monitor
    labels = dict(label.partition("=")[::2] for label in args.label)
    own = {"stream": args.stream, "rule": args.rule}
    matchers = {**labels, **{name: glob for name, glob in own.items() if glob}}
    if not matchers or not all(matchers) or not all(matchers.values()):
        sys.stderr.write("layerwatch alerts silence: give --stream, --rule or --label NAME=GLOB ('*' is all)\n")
        return 2
    now_ms = _now_ms()
    author = args.author if args.author is not None else _user()
    silence = silences.Silence(
        uuid.uuid4().hex[:12], matchers, now_ms, now_ms + 1000 * args.duration, author, args.comment
    )
    store.put_silence(silence.id, silences.to_json(silence))
    for old in _silences(store):
        if old.ends_ms < now_ms - KEPT_AFTER_END_MS:
            store.remove_silence(old.id)
    text = silences.to_json(silence)
    sys.stdout.write((text if args.json else f"{silence.id} until {rfc3339(silence.ends_ms)}") + "\n")
    return 0


def _expire(args: argparse.Namespace, store: Store, monitor: str) -> int:
    del monitor
    if not store.remove_silence(args.id):
        sys.stderr.write(f"layerwatch alerts expire: there is no silence {args.id}\n")
        return EXIT_NOT_FOUND
    sys.stdout.write((json.dumps({"expired": args.id}) if args.json else f"{args.id} expired") + "\n")
    return 0


def _send_test(args: argparse.Namespace, store: Store, monitor: str) -> int:
    document = test_document(monitor, _now_ms())
    store.append_outbox(document)
    name = json.loads(document)["id"]
    sys.stdout.write((json.dumps({"sent": name}) if args.json else f"{name} is on its way to every receiver") + "\n")
    return 0


def _silences(store: Store) -> list[silences.Silence]:
    """Those that can be read; one that cannot hides nothing either."""
    found = []
    for silence_id, text in store.silences().items():
        try:
            found.append(silences.from_json(text))
        except ValueError as error:
            sys.stderr.write(f"layerwatch alerts: silence {silence_id} is left out: {error}\n")
    return found


def _alert_json(alert: Alert) -> dict[str, Any]:
    times = {"since": alert.since_ms, "fired_at": alert.fired_ms, "resolved_at": alert.resolved_ms}
    verdict = alert.verdict
    return {
        "alert_id": alert.id,
        "rule": alert.rule,
        "stream": alert.stream,
        "phase": str(AlertPhase(alert.phase)),
        **{name: rfc3339(at_ms) if at_ms else None for name, at_ms in times.items()},
        "summary": verdict.summary if verdict else "",
        "value": verdict.value if verdict else None,
        "bound": verdict.bound if verdict else None,
        "threshold": verdict.threshold if verdict else None,
        "images": verdict.images if verdict else None,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry
        return ""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
