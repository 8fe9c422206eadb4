"""What the commands that score share: `--device` and `--engine`, and the profile that they load by them."""

from __future__ import annotations

import argparse
import sys

import detectors
from detectors.profile.spec import ENGINES


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """`--device`, `--engine`."""
    parser.add_argument("--device", default="auto")
    add_engine_option(parser)


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """`--engine`; None where it is not given."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="what runs the network: torch (the default), or auto: OpenVINO on a CPU where it scores as torch does",
    )


def load_to_score(args: argparse.Namespace) -> detectors.Profile:
    """The profile, run by the engine that was asked for; says on stderr why `auto` is torch.

    Raises:
        detectors.ProfileError: it cannot be loaded, or the engine cannot run it.
    """
    profile = detectors.Profile.load(args.profile, args.device, args.engine)
    if args.engine == "auto" and profile.runs_by.startswith("torch ("):
        sys.stderr.write(f"engine: {profile.runs_by}\n")
    return profile
