"""Memory of the process, for programs that score batch after batch."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from malloc.h
_KEPT_BYTES = 1 << 30
"""More than the largest block: one layer of MobileNetV2 has 308 MB for 64 images of 224 px."""


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
