"""Memory of the process, for programs that score batch after batch."""

from __future__ import annotations

import ctypes
import mmap
import re
from contextlib import suppress
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from malloc.h
_KEPT_BYTES = 1 << 30
"""More than the largest block: one layer of MobileNetV2 has 308 MB for 64 images of 224 px."""
_CLEAN_LIBRARY = re.compile(r"^(\w+)-(\w+) r-.p .*\.so\b.*\n(?:[A-Z].*\n)*?Anonymous: +0 kB$", re.MULTILINE)
"""A mapping in /proc/PID/smaps that cannot be written, and all of whose pages are those of the file."""


def keep_freed_memory() -> bool:
    """Let the C library keep what a batch frees for the next one; returns whether it does (glibc only).

    By default glibc returns freed activations to the system after every batch, and the kernel clears the same pages
    for the next one: a fifth to a third of the time of a small backbone on a CPU, more than half for a larger one. The
    process stays at its peak memory, which the next batch would reach again. All threads share one arena: the arenas
    of threads other than the first hold no block above 64 MiB and would map it for every batch.
    Programs call this before they start threads; libraries do not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # in this order: with the second alone, a C library that refuses the first would map every block separately
    kept = mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    return bool(kept and mallopt(_M_ARENA_MAX, 1))


def release_freed_memory() -> None:
    """Give what was freed and kept back to the system (glibc only): after something large has gone for good."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def release_library_pages() -> None:
    """Unmap the pages of libraries that nobody has written to; those in use come back from the kernel's cache (Linux).

    Loading a library touches far more than running it: torch as PyPI has it loads CUDA's, some 190 MB, on a machine
    without a GPU too. The kernel drops pages that no process has mapped before all others when memory is short.
    Programs call this while none of their threads loads a library: a page that is being relocated must not be dropped.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    with suppress(OSError):  # a system without /proc
        for start, end in re.findall(_CLEAN_LIBRARY, Path("/proc/self/smaps").read_text()):
            madvise(int(start, 16), int(end, 16) - int(start, 16), mmap.MADV_DONTNEED)
