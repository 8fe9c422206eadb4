"""Records as strangers send them, sound ones and hostile ones, each with what it must count as."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from tests.faults.rig import normal
from tests.files import png16, tiff
from tests.pictures import encoded, pictures

MAX_BYTES, MAX_PIXELS, MAX_IMAGES = 200_000, 60_000_000, 64
TIME_HEADER = "at"
YEAR_MS = 366 * 86_400_000
NPY, PACK = "application/x-npy", "application/msgpack"

_PICTURE = next(pictures(21, 1))[1]
_IMAGE = Image.fromarray(_PICTURE)
_DEEP = (_PICTURE.astype(np.uint16) * 256 + 77).astype(np.uint16)


@dataclass(frozen=True)
class Foreign:
    """One record. `becomes`: the number of its images, or the reason in its dead letter."""

    becomes: int | str
    value: bytes | None
    headers: Sequence[tuple[Any, Any]] = ()
    shift_ms: int | None = 0
    """Of its timestamp, from the usual one; None: the producer's own clock."""
    key: bytes | None = None
    """Its name by default, so that it is a stream of its own."""
    stream: str = ""
    """What the key becomes, where there is one."""


def file(kind: str, image: Image.Image = _IMAGE, **options: Any) -> bytes:
    """An image file as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    """An array file, of objects too."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, allow_pickle=True)
    return buffer.getvalue()


def claiming(shape: str, size: int, dtype: str = "|u1") -> bytes:
    """An array file whose header claims that shape, with `size` bytes behind it."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(size)


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, whose checksums are right."""
    made = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def head_of(width: int, height: int, bits: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    """The first chunk of a PNG."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG whose header claims that size."""
    whole = file("JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def webp_claiming(width: int, height: int) -> bytes:
    """An extended WebP whose canvas claims that size."""
    canvas = b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def several(kind: str, **options: Any) -> bytes:
    """A file of three pictures."""
    others = [Image.fromarray(image) for _, image in pictures(22, 2)]
    return file(kind, save_all=True, append_images=others, **options)


def pack(**columns: Any) -> bytes:
    """A msgpack map."""
    packed: bytes = msgpack.packb(columns)
    return packed


def with_mode(mode: str) -> Image.Image:
    """The picture in another mode of Pillow's."""
    return _IMAGE.convert(mode)


def two(*names: bytes | None, name: str = "content-type") -> list[tuple[str, bytes | None]]:
    """The same header several times."""
    return [(name, value) for value in names]


PNG, JPEG, WEBP, TIFF = (encoded(_PICTURE, kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF"))
BLOCK = np.stack([image for _, image in pictures(23, 5)])
EXIF = Image.Exif()
EXIF[0x0112] = 6
_ROWS = b"".join(b"\0" + row.tobytes() for row in _PICTURE)
_FLAT = b"".join(b"\0" + bytes(48 * 3) for _ in range(48))

FORMATS: dict[str, Foreign] = {
    "png": Foreign(1, PNG),
    "jpeg": Foreign(1, JPEG),
    "webp": Foreign(1, WEBP),
    "tiff": Foreign(1, TIFF),
    "jpeg progressive": Foreign(1, file("JPEG", progressive=True)),
    "jpeg cmyk": Foreign(1, file("JPEG", with_mode("CMYK"))),
    "jpeg grey": Foreign(1, file("JPEG", with_mode("L"))),
    "jpeg turned": Foreign(1, file("JPEG", exif=EXIF)),
    "jpeg with broken exif": Foreign(1, file("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)),
    "jpeg with padding": Foreign(1, JPEG + b"\0" * 500),
    "webp lossless": Foreign(1, file("WEBP", lossless=True)),
    "webp alpha": Foreign(1, file("WEBP", with_mode("RGBA"))),
    "png palette": Foreign(1, file("PNG", with_mode("P"))),
    "png palette transparent": Foreign(1, file("PNG", with_mode("P"), transparency=0)),
    "png one bit": Foreign(1, file("PNG", with_mode("1"))),
    "png alpha": Foreign(1, file("PNG", with_mode("RGBA"))),
    "png grey alpha": Foreign(1, file("PNG", with_mode("LA"))),
    "png 16 bits": Foreign(1, png16(_DEEP)),
    "png 16 bits alpha": Foreign(1, png16(np.dstack([_DEEP, _DEEP[:, :, :1]]))),
    "png 16 bits grey": Foreign(1, png16(_DEEP[:, :, 0])),
    "png of one pixel": Foreign(1, file("PNG", Image.new("L", (1, 1)))),
    "png of one row": Foreign(1, file("PNG", Image.new("L", (20_000, 1)))),
    "tiff 16 bits": Foreign(1, tiff(_DEEP)),
    "tiff 16 bits big-endian": Foreign(1, tiff(_DEEP, ">", deflate=True)),
    "tiff alpha": Foreign(1, tiff(np.dstack([_PICTURE, _PICTURE[:, :, :1]]))),
    "tiff lzw": Foreign(1, file("TIFF", compression="tiff_lzw")),
    "tiff big": Foreign(1, file("TIFF", big_tiff=True)),
    "tiff float": Foreign("depth", tiff(_PICTURE[:, :, 0].astype(np.float32))),
    "tiff signed": Foreign("depth", tiff(_PICTURE[:, :, 0].astype(np.int32))),
    "tiff 16 bits planar": Foreign("depth", tiff(_DEEP, t284=2)),
    "gif": Foreign("format", file("GIF", with_mode("P"))),
    "bmp": Foreign("format", file("BMP")),
    "ppm": Foreign("format", file("PPM")),
    "heic": Foreign("format", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)),
    "svg": Foreign("format", b'<svg xmlns="http://www.w3.org/2000/svg"><!ENTITY a "b"></svg>'),
    "json": Foreign("format", json.dumps({"image": "x"}).encode()),
    "pickle": Foreign("format", pickle.dumps({"images": [PNG]})),
    "gzip of a png": Foreign("format", gzip.compress(PNG, mtime=0)),
    "claim check where none is allowed": Foreign("format", b"s3://bucket/images/1.png"),
    "claim check of a file": Foreign("format", b"file:///etc/passwd"),
    "apng": Foreign(1, several("PNG")),
    "webp animated": Foreign(1, several("WEBP")),
    "tiff of pages": Foreign(1, several("TIFF")),
    "mpo": Foreign(1, several("MPO")),
    "two jpegs": Foreign(1, JPEG + JPEG),
    "png and a zip": Foreign(1, PNG + b"PK\x03\x04" + bytes(100)),
}
BROKEN: dict[str, Foreign] = {
    **{
        f"{kind} cut": Foreign("truncated", whole[: len(whole) * 2 // 3])
        for kind, whole in (
            ("png", PNG),
            ("jpeg", JPEG),
            ("webp", WEBP),
            ("tiff", TIFF),
            ("progressive jpeg", file("JPEG", progressive=True)),
            ("lossless webp", file("WEBP", lossless=True)),
        )
    },
    **{
        f"{kind} start only": Foreign("truncated", whole[:16])
        for kind, whole in (
            ("png", PNG),
            ("jpeg", JPEG),
            ("webp", WEBP),
            ("tiff", TIFF),
        )
    },
    "png without its end": Foreign(1, PNG[:-12]),
    "png start, jpeg body": Foreign("truncated", PNG[:8] + JPEG),
    "jpeg start, png body": Foreign("truncated", JPEG[:3] + PNG),
    "webp start, png body": Foreign("corrupt", b"RIFF" + struct.pack("<I", 10_000) + b"WEBP" + PNG),
    "png wrong checksum": Foreign("corrupt", PNG[:40] + bytes([PNG[40] ^ 1]) + PNG[41:-20] + b"\0" * 8 + PNG[-12:]),
    "png wrong deflate": Foreign(
        "corrupt", png_of(head_of(48, 48), (b"IDAT", b"\x78\x9c" + b"\xff" * 50), (b"IEND", b""))
    ),
    "png without pixels": Foreign("corrupt", png_of(head_of(48, 48), (b"IEND", b""))),
    "png of no size": Foreign("corrupt", png_of(head_of(0, 0), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))),
    "png colour of none": Foreign(
        "corrupt", png_of(head_of(48, 48, 7, 5), (b"IDAT", zlib.compress(_ROWS)), (b"IEND", b""))
    ),
    "png with more pixels than it says": Foreign(
        1, png_of(head_of(48, 48), (b"IDAT", zlib.compress(_ROWS + bytes(50_000_000))), (b"IEND", b""))
    ),
    "png text bomb": Foreign(
        "corrupt",
        png_of(
            head_of(48, 48),
            (b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000))),
            (b"IDAT", zlib.compress(_FLAT)),
            (b"IEND", b""),
        ),
    ),
    "png claims 2**31 pixels a side": Foreign("pixels", png_of(head_of(2**31 - 1, 2**31 - 1), (b"IEND", b""))),
    "png bomb": Foreign("pixels", file("PNG", Image.new("1", (20_000, 20_000)))),
    "png that needs memory": Foreign("memory", file("PNG", Image.new("1", (7700, 7700)))),
    "jpeg claims 65,535 a side": Foreign("pixels", jpeg_claiming(65_535, 65_535)),
    "webp claims 16,384 a side": Foreign("pixels", webp_claiming(16_384, 16_384)),
    "tiff claims 60,000 a side": Foreign("pixels", tiff(_PICTURE[:, :, 0], t256=60_000, t257=60_000)),
    "tiff strip outside the file": Foreign("truncated", tiff(_PICTURE, t273=10_000_000)),
    "tiff directory outside the file": Foreign("truncated", b"II*\0" + struct.pack("<I", 2**31) + bytes(100)),
    "too many bytes": Foreign("bytes", PNG + bytes(MAX_BYTES)),
    "too many bytes of headers": Foreign("bytes", PNG, [("x", bytes(MAX_BYTES))]),
    "noise": Foreign("format", np.random.default_rng(5).bytes(3000)),
}
BATCHES: dict[str, Foreign] = {
    "npy": Foreign(1, npy(_PICTURE)),
    "npy batch": Foreign(5, npy(BLOCK)),
    "npy fortran": Foreign(1, npy(np.asfortranarray(_PICTURE))),
    "npy with a layout": Foreign(5, npy(np.moveaxis(BLOCK, 3, 1)), [("content-type", f"{NPY}; layout=NCHW")]),
    "npy version 2": Foreign(5, npy(BLOCK, (2, 0))),
    "npy version 3": Foreign("npy", npy(BLOCK, (3, 0))),
    "npy 16 bits": Foreign("dtype", npy(_DEEP)),
    "npy floats": Foreign("npy", npy(_PICTURE.astype(np.float32))),
    "npy objects": Foreign("npy", npy(np.array([[{"a": 1}]], object))),
    "npy of no images": Foreign("empty", npy(BLOCK[:0])),
    "npy too many images": Foreign("images", npy(np.zeros((MAX_IMAGES + 1, 2, 2, 3), np.uint8))),
    "npy nine channels": Foreign("npy", npy(np.zeros((4, 4, 9), np.uint8))),
    "npy cut": Foreign("npy", npy(BLOCK)[:-100]),
    "npy claims a terabyte": Foreign("npy", claiming("(1000000, 1000, 1000)", 100)),
    "npy claims less than nothing": Foreign("npy", claiming("(-1, 8, 8, 3)", 192)),
    "npy claims 2**64": Foreign("npy", claiming("(18446744073709551617, 8)", 8)),
    "npy nested header": Foreign("npy", claiming("(" * 50 + ")" * 50, 8)),
    "npy header that is code": Foreign("npy", claiming("__import__('os')._exit(1)", 8)),
    "npy start only": Foreign("npy", b"\x93NUMPY"),
    "npy zip": Foreign("npy", b"PK\x03\x04" + bytes(50), [("content-type", NPY)]),
    "msgpack": Foreign(3, pack(images=[PNG, JPEG, WEBP], ids=["a", 2, "c"], timestamps=[1_772_366_400_000] * 3)),
    "msgpack of same ids": Foreign(2, pack(images=[PNG, PNG], ids=["a", "a"])),
    "msgpack with strangers' keys": Foreign(1, pack(images=[PNG], camera={"a": [[[1]]]}, ids=None)),
    "msgpack of no images": Foreign("empty", pack(images=[])),
    "msgpack too many images": Foreign("images", pack(images=[b"a"] * (MAX_IMAGES + 1))),
    "msgpack claims 2**32 images": Foreign("images", b"\x81\xa6images\xdd\xff\xff\xff\xff"),
    "msgpack claims 4 GB": Foreign("msgpack", b"\x81\xa6images\x91\xc6\xff\xff\xff\xff"),
    "msgpack nested": Foreign("msgpack", b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0"),
    "msgpack of objects": Foreign("msgpack", b"\x81\xdd\x00\x02\x00\x00" + b"\x90" * (128 << 10) + b"\x01"),
    "msgpack extension": Foreign("msgpack", b"\x81\xa6images\x91\xd4\x05\x01"),
    "msgpack bad text": Foreign("msgpack", b"\x81\xa2\xff\xfe\x01"),
    "msgpack cut": Foreign("msgpack", pack(images=[PNG])[:-10]),
    "msgpack with a rest": Foreign("msgpack", pack(images=[PNG]) + b"\x01"),
    "msgpack of one bad image": Foreign("format", pack(images=[PNG, b"no image", PNG])),
    "msgpack of an empty image": Foreign("empty", pack(images=[PNG, b""])),
    "msgpack of npy": Foreign("format", pack(images=[npy(_PICTURE)])),
    "msgpack year 300,000": Foreign("event-time", pack(images=[PNG], timestamps=[2**63])),
    "msgpack of half a surrogate": Foreign("msgpack", b"\x82\xa6images\x91\xc4\x01a\xa3ids\x91\xa3\xed\xa0\x80"),
}
ENVELOPES: dict[str, Foreign] = {
    "tombstone": Foreign("empty", None),
    "empty value": Foreign("empty", b""),
    "one byte, which begins a map": Foreign("msgpack", b"\x89"),
    "wrong type, gif": Foreign(1, PNG, [("content-type", "image/gif")]),
    "wrong type, npy": Foreign("npy", PNG, [("Content-Type", NPY)]),
    "wrong type, msgpack": Foreign("msgpack", PNG, [("content-type", PACK)]),
    "wrong type, image": Foreign("format", pack(images=[PNG]), [("content-type", "image/png")]),
    "wrong type, npy is known by its start": Foreign(1, npy(_PICTURE), [("content-type", "image/png")]),
    "type of bytes": Foreign(1, PNG, [("content-type", b"\xff\xfe\0")]),
    "type of a megabyte's length": Foreign(1, PNG, [("content-type", b"x" * 100_000)]),
    "type null": Foreign(1, PNG, [("content-type", None)]),
    "types, the last one wrong": Foreign("npy", PNG, two(b"image/png", NPY.encode())),
    "types, the last one null": Foreign(1, PNG, two(NPY.encode(), None)),
    "layout of none": Foreign("npy", npy(_PICTURE), [("content-type", f"{NPY}; layout=WHC")]),
    "headers without names": Foreign(1, PNG, [("", b"a"), ("", None), ("a", b"")]),
    "a thousand headers": Foreign(1, PNG, [(f"h{i % 7}", b"x") for i in range(1000)]),
    "header name in another script": Foreign(1, PNG, [("событие \U0001f4f7", "值".encode())]),
    "our own headers": Foreign("format", b"no image", two(b"timeout", None, name="layerwatch-reason")),
    "time": Foreign(1, PNG, [(TIME_HEADER, "2026-01-01T00:00:00Z")]),
    "time before 1970": Foreign(1, PNG, [(TIME_HEADER, "-1000")]),
    "time null": Foreign("event-time", PNG, [(TIME_HEADER, None)]),
    "time of 25 digits": Foreign("event-time", PNG, [(TIME_HEADER, "1" * 25)]),
    "time of 5,000 digits": Foreign("event-time", PNG, [(TIME_HEADER, "9" * 5000)]),
    "time in microseconds": Foreign("event-time", PNG, [(TIME_HEADER, "1767225600000000")]),
    "time not text": Foreign("event-time", PNG, [(TIME_HEADER, b"\xff\xfe")]),
    "times, the last one good": Foreign(1, PNG, two(b"noon", b"1767225600000", name=TIME_HEADER)),
    "a year ahead by its header": Foreign(1, PNG, [(TIME_HEADER, "2099-01-01T00:00:00Z")]),
    "a year ahead": Foreign(1, PNG, shift_ms=YEAR_MS),
    "a year ago": Foreign(1, PNG, shift_ms=-YEAR_MS),
    "timestamp of the year 300,000": Foreign("event-time", PNG, shift_ms=2**53),
    "timestamp negative": Foreign(1, PNG, shift_ms=-(2**42)),
    "the producer's clock": Foreign(1, PNG, shift_ms=None),
    "no key": Foreign(1, PNG, key=b"", stream="default"),
    "key of bytes": Foreign(1, PNG, key=b"\xff\xfe\x80", stream="\ufffd" * 3),
    "key too long": Foreign(1, PNG, key=b"k" * 1000, stream="k" * 200),
    "key of control characters": Foreign(1, PNG, key=b"a\0b\n<script>", stream="a\0b\n<script>"),
    "key of many scripts": Foreign(1, PNG, key="кам 值 \U0001f4f7".encode(), stream="кам 值 \U0001f4f7"),
}
RECORDS: dict[str, Foreign] = {
    "first": Foreign(1, normal()[0]), **FORMATS, **BROKEN, **BATCHES, **ENVELOPES, "last": Foreign(1, normal()[1]),
}  # fmt: skip
