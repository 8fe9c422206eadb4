"""What a batch frees stays with the process for the next one."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

BATCHES = """
import resource, sys
import numpy as np
from detectors.host_memory import keep_freed_memory

def batch():
    return [np.ones(20 * 2**20, np.uint8) for _ in range(3)] and None

assert sys.argv[1] == "as it is" or keep_freed_memory()
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", BATCHES, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_the_kernel_clears_no_page_again_for_the_next_batch() -> None:
    assert page_faults("as it is") > 1000  # five times 60 MB in pages of 4 KiB, or huge ones
    assert page_faults("kept") < 100
