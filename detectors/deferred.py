"""Modules that are loaded when they are first used: heavy ones, which most commands never need."""

from __future__ import annotations

import importlib
from typing import Any


class Deferred:
    """Stands for a module; safe to share between threads.

    SciPy takes as long to load as all that `check-config` needs.

    >>> numbers = Deferred("fractions")
    >>> numbers.Fraction(1, 2)
    Fraction(1, 2)
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """What the module has under that name; kept, so that the second use costs nothing."""
        if attribute[0] == "_":  # whoever looks at everything, as pytest and inspect do, looks for these
            raise AttributeError(f"{self._name} is loaded for its public names alone, not for {attribute}")
        found = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, found)
        return found
