"""`layerwatch score`: one line for each image."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from numpy.typing import NDArray

from detectors.images.prepare import ImageError
from detectors.images.reading import InputError, read_images
from monitor.cli.learning import IMAGES


def add_command(commands: Any) -> None:
    """Add `score` to an argparse subparser table; it sets `handler(args) -> exit status`."""
    score = commands.add_parser("score", help="score images: one line each")
    score.add_argument("profile")
    score.add_argument("images", nargs="+", help=IMAGES)
    score.add_argument("--device", default="auto")
    score.add_argument("--json", action="store_true", help="one JSON object per line")
    score.set_defaults(handler=_score)


def _score(args: argparse.Namespace) -> int:
    from detectors.profile.profile import Profile, ProfileError  # noqa: PLC0415

    status = 0
    try:
        profile = Profile.load(args.profile, args.device)
        for name, image in read_images(args.images):
            try:
                scores = profile.score([profile.prepare(image, name.encode("utf-8", "backslashreplace"))])
            except ImageError as error:
                sys.stderr.write(f"{name}: {error}\n")
                status = 1
                continue
            sys.stdout.write(_line(name, profile.signals, scores.values[0], scores.p_values[0], args.json) + "\n")
    except (InputError, ProfileError) as error:
        sys.stderr.write(f"layerwatch score: {error}\n")
        return 1
    return status


def _line(name: str, signals: tuple[str, ...], values: NDArray[Any], p_values: NDArray[Any], as_json: bool) -> str:
    if as_json:
        rows = zip(signals, values, p_values, strict=True)
        return json.dumps({"name": name, "signals": {s: {"value": float(v), "p": float(p)} for s, v, p in rows}})
    return f"{name}  " + "  ".join(
        f"{s}={v:.4g} (p {p:.3g})" for s, v, p in zip(signals, values, p_values, strict=True)
    )
