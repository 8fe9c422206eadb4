"""Runs pytest and says which lines and branches of the product it reached; by SlipCover, which hardly slows them.

    python -m tests.measuring [--at-least PERCENT] [PYTEST'S ARGUMENTS ...]

Each process of the run that imports this module adds what it reached to a folder: the workers of pytest and the forks
of the zygote that end by themselves. Programs that they start are not measured: the same code runs in those two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import slipcover

ROOT = Path(__file__).parent.parent
PRODUCT = [str(ROOT / "monitor"), str(ROOT / "detectors")]
FOLDER = "LAYERWATCH_TESTS_REACHED"
"""Environment variable: where processes write what they reached; nothing is measured where it is not set."""
KEEP = -1
"""Probes stay in place: to take them out SlipCover would put other code under threads that are running."""
NOT_RUN = [r"@overload", r"raise NotImplementedError", r"\.\.\.$"]

_measured: slipcover.Slipcover | None = None
if FOLDER in os.environ:
    # what this process imports of the product from now on
    _measured = slipcover.Slipcover(branch=True, d_miss_threshold=KEEP)
    slipcover.ImportManager(_measured, slipcover.FileMatcher(sources=PRODUCT)).__enter__()


def save() -> None:
    """Add what was reached since the last call to the folder."""
    if _measured is None:
        return
    # copied first: other threads may be running
    seen = {name: list(places) for name, places in list(_measured.newly_seen.items())}
    reached = {name: [x if isinstance(x, tuple) else [x] for x in places] for name, places in seen.items()}
    _measured.signal_child_process()
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=os.environ[FOLDER], delete=False) as file:
        json.dump(reached, file)


def add_reached(whole: slipcover.Slipcover, folder: Path) -> None:
    """Add what the processes of the run have written there."""
    for path in folder.glob("*.json"):
        for name, seen in json.loads(path.read_text()).items():
            whole.all_seen[name].update(x[0] if len(x) == 1 else tuple(x) for x in seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--at-least", type=float, default=0.0, metavar="PERCENT", help="else the run has failed")
    arguments, of_pytest = parser.parse_known_args()
    whole = slipcover.Slipcover(branch=True, source=PRODUCT, exclude_also=NOT_RUN)
    run = [sys.executable, "-m", "pytest", *of_pytest]
    with tempfile.TemporaryDirectory() as folder:
        with subprocess.Popen(run, env={**os.environ, FOLDER: folder}) as tests:
            whole.get_coverage()  # looks through the product for what there is to reach, while the tests start
            status = tests.wait()
        add_reached(whole, Path(folder))
    report: dict[str, Any] = whole.get_coverage()
    slipcover.print_coverage(report, skip_covered=True, missing_width=80)
    reached = report["summary"]["percent_covered"]
    print(f"{reached:.2f} % of lines and branches were reached")
    if status == 0 and reached < arguments.at_least:
        print(f"at least {arguments.at_least:g} % must be")
        return 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
