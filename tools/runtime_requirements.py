"""Print the part of the lock file that the product needs at run time, hashes and all: what an image installs.

The lock holds tests and tools too. What is needed is found by its own notes (`# via`): the dependencies that
pyproject.toml names, those of the extras given on the command line, and everything that came in through them.

    python tools/runtime_requirements.py [--extra demo] [--accelerator without] > runtime.txt
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ACCELERATOR = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
"""What a CPU image takes from another index: torch and torchvision are built for each other, and for the device."""


def main(argv: list[str] | None = None) -> int:
    """Write the requirements to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--extra", action="append", default=[], help="optional dependencies to include")
    parser.add_argument("--accelerator", choices=("with", "without", "only"), default="with")
    parser.add_argument("--hash", nargs="+", default=[], help="of the files that `--accelerator only` may take")
    parser.add_argument("--only", action="append", default=[], help="these packages alone, with what they need")
    args = parser.parse_args(argv)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for e in args.extra for line in project["optional-dependencies"][e])]
    blocks = locked((ROOT / "requirements/lock.txt").read_text())
    for name in sorted(closure(blocks, map(name_of, args.only or wanted))):
        is_accelerator = bool(ACCELERATOR.match(name))
        if args.accelerator == "only" and name in {"torch", "torchvision"}:
            # the other index has the same version, of other bytes
            sys.stdout.write(" ".join([blocks[name].split()[0], *(f"--hash={digest}" for digest in args.hash)]) + "\n")
        elif args.accelerator == "with" or (args.accelerator == "without" and not is_accelerator):
            sys.stdout.write(blocks[name])
    return 0


def locked(text: str) -> dict[str, str]:
    """{name: its lines} of a lock file; a package with other versions for other interpreters has them all."""
    blocks: dict[str, str] = {}
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", text):
        if block.strip() and block[0].isalnum():
            blocks[name_of(block)] = blocks.get(name_of(block), "") + block
    return blocks


def closure(blocks: dict[str, str], roots: Iterable[str]) -> set[str]:
    """The roots and everything that came into the lock through them."""
    came_through: dict[str, set[str]] = {}
    for name, block in blocks.items():
        notes = " ".join(re.findall(r"(?m)^ +# +(?:via)?(.*)$", block))
        for parent in re.findall(r"[A-Za-z0-9][A-Za-z0-9._-]*", notes):
            came_through.setdefault(name_of(parent), set()).add(name)
    found: set[str] = set()
    waiting = [name for name in roots if name in blocks]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(came_through.get(name, ()))
    return found


def name_of(requirement: str) -> str:
    """`Foo_Bar[baz]>=1` -> `foo-bar`."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[._-]+", "-", found.group()).lower() if found else ""


if __name__ == "__main__":
    sys.exit(main())
