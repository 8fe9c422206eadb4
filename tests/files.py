"""Image files that Pillow cannot write, byte by byte: 16-bit colour as PNG and TIFF."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


def png16(values: NDArray[np.uint16]) -> bytes:
    """(H, W) or (H, W, 1 to 4) as a 16-bit PNG: grey, grey with alpha, RGB or RGBA."""
    planes = values if values.ndim == 3 else values[:, :, None]
    height, width, channels = planes.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in planes)
    head = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    made = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def tiff(values: NDArray[Any], order: Literal["<", ">"] = "<", deflate: bool = False, **tags: int) -> bytes:
    """(H, W) or (H, W, C) as a TIFF of one strip; `tags` as t262=0 replace those by number."""
    planes = values if values.ndim == 3 else values[:, :, None]
    height, width, channels = planes.shape
    bits = planes.dtype.itemsize * 8
    strip = planes.astype(planes.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if deflate else strip
    kinds = {"u": 1, "i": 2, "f": 3}
    entries: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (bits,) * channels, 259: (8 if deflate else 1,),
        262: (1 if channels == 1 else 2,), 273: (8,), 277: (channels,), 278: (height,), 279: (len(strip),),
        284: (1,), 339: (kinds[planes.dtype.kind],) * channels,
    }  # fmt: skip
    if channels == 4:
        entries[338] = (2,)
    entries |= {int(name[1:]): (value,) for name, value in tags.items()}
    at, extra = 8 + len(strip) + len(strip) % 2, b""
    end = at + 2 + 12 * len(entries) + 4
    directory = struct.pack(order + "H", len(entries))
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'I' if tag in {273, 279} else 'H'}", *numbers)
        kind = 4 if tag in {273, 279} else 3
        if len(packed) > 4:
            packed, extra = struct.pack(order + "I", end + len(extra)), extra + packed
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return head + strip + b"\0" * (len(strip) % 2) + directory + struct.pack(order + "I", 0) + extra
