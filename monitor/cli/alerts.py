"""`layerwatch alerts`: what fires, what is silenced, what could not be delivered; silence, expire, send a test."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from monitor.cli.console import open_console
from monitor.cli.options import DURATION_HELP, add_config_option, parse_duration, user_name
from monitor.config.errors import EXIT_UNAVAILABLE, EXIT_USAGE, CommandError, as_command_error
from monitor.config.loading import load_config
from monitor.core import silences
from monitor.core.alert_document import rfc3339, test_document
from monitor.core.types import Alert
from monitor.notify.silences import create_silence
from monitor.store import Store, StoreConfigError, StoreError, open_store
from monitor.telemetry.clock import wall_ms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser per action; without one, `list` runs."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_config_option(parser)
    parser.set_defaults(action=_list)
    # both options may stand before or after the action; there they must not reset what stood before
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="one JSON object")
    common.add_argument("-c", "--config", type=Path)
    actions = parser.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", parents=[common], help="alerts and silences (the default)")
    listing.set_defaults(action=_list)
    silence = actions.add_parser("silence", parents=[common], help="send no alerts that match, for a while")
    silence.add_argument("--stream", metavar="GLOB", help="streams; '*' is all")
    silence.add_argument("--rule", metavar="GLOB", help="rules; '*' is all")
    silence.add_argument("--label", metavar="NAME=GLOB", action="append", default=[], help="a label of the rule")
    silence.add_argument(
        "--for", dest="duration", required=True, type=parse_duration, help=f"how long: {DURATION_HELP}"
    )
    silence.add_argument("--author", default=None, help="who (default: the user's name)")
    silence.add_argument("--comment", default="", help="why")
    silence.set_defaults(action=_silence)
    expire = actions.add_parser("expire", parents=[common], help="end a silence")
    expire.add_argument("id")
    expire.set_defaults(action=_expire)
    test = actions.add_parser("send-test", parents=[common], help="send a test alert to every receiver")
    test.set_defaults(action=_send_test)


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    with (
        as_command_error("alerts", StoreError, StoreConfigError, status=EXIT_UNAVAILABLE),
        closing(open_store(settings.redis, settings.monitor)) as store,
    ):
        args.action(args, store, settings.monitor)
    return 0


def _list(args: argparse.Namespace, store: Store, _monitor: str) -> None:
    now_ms = wall_ms()
    alerts = sorted(store.shards.alerts().values(), key=lambda a: (a.phase, a.rule, a.stream))
    kept = _silences(store)
    undelivered = store.shards.dead_alerts()
    if args.json:
        body = {
            "alerts": [_alert_json(alert) for alert in alerts],
            "silences": [{**json.loads(silences.to_json(s)), "active": s.active(now_ms)} for s in kept],
            "undelivered": [asdict(dead) for dead in undelivered],
        }
        sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
        return
    console = open_console()
    table = Table("alert", "phase", "rule", "stream", "since", "summary")
    for alert in alerts:
        summary = alert.verdict.summary if alert.verdict else ""
        cells = [alert.id, str(alert.phase), alert.rule, alert.stream, rfc3339(alert.since_ms), summary]
        table.add_row(*map(Text, cells))
    console.print(table if alerts else "no alerts")
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


def _silence(args: argparse.Namespace, store: Store, _monitor: str) -> None:
    labels = dict(label.partition("=")[::2] for label in args.label)
    own = {"stream": args.stream, "rule": args.rule}
    matchers = {**labels, **{name: glob for name, glob in own.items() if glob}}
    if not matchers or not all(matchers) or not all(matchers.values()):
        raise CommandError(
            "layerwatch alerts silence: give --stream, --rule or --label NAME=GLOB ('*' is all)", EXIT_USAGE
        )
    author = args.author if args.author is not None else user_name()
    silence = create_silence(store, matchers, args.duration, author, args.comment, known=_silences(store))
    text = silences.to_json(silence)
    sys.stdout.write((text if args.json else f"{silence.id} until {rfc3339(silence.ends_ms)}") + "\n")


def _expire(args: argparse.Namespace, store: Store, _monitor: str) -> None:
    if not store.silences.remove(args.id):
        raise CommandError(f"layerwatch alerts expire: there is no silence {args.id}")
    sys.stdout.write((json.dumps({"expired": args.id}) if args.json else f"{args.id} expired") + "\n")


def _send_test(args: argparse.Namespace, store: Store, monitor: str) -> None:
    document = test_document(monitor, wall_ms())
    store.outbox.append(document)
    name = json.loads(document)["id"]
    sys.stdout.write((json.dumps({"sent": name}) if args.json else f"{name} is on its way to every receiver") + "\n")


def _silences(store: Store) -> list[silences.Silence]:
    found, unreadable = silences.read_all(store.silences.all())
    for silence_id, error in unreadable.items():
        sys.stderr.write(f"layerwatch alerts: silence {silence_id} is left out: {error}\n")
    return found


def _alert_json(alert: Alert) -> dict[str, Any]:
    times = {"since": alert.since_ms, "fired_at": alert.fired_ms, "resolved_at": alert.resolved_ms}
    facts = ("value", "bound", "threshold", "images")
    return {
        "alert_id": alert.id,
        "rule": alert.rule,
        "stream": alert.stream,
        "condition": alert.condition,
        "phase": str(alert.phase),
        **{name: rfc3339(at_ms) if at_ms else None for name, at_ms in times.items()},
        "summary": alert.verdict.summary if alert.verdict else "",
        **{name: getattr(alert.verdict, name, None) for name in facts},
    }
