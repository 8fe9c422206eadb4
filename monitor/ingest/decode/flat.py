"""msgpack read value by value: whoever wrote it cannot make its reader build more than the bytes that came.

`msgpack.unpackb` builds what the bytes describe: 32 MiB of nested empty lists become 2 GB of objects. Here containers
are opened only where the format has one; anything else must be a plain value, and unknown values are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack

T = TypeVar("T")


def _families() -> dict[int, str]:
    """First byte of a value -> its kind, by the msgpack specification."""
    ranges = {
        "int": [(0x00, 0x7F), (0xCC, 0xD3), (0xE0, 0xFF)],
        "map": [(0x80, 0x8F), (0xDE, 0xDF)],
        "list": [(0x90, 0x9F), (0xDC, 0xDD)],
        "str": [(0xA0, 0xBF), (0xD9, 0xDB)],
        "nil": [(0xC0, 0xC0)],
        "bool": [(0xC2, 0xC3)],
        "bytes": [(0xC4, 0xC6)],
        "extension": [(0xC7, 0xC9), (0xD4, 0xD8)],
        "float": [(0xCA, 0xCB)],
    }
    return {byte: kind for kind, pairs in ranges.items() for low, high in pairs for byte in range(low, high + 1)}


_KIND_OF: Mapping[int, str] = _families()


class FlatError(ValueError):
    """The bytes are not what the reader expects; the message says what was found and where."""


class FlatReader:
    """Reads one msgpack message in order.

    >>> reader = FlatReader(msgpack.packb([3, "a"]))
    >>> reader.open_list(), reader.plain(int), reader.plain(str), reader.end()
    (2, 3, 'a', None)
    """

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._unpacker = msgpack.Unpacker(max_buffer_size=len(message) or 1)
        self._unpacker.feed(message)

    @property
    def kind(self) -> str:
        """Kind of the next value: int, map, list, str, nil, bool, bytes, extension or float."""
        at = self._unpacker.tell()
        if at >= len(self._message):
            raise FlatError(f"the message ends at byte {at}, before its last value")
        return _KIND_OF.get(self._message[at], "unknown")

    def open_list(self) -> int:
        """Enter a list; its length, which may be a lie: check it before reading so many values.

        Raises:
            FlatError: the next value is no list.
        """
        return self._open("list", "read_array_header")

    def open_map(self) -> int:
        """Enter a map; the number of its pairs, otherwise like `open_list`."""
        return self._open("map", "read_map_header")

    def plain(self, *types: type[T]) -> T:
        """The next value, of one of these types (int, str, bytes, float).

        Raises:
            FlatError: it is of another kind.
        """
        names = [kind.__name__ for kind in types]
        if self.kind not in names:
            raise FlatError(f"expected {' or '.join(names)}, found {self.kind} at byte {self._unpacker.tell()}")
        value: T = self._read("unpack")
        return value

    def skip(self) -> None:
        """Pass over the next value, whatever it is, without building it."""
        self._read("skip")

    def end(self) -> None:
        """Raises FlatError where bytes follow the message."""
        if (at := self._unpacker.tell()) != len(self._message):
            raise FlatError(f"{len(self._message) - at} bytes follow the end of the message at byte {at}")

    def _open(self, kind: str, how: str) -> int:
        if self.kind != kind:
            raise FlatError(f"expected a {kind}, found {self.kind} at byte {self._unpacker.tell()}")
        length: int = self._read(how)
        return length

    def _read(self, how: str) -> Any:
        at = self._unpacker.tell()
        try:
            return getattr(self._unpacker, how)()
        except msgpack.OutOfData as error:
            raise FlatError(f"the message ends inside the value that begins at byte {at}") from error
        except (ValueError, msgpack.UnpackException) as error:  # no UTF-8; nested too deeply
            raise FlatError(f"unreadable value at byte {at}: {str(error) or type(error).__name__}") from error
