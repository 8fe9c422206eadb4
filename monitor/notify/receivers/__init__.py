"""One file per receiver, and the registry of them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

# httpx' own command line: nobody uses it here, and with click and rich it is half of what httpx takes to load
sys.modules.setdefault("httpx._main", cast(ModuleType, None))
