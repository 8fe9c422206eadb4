"""timm comes without torch's compiler, and leaves it to others who want it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import importlib.util
import sys
from detectors.profile.lean_timm import timm, without_compiler
heavy = {"torch._dynamo", "triton", "sympy"} & sys.modules.keys()
assert not heavy, heavy
timm.create_model("mobilenetv3_small_100", features_only=True)
import torch
with without_compiler():
    assert torch.compiler.disable(print) is print
    assert torch.compiler.disable(recursive=False)(print) is print
assert "torch._dynamo" not in sys.modules
assert importlib.util.find_spec("torch._dynamo").origin
"""


@pytest.mark.slow
def test_timm_is_loaded_without_torchs_compiler_which_others_may_still_load() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=200)
    assert (found.returncode, found.stderr) == (0, "")
