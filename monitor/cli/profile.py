"""`layerwatch profile`: the model card of a profile, and the versions in a store of profiles."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from rich.text import Text

import detectors
from detectors.evaluation.tables import profile_tables
from detectors.versions.journal import Change, Version
from detectors.versions.store import ProfileStore
from monitor.cli import compare
from monitor.cli.console import open_console
from monitor.cli.image_rules import print_worth
from monitor.cli.options import DURATION_HELP, PROFILE_HELP, add_config_option, parse_duration
from monitor.cli.renewal import command as renewal
from monitor.cli.renewal import due
from monitor.config.errors import as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, meaning: str, act: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=meaning)
        added.set_defaults(act=act, action=name)
        return added

    show = command("show", "the model card of a profile", _show)
    show.add_argument("profile", help=PROFILE_HELP)
    show.add_argument("--json", action="store_true")
    add_config_option(show)
    listed = command("list", "the versions in a store", _list)
    listed.add_argument("store", help="folder or URI")
    listed.add_argument("--json", action="store_true")
    diff = command(
        "diff", "what differs between two profiles, and how far the second's normal lies in the first's", _diff
    )
    diff.add_argument("before", help=PROFILE_HELP)
    diff.add_argument("after", help=PROFILE_HELP)
    diff.add_argument("--json", action="store_true")
    compared = command(
        "compare", "a profile in shadow beside the one that judges, on the images of a monitor", compare.run
    )
    compared.add_argument("--since", type=parse_duration, metavar="DURATION", help=f"{DURATION_HELP} (24h)")
    compared.add_argument("--json", action="store_true")
    add_config_option(compared)
    add = command("add", "copy a profile into a store, as a candidate; makes the store where there is none", _add)
    add.add_argument("profile", type=Path, help="folder")
    add.add_argument("store", help="folder or URI")
    for name, meaning, act in (
        ("promote", "make a version the active one", _promote),
        ("shadow", "let a version score beside the active one, where `scoring.shadow` names the store", _shadow),
        ("retire", "keep a version from being promoted again", _retire),
    ):
        change = command(name, meaning, act)
        change.add_argument("store", help="folder or URI")
        change.add_argument("version", help="number, or the beginning of a fingerprint")
        change.add_argument("--reason", default="", help="kept with the change")
    renewed = command("renew", "a candidate from images of calm times, unless normal has moved too far", renewal.run)
    renewal.add_arguments(renewed)
    due.add_arguments(
        command("renew-due", "take the next step of the renewal that the configuration schedules", due.run)
    )
    back = command("roll-back", "make that version active again which was before the active one", _roll_back)
    back.add_argument("store", help="folder or URI")
    for changing in (add, back):
        changing.add_argument("--reason", default="", help="kept with the change")


def run(args: argparse.Namespace) -> int:
    with as_command_error(f"profile {args.action}", detectors.ProfileError):
        status: int = args.act(args)
        return status


# ------------------------------------------------------------------------------------------------ reading


def _show(args: argparse.Namespace) -> int:
    profile = detectors.Profile.load(args.profile, "cpu")
    if args.json:
        sys.stdout.write(json.dumps(profile.manifest) + "\n")
        return 0
    console = open_console()
    for table in profile_tables(profile.manifest, profile.calibration_sizes):
        console.print(table)
    print_worth(console, profile, args.config)
    return 0


def _list(args: argparse.Namespace) -> int:
    store = ProfileStore(args.store)
    journal = store.journal()
    if args.json:
        versions = [_described(store, version) for version in journal.versions]
        sys.stdout.write(json.dumps({"store": args.store, "versions": versions}) + "\n")
        return 0
    table = Table(title=Text(f"Versions in {args.store}"), title_justify="left")
    for heading in ("version", "fingerprint", "state", "learned from", "last change"):
        table.add_column(heading)
    for version in journal.versions:
        manifest, last = store.manifest(version), version.changes[-1]
        learned = f"{manifest['images']['fit']} images, {manifest['fitted_at']}"
        row = (str(version.number), version.fingerprint, str(version.state), learned, _told(last))
        table.add_row(*map(Text, row), style="bold" if version is journal.active else "")
    open_console().print(table if journal.versions else Text(f"{args.store}: no versions; `layerwatch profile add`"))
    return 0


def _described(store: ProfileStore, version: Version) -> dict[str, object]:
    manifest = store.manifest(version)
    lineage = {name: manifest.get(name) for name in ("fitted_at", "calibrated_at", "calibrated_from", "command")}
    return {
        "version": version.number,
        "fingerprint": version.fingerprint,
        "state": str(version.state),
        "lineage": {**lineage, "images": manifest["images"], "images_hash": manifest.get("images_hash")},
        "changes": [change.to_json() for change in version.changes],
    }


def _told(change: Change) -> str:
    return f"{change.kind}, {change.at}, {change.by}{': ' if change.reason else ''}{change.reason}"


def _diff(args: argparse.Namespace) -> int:
    from detectors.versions.difference import facts, moved  # noqa: PLC0415 - loads torch

    before, after = (detectors.Profile.load(address, "cpu") for address in (args.before, args.after))
    different, signals = list(facts(before, after)), moved(before, after)
    if args.json:
        document = {
            "facts": {fact.name: [fact.before, fact.after] for fact in different},
            "signals": {m.signal: {"beyond": m.beyond, "median": [m.before, m.after]} for m in signals},
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    console = open_console()
    table = Table(title=Text(f"{before.fingerprint} and {after.fingerprint}"), title_justify="left")
    for heading in ("fact", "before", "after"):
        table.add_column(heading)
    for fact in different:
        table.add_row(fact.name, Text(fact.before), Text(fact.after))
    console.print(table)
    table = Table(title="Normal images of the second, by the calibration of the first", title_justify="left")
    for heading in ("signal", "beyond its 5 % cut", "median before", "median after"):
        table.add_column(heading, justify="right" if table.columns else "left")
    for m in signals:
        share = "other units" if m.beyond is None else f"{m.beyond:.1%}"
        table.add_row(m.signal, share, f"{m.before:.4g}", f"{m.after:.4g}")
    console.print(table)
    return 0


# ------------------------------------------------------------------------------------------------ changing


def _add(args: argparse.Namespace) -> int:
    detectors.Profile.load(args.profile, "cpu")  # what cannot be loaded must not become a version
    return _say(args.store, ProfileStore(args.store).add(args.profile, args.reason))


def _promote(args: argparse.Namespace) -> int:
    store = ProfileStore(args.store)
    detectors.Profile.load(store.fetch(store.find(args.version)), "cpu")  # nor be promoted
    return _say(args.store, store.promote(args.version, args.reason))


def _shadow(args: argparse.Namespace) -> int:
    store = ProfileStore(args.store)
    detectors.Profile.load(store.fetch(store.find(args.version)), "cpu")
    return _say(args.store, store.shadow(args.version, args.reason))


def _roll_back(args: argparse.Namespace) -> int:
    return _say(args.store, ProfileStore(args.store).roll_back(args.reason))


def _retire(args: argparse.Namespace) -> int:
    return _say(args.store, ProfileStore(args.store).retire(args.version, args.reason))


def _say(store: str, version: Version) -> int:
    sys.stdout.write(f"{store}: version {version.number} ({version.fingerprint}) is {version.state}\n")
    return 0
