"""Vectors in Redis: what the scripts and other versions of this program read."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitor.store.packing import packed_vector, tables_of


@given(st.lists(st.integers(0, 2**20), min_size=24, max_size=24))
def test_packing_is_little_endian_u32_and_reversible(counts: list[int]) -> None:
    packed = packed_vector(np.array(counts, dtype=np.uint32))
    assert list(struct.unpack("<24I", packed)) == counts
    read = tables_of([("key", {b"cam-1": packed})])
    assert read["key"]["cam-1"].tolist() == counts
