"""torch's own compiler (inductor) in the place of its eager mode: on a CPU with a C++ compiler, or on CUDA.

What it makes is machine code of this machine, in a package that is kept: a minute to make, a second to load.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detectors.engines.engine import EngineError
from detectors.engines.graph import Graph, example, first_line, name_of
from detectors.profile.files import cache_folder

if TYPE_CHECKING:
    from detectors.profile.backbone import Backbone

MOST_IMAGES = 2**16
"""Of a batch: a bound that the compiler asks for."""


class CompiledEngine:
    """From pixels to pooled features in one compiled package."""

    name = "compile"

    def __init__(self, backbone: Backbone) -> None:
        """Compile the backbone, or load the package that was kept.

        Raises:
            EngineError: there is no compiler, or it cannot compile this network.
        """
        folder = cache_folder()
        self._kept = folder and folder / f"{name_of(backbone)}-{backbone.device.type}.pt2"
        self._run = self._loaded() or self._made(backbone)

    def features(self, pixels: Tensor) -> Tensor:
        """See `Engine.features`."""
        features: Tensor = self._run(pixels)
        return features

    def forget(self) -> None:
        """Remove the package that is kept."""
        with suppress(OSError):
            if self._kept is not None:
                self._kept.unlink()

    def _loaded(self) -> Any:
        """None where nothing is kept, or it is damaged."""
        if self._kept is None or not self._kept.exists():
            return None
        with suppress(OSError, RuntimeError):
            return _load(self._kept)
        return None

    def _made(self, backbone: Backbone) -> Any:
        inputs = (example(backbone).to(backbone.device),)
        sizes = ({0: torch.export.Dim("images", min=1, max=MOST_IMAGES)},)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler about itself
            path = Path(folder) / "network.pt2"
            try:
                with torch.no_grad():
                    graph = torch.export.export(Graph(backbone).eval(), inputs, dynamic_shapes=sizes)
                    torch._inductor.aoti_compile_and_package(graph, package_path=str(path))
                run = _load(path)
            except Exception as error:  # whatever a compiler says of a network, or of its absence
                raise EngineError(f"compile cannot compile {backbone.spec.model!r}: {first_line(error)}") from error
            if self._kept is not None:
                with suppress(OSError):  # no room, or no right to write there: made again next time
                    _keep(path, self._kept)
        return run


def _load(path: Path) -> Any:
    return torch._inductor.aoti_load_package(str(path))


def _keep(made: Path, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        new.write_bytes(made.read_bytes())
        os.replace(new, path)
