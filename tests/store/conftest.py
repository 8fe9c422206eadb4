"""In these tests Redis itself refuses a script that touches a key which its caller has not declared."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from monitor.store.connection import Connection, Value


def pattern_of(key: str) -> str:
    """The key as a pattern of an ACL, which may hold neither blanks nor NUL."""
    return "~" + re.sub(r"[\s\0]", "?", re.sub(r"[*?\[\]\\]", r"\\\g<0>", key))


@pytest.fixture(autouse=True)
def only_declared_keys() -> Iterator[None]:
    """Run each script as a user of the server's ACL who may touch exactly the keys of that call."""
    send = Connection._send

    def send_restricted(self: Connection, label: str, commands: Sequence[Sequence[Value]]) -> list[Any]:
        if label == "read":
            return send(self, label, commands)
        user = f"script-{threading.get_ident()}"
        expanded: list[Sequence[Value]] = []
        for command in commands:  # EVALSHA or EVAL, script, number of keys, keys, arguments
            patterns = [pattern_of(str(key)) for key in command[3 : 3 + int(command[2])]]
            rights = ("ACL", "SETUSER", user, "on", "nopass", "+@all", "resetkeys", *patterns)
            expanded += [rights, ("AUTH", user, ""), command, ("AUTH", "default", "")]
        replies = send(self, label, expanded)
        steps = [replies[i::4] for i in range(4)]
        assert all(reply in {True, b"OK"} for i in (0, 1, 3) for reply in steps[i]), "the user could not be changed"
        return steps[2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "_send", send_restricted)
        yield
