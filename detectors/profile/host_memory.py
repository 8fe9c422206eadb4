"""Memory of the process, for whoever scores batch after batch."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from malloc.h
_KEPT_BYTES = 1 << 30
"""More than the largest block: one layer of MobileNetV2 has 308 MB for 64 images of 224 px."""


def keep_freed_memory() -> bool:
    """Let the C library keep what a batch frees for the next one; whether it could (glibc only).

    By default glibc hands the freed activations back to the system after every batch and the kernel clears the same
    pages again for the next: a fifth to a third of the time of a small backbone on a CPU, more than half of a larger
    one's. The process stays at its high-water mark, where the next batch would bring it again. All threads share one
    arena, because those of other threads than the first hold no block above 64 MiB and would map it each time anew.
    For programs to call before they start threads, not for libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # in this order: a C library that refuses the first would, after the second alone, map every block anew
    kept = mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    return bool(kept and mallopt(_M_ARENA_MAX, 1))
