"""Where the first picture of a file ends: whether the file is cut, and whether more pictures follow."""

from __future__ import annotations

import re
from typing import Literal

PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""The next marker in entropy-coded data, where 0xff is followed by 0x00 or by a restart marker (T.81, B.1.1)."""
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA


def first_end(image: bytes, name: str) -> int | None:
    """Offset behind the first picture of a file; None where the file ends before its picture.

    Of a TIFF: behind the directory of its first picture, which most writers put last.
    """
    return {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff}[name](image)


def is_followed(image: bytes, name: str) -> bool:
    """Whether another picture of the same format follows behind the first one, as some phones and senders do."""
    start = {"JPEG": JPEG_START, "PNG": PNG_START, "WEBP": b"RIFF"}[name]
    if image.find(start, len(start)) < 0:  # nearly always, and found at the speed of memory
        return False
    end = first_end(image, name)
    return end is not None and image.find(start, end) >= 0


def _jpeg(image: bytes) -> int | None:
    at = 2
    while at + 4 <= len(image):
        marker = image[at + 1]
        if image[at] != 0xFF or marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker == _JPEG_END:
            return at + 2
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
        if marker == _JPEG_SCAN:
            found = _JPEG_MARKER.search(image, at)
            if found is None:
                return None
            at = found.start()
    return at + 2 if image[at : at + 2] == b"\xff\xd9" else None


def _png(image: bytes) -> int | None:
    at = len(PNG_START)
    while at + 12 <= len(image):
        end = at + 12 + int.from_bytes(image[at : at + 4], "big")
        if image[at + 4 : at + 8] == b"IEND":
            return end if end <= len(image) else None
        at = end
    return None


def _webp(image: bytes) -> int | None:
    size = int.from_bytes(image[4:8], "little")
    end = 8 + size + size % 2  # chunks are padded to even sizes
    return min(end, len(image)) if len(image) >= 8 + size else None


def _tiff(image: bytes) -> int | None:
    order: Literal["little", "big"] = "little" if image[:2] == b"II" else "big"
    # TIFF 6.0, section 2; BigTIFF, whose version is 43, has wider numbers
    start, width, count_width, entry = (8, 8, 8, 20) if b"+" in image[2:4] else (4, 4, 2, 12)
    at = int.from_bytes(image[start : start + width], order)
    entries = int.from_bytes(image[at : at + count_width], order)
    end = at + count_width + entries * entry + width
    return end if len(image) >= max(end, start + width) else None
