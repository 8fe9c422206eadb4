"""Memory of the process, for whoever scores batch after batch."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_KEPT_BYTES = 1 << 30
"""More than the activations of a batch: 64 images of 224 px need some 200 MB."""


def keep_freed_memory() -> bool:
    """Let the C library keep what a batch frees for the next one; whether it could (glibc only).

    By default glibc hands the freed activations back to the system after every batch and the kernel clears the same
    pages again for the next: a fifth to a third of the time of a small backbone on a CPU. The process stays at its
    high-water mark, where the next batch would bring it again. For programs to call, not for libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # in this order: a C library that refuses the first would, after the second alone, map every block anew
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
