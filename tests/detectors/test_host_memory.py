"""What a batch frees stays with the process for the next one."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BATCHES = """
import resource, sys, threading
import numpy as np
from detectors.profile.host_memory import keep_freed_memory

def batch():
    return [np.ones(100 * 2**20, np.uint8) for _ in range(3)] and None

def batches():
    batch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        batch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

assert sys.argv[1] == "as it is" or keep_freed_memory()
thread = threading.Thread(target=batches)  # the daemon does not score in its first thread either
thread.start()
thread.join()
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", BATCHES, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_the_kernel_clears_no_page_again_for_the_next_batch() -> None:
    assert page_faults("as it is") > 500  # five times 300 MB in pages of 4 KiB, or of 2 MiB
    assert page_faults("kept") < 100


PAGES = """
import numpy as np
from pathlib import Path
from detectors.profile.host_memory import release_library_pages

def mapped_kb():
    rows = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(rows["Rss"].split()[0]) - int(rows["Anonymous"].split()[0])

before = mapped_kb()
release_library_pages()
print(mapped_kb() / before)
np.testing.assert_allclose(np.linalg.inv(np.diag([2.0, 4.0])), np.diag([0.5, 0.25]))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel tells nothing of its mappings")
def test_libraries_work_on_after_their_pages_were_unmapped() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 0.5
