"""Runs two daemons on a stream for N minutes while things break at random, then recounts every image.

    python benchmarks/soak.py --minutes 20 [--rename-topic] [--rename-receivers] [--calm] [--seed 1] [-o FILE]

A real broker, a real Redis with an append-only file (everysec) behind a proxy, a webhook that fails at times, a real
Alertmanager. One daemon is never killed, so that its memory can be watched; the other one is. Drift comes at known
times; every one must reach both receivers. Half way, on request, the producers go over to another topic and the
receivers get other names: the new configuration is rolled out as an operator would do it, one daemon after the other.
Prints a line per sample and the table of what must hold; exits 1 where something does not.

A run of less than ten minutes is too short for its drifts to be seen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the fault rig lives with the tests

import torch

import detectors
from benchmarks.soak_claims import Seen, Watch, claims, drifts, last_closable
from benchmarks.soak_parts import Soak
from monitor.store.private_server import PrivateRedis
from tests.faults.proxy import Proxy
from tests.faults.rig import Rig, Zygote, bounds, wait_for
from tests.kafka.broker import Broker
from tests.notify.alertmanager import Alertmanager
from tests.pictures import pictures
from tests.shared import ZygoteProcess

RETRIED_S = 400.0
"""What a receiver has missed twice comes with the third try, up to six minutes later."""
RESEND_S = 15.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=20.0)
    arguments.add_argument("--rename-topic", action="store_true", help="half way the producers use another topic")
    arguments.add_argument("--rename-receivers", action="store_true", help="half way the receivers get other names")
    arguments.add_argument("--calm", action="store_true", help="nothing breaks, nothing drifts, no record is bad")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rate", type=float, default=20.0, help="images per second")
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/soak.json"))
    args = arguments.parse_args()
    torch.set_num_threads(1)  # the recount takes one image at a time
    logs = args.output.with_suffix("")
    with tempfile.TemporaryDirectory(prefix="layerwatch-soak-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for part in ("broker", "redis", "rig", "alertmanager"):
            (folder / part).mkdir()
        stack.callback(shutil.copytree, folder / "rig", logs, dirs_exist_ok=True)
        detectors.fit_profile(pictures(0, 300)).save(folder / "profile")
        broker = stack.enter_context(Broker(folder / "broker"))
        options = ["--appendonly", "yes", "--appendfsync", "everysec"]
        server = stack.enter_context(PrivateRedis(folder / "redis", options))
        proxy = Proxy("127.0.0.1", server.port)
        stack.callback(proxy.close)
        quiet = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}
        alertmanager = stack.enter_context(Alertmanager(folder / "alertmanager", quiet))
        zygote = Zygote(stack.enter_context(ZygoteProcess(folder / "zygote")).socket)
        url = f"redis://127.0.0.1:{proxy.port}/0"
        rig = Rig(zygote, broker, server.url, folder / "rig", folder / "profile", daemon_redis_url=url)
        stack.callback(rig.close)
        to_alertmanager = {"type": "alertmanager", "urls": [alertmanager.url], "resend_s": RESEND_S}
        rig.settings["receivers"].append({"name": "alertmanager", **to_alertmanager})
        planned = () if args.calm else drifts(args.minutes * 60)
        soak = Soak(rig, broker, (server, proxy), args.seed, planned, bad=not args.calm)
        watch = Watch(alertmanager)
        stack.callback(watch.close)
        run(soak, args)
        told = claims(
            Seen(rig, watch, soak.begun_ms, planned, soak.samples, soak.strange, soak.renamed, soak.former_receivers)
        )
        lines, documents = soak.lines(), rig.hook.accepted
    args.output.parent.mkdir(parents=True, exist_ok=True)
    arguments_given = {key: value for key, value in vars(args).items() if key != "output"}
    result = {"arguments": arguments_given, "faults": dict(soak.faults), "claims": told, "log_lines": lines}
    args.output.write_text(json.dumps({**result, "samples": soak.samples, "documents": documents}, indent=1) + "\n")
    print("\nfaults:", ", ".join(f"{kind} {n}" for kind, n in sorted(soak.faults.items())) or "none")
    print("\nlog lines of all daemons:")
    print("\n".join(f"{n:6} {event}" for event, n in lines.items()))
    print("\n" + "\n".join(f"{claim:40} {text}" for claim, text in told.items()))
    sys.exit(any(text.startswith("WRONG") for text in told.values()))


def run(soak: Soak, args: argparse.Namespace) -> None:
    """All of it, until everything is counted, judged and delivered."""
    wait_for("the first image", lambda: soak.steady.events("partition.taken") or soak.victim.events("partition.taken"))
    producing = threading.Thread(target=soak.produce, args=(args.rate,))
    watching = threading.Thread(target=soak.watch, daemon=True)
    soak.begun_s, soak.begun_ms = time.monotonic(), time.time_ns() // 1_000_000
    producing.start()
    watching.start()
    middle_s, end_s = soak.begun_s + 30 * args.minutes, soak.begun_s + 60 * args.minutes
    renames = args.rename_topic or args.rename_receivers
    pass_time: Callable[..., object] = sleep_until if args.calm else soak.break_things
    try:
        if args.rename_receivers:
            # what waits for a receiver stays with its name: an operator renames one that has everything
            pass_time(middle_s - RETRIED_S)
            pass_time(middle_s, *(() if args.calm else (True,)))
        elif renames:
            pass_time(middle_s)
        if renames:
            soak.say("the names change")
            soak.rename(args.rename_topic, args.rename_receivers)
            soak.say("the new configuration is rolled out")
        pass_time(end_s)
        soak.say("calm")
        time.sleep(10)
    finally:
        soak.over.set()
        producing.join()
    rig = soak.rig
    rig.await_counted(sum(end for _, end in bounds(rig.cluster, rig.partitions).values()), 180)
    names = [receiver["name"] for receiver in rig.settings["receivers"]]
    outbox, evaluation = rig.store.outbox, rig.store.evaluation
    # an unread topic may hold the last buckets open for five minutes
    wait_for("the last bucket", lambda: (evaluation.state().bucket_ms or 0) >= last_closable(rig), RETRIED_S)
    wait_for("the outbox to be empty", lambda: not any(outbox.backlog(name).entries for name in names), RETRIED_S)
    time.sleep(20)  # for Alertmanager to forget what has resolved, as `claims` looks at it


def sleep_until(when_s: float) -> None:
    """By the monotonic clock."""
    time.sleep(max(0.0, when_s - time.monotonic()))


if __name__ == "__main__":
    main()
