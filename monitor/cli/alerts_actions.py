"""What the actions of `layerwatch alerts` do with an open store."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.config.errors import EXIT_UNAVAILABLE
from monitor.config.loading import load_config
from monitor.core import silences
from monitor.core.alert_document import rfc3339, test_document
from monitor.core.types import Alert, AlertPhase
from monitor.notify.silences import create_silence
from monitor.store import Store, StoreConfigError, StoreError, open_store

EXIT_NOT_FOUND = 1
EXIT_USAGE = 2


def run_action(name: str, args: argparse.Namespace) -> int:
    """Open the configured store, run that one of ACTIONS, and return the exit status."""
    settings = load_config(args.config)
    try:
        store = open_store(settings.redis, settings.monitor)
        try:
            return ACTIONS[name](args, store, settings.monitor)
        finally:
            store.close()
    except (StoreError, StoreConfigError) as error:
        sys.stderr.write(f"layerwatch alerts: {error}\n")
        return EXIT_UNAVAILABLE


def _list(args: argparse.Namespace, store: Store, monitor: str) -> int:
    del monitor
    now_ms = _now_ms()
    found = sorted(store.evaluation.alerts().values(), key=lambda a: (a.phase, a.rule, a.stream))
    kept = _silences(store)
    undelivered = store.outbox.dead_alerts()
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
        return EXIT_USAGE
    author = args.author if args.author is not None else _user()
    silence = create_silence(store, matchers, args.duration, author, args.comment, known=_silences(store))
    text = silences.to_json(silence)
    sys.stdout.write((text if args.json else f"{silence.id} until {rfc3339(silence.ends_ms)}") + "\n")
    return 0


def _expire(args: argparse.Namespace, store: Store, monitor: str) -> int:
    del monitor
    if not store.silences.remove(args.id):
        sys.stderr.write(f"layerwatch alerts expire: there is no silence {args.id}\n")
        return EXIT_NOT_FOUND
    sys.stdout.write((json.dumps({"expired": args.id}) if args.json else f"{args.id} expired") + "\n")
    return 0


def _send_test(args: argparse.Namespace, store: Store, monitor: str) -> int:
    document = test_document(monitor, _now_ms())
    store.outbox.append(document)
    name = json.loads(document)["id"]
    sys.stdout.write((json.dumps({"sent": name}) if args.json else f"{name} is on its way to every receiver") + "\n")
    return 0


def _silences(store: Store) -> list[silences.Silence]:
    found, unreadable = silences.read_all(store.silences.all())
    for silence_id, error in unreadable.items():
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


ACTIONS: Mapping[str, Callable[[argparse.Namespace, Store, str], int]] = {
    "list": _list,
    "silence": _silence,
    "expire": _expire,
    "send-test": _send_test,
}
