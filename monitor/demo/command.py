"""`layerwatch demo`: everything on this machine, from fitting a profile to a resolved alert; `run_demo` is the flow."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console

import detectors
from detectors.versions.store import ProfileStore
from monitor.config.errors import as_command_error
from monitor.config.schema import Config
from monitor.demo.process import PASSIVE_WAITING, DaemonProcess
from monitor.demo.receiver import AlertReceiver
from monitor.demo.renewal import RenewalRun, renewal_settings
from monitor.demo.run import DemoRun
from monitor.demo.screens import LiveScreen, PlainScreen, Screen
from monitor.demo.story import BUCKET_S, DRIFT, RATE, STREAMS, TOPIC, WINDOW_S, reference
from monitor.sources import open_producer
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.store.child_process import ChildError
from monitor.store.private_server import PrivateRedis

STORIES = ("drift", "renewal")
SEED = 7
REFERENCE_IMAGES = 1000
"""700 to learn from, 300 to calibrate on: enough to know the 5 % cut to within 2.4 to 8.6 % with 99 % confidence."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--headless", action="store_true", help="plain lines: no live panel, no colours")
    parser.add_argument(
        "--story",
        choices=STORIES,
        default="drift",
        help="drift: faults that come and go (the default); renewal: a wanted change, and a profile that follows it",
    )
    parser.add_argument("--stay", action="store_true", help="keep the daemon and its pages up at the end, until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    """Run the demo on a live panel where there is a terminal; see `run_demo` for the exit status."""
    os.environ.update(PASSIVE_WAITING)  # before torch is loaded, which reads it once
    plain = args.headless or not sys.stdout.isatty()
    screen: Screen = PlainScreen(sys.stdout) if plain else LiveScreen(Console())
    with closing(screen), as_command_error("demo", ChildError, SourceError, FatalSourceError):
        return run_demo(screen, args.stay, args.story)


def run_demo(screen: Screen, stay: bool = False, story: str = "drift") -> int:
    """The whole demo; 0 when all of its story went as it should: every drift raised its alerts, and nothing else did.

    Raises:
        ChildError, SourceError, FatalSourceError: something that it needs does not work.
    """
    with ExitStack() as stack, _interruptible():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerwatch-demo-")))
        server = stack.enter_context(PrivateRedis())
        receiver = stack.enter_context(AlertReceiver())
        screen.say(f"a private Redis listens on 127.0.0.1:{server.port}")
        _fit(screen, folder / "profile")

        settings = daemon_settings(server.url, folder / "profile", receiver)
        if story == "renewal":
            store = ProfileStore(str(folder / "store"))
            store.add(folder / "profile", "made for the demo")
            store.promote("1")
            settings = renewal_settings(settings, folder / "store")
        screen.say("starting the daemon: layerwatch run")
        daemon = stack.enter_context(DaemonProcess(folder, settings))
        screen.say(f"status page {daemon.address}/   metrics {daemon.address}/metrics")

        producer = stack.enter_context(closing(open_producer(Config.model_validate(settings).source_settings())))
        run: DemoRun | RenewalRun = DemoRun(daemon, receiver, producer, screen)
        if story == "renewal":
            run = RenewalRun(daemon, receiver, producer, screen, folder / "store")
        try:
            run.play(SEED + 1)
        except KeyboardInterrupt:
            screen.say("stopping the daemon and Redis")
            raise

        problems = run.problems()
        screen.end([*run.summary(), *problems], not problems)
        if stay:
            screen.say(f"the daemon stays up at {daemon.address}/ - Ctrl-C ends it")
            with suppress(KeyboardInterrupt):
                while True:
                    daemon.check_alive()
                    time.sleep(0.5)
        return 1 if problems else 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl-C, and both do where the shell had them ignored (a job in the background).

    Python drops what is raised in a destructor: a signal that comes there waits until it is over.
    """

    def interrupt(_number: int, frame: FrameType | None) -> None:
        while frame:
            if frame.f_code.co_name == "__del__":
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0)


def daemon_settings(redis_url: str, profile: Path, receiver: AlertReceiver) -> dict[str, Any]:
    """The daemon's configuration, as its YAML file has it; `DaemonProcess` adds the section `web`.

    False alarms of the demo itself. Rate rule: with 300 calibration images a window of 60 needs 17 images beyond the
    5 % cut. Normal windows have that with probability 4e-9, and 3e-6 where the calibration set is so unlucky that the
    cut lets 8 % pass (one set in a hundred); some 250 windows give at most 8e-4. Sequential rule: four lines of
    at most 870 s at one false alarm in 30 days of a line give 1.4e-3. The seed is fixed as well: from run to run only
    the rounding of the fit differs.
    """
    drift = {
        "name": DRIFT,
        "kind": "sequential",
        "signals": ["*"],
        "expected_streams": len(STREAMS),
        "labels": {"severity": "page"},
    }
    rate = {
        "name": RATE,
        "kind": "rate",
        "level": 0.05,
        "threshold": 0.10,
        "window_s": WINDOW_S,
        "min_images": 60,
        "for": BUCKET_S,
        "keep_firing_for": 2 * BUCKET_S,
        "labels": {"severity": "ticket"},
    }
    return {
        "monitor": "demo",
        "source": "redis-stream",
        "redis": {"url": redis_url},
        "redis_stream": {"topics": [TOPIC], "max_length": 100_000},
        "scoring": {"profile": str(profile)},
        "buckets": {"seconds": BUCKET_S, "lateness_s": 1.0},
        "rules": [drift, rate],
        "receivers": [{"name": "demo", "type": "webhook", "url": receiver.url, "secret": receiver.secret}],
    }


def _fit(screen: Screen, folder: Path) -> None:
    """Draw a reference set, fit a profile on it and save it in `folder`."""
    screen.say(f"drawing {REFERENCE_IMAGES} pictures of normal production and learning what they have in common")

    def pictures() -> Iterator[tuple[str, bytes]]:
        for i, named in enumerate(reference(np.random.default_rng(SEED), REFERENCE_IMAGES)):
            screen.step("drawing and looking", i / REFERENCE_IMAGES)
            yield named
        screen.step("drawing and looking", 1.0)

    def progress(step: str, share: float) -> None:
        if share >= 0:  # negative: how much is left is not known
            screen.step(step, share)

    started = time.monotonic()
    profile = detectors.fit_profile(pictures(), detectors.FitOptions(device="cpu", seed=SEED), progress)
    profile.save(folder)
    images = profile.manifest["images"]
    screen.say(
        f"profile {profile.fingerprint}: {images['fit']} pictures learned, {images['calibration']} to calibrate, "
        f"{time.monotonic() - started:.0f} s"
    )
