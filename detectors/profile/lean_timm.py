"""timm, loaded without torch's compiler, which nothing here uses.

timm imports torchvision, one of whose operators asks `torch._dynamo` whether it could be compiled, and marks some
functions of its own as not to be compiled. Either loads the compiler, with Triton and SymPy: 150 MB for as long as the
process lives, and more than half of the time that timm takes to load. So both find a stand-in while they load.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

COMPILER, ASKED = "torch._dynamo", "torch._dynamo.utils"


def _unchanged(function: Any = None, *_: object, **__: object) -> Any:
    """`torch.compiler.disable` where there is nothing to disable: with or without brackets."""
    return function if function is not None else _unchanged


def _no(*_: object) -> bool:
    return False


@contextmanager
def without_compiler() -> Iterator[None]:
    """While it lasts, `torch._dynamo` is a stand-in that leaves functions as they are; not if it is loaded already."""
    if COMPILER in sys.modules:
        yield
        return
    compiler, asked = ModuleType(COMPILER), ModuleType(ASKED)
    stand_ins: dict[str, Callable[..., Any]] = {"disable": _unchanged, "allow_in_graph": _unchanged}
    vars(compiler).update(stand_ins, utils=asked, __path__=[])
    vars(asked).update(is_compile_supported=_no)
    sys.modules |= {COMPILER: compiler, ASKED: asked}
    try:
        yield
    finally:
        for name, module in ((COMPILER, compiler), (ASKED, asked)):
            if sys.modules.get(name) is module:
                del sys.modules[name]


with suppress(AttributeError, ImportError), without_compiler():  # a release that asks for more loads it all, below
    importlib.import_module("timm.data.config")

import timm  # noqa: E402
from timm.data.config import resolve_model_data_config  # noqa: E402

__all__ = ["resolve_model_data_config", "timm"]
