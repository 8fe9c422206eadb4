"""A network whose weights and activations are 8-bit integers: another network than the one it was made of.

Its features differ from float ones by far more than two engines do, so a profile that uses it has learned and
calibrated with it, and no other engine can take its place. It travels in the profile's folder, as one file:

    xml, weights    uint8, the graph in the format of OpenVINO (IR)
    check           (T, D) float32, the features of test images where the profile was made

Processors differ in how they add products of 8-bit integers. `check` finds out where that shows.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from detectors.engines.engine import EngineError, surfaces
from detectors.engines.graph import first_line
from detectors.engines.openvino import Compiled, openvino
from detectors.profile.files import NETWORK, replace_file

VALUE_BYTES = 1
"""Of what most layers give."""


class Int8Engine:
    """Runs a quantised network by OpenVINO, on the CPU.

    content: of the file. digest: of the content, 32 hex digits. check: (T, D), as in the file.
    """

    name = "openvino in int8"

    def __init__(self, content: bytes) -> None:
        """Compile what a file holds.

        Raises:
            EngineError: OpenVINO is not installed, or the content is damaged.
        """
        self.content = content
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        try:
            tensors = load(content)
            xml, weights, self.check = (tensors[name] for name in ("xml", "weights", "check"))
            package = openvino()
            model = package.Core().read_model(xml.numpy().tobytes(), package.Tensor(weights.numpy()))
            self._network = Compiled(model, VALUE_BYTES)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise EngineError(f"the quantised network cannot be used: {first_line(error)}") from error

    @classmethod
    def of(cls, model: Any, shape: tuple[int, int]) -> Self:
        """Of a quantised `openvino.Model` that takes images of this (height, width)."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.xml"
            openvino().save_model(model, path, compress_to_fp16=False)
            parts = {"xml": path, "weights": path.with_suffix(".bin")}
            tensors = {name: torch.from_numpy(np.fromfile(part, np.uint8)) for name, part in parts.items()}
        check = Compiled(model, VALUE_BYTES)(_test_pixels(shape))
        return cls(save({**tensors, "check": check.contiguous()}))

    @classmethod
    def read(cls, folder: Path, digest: str) -> Self:
        """Of the file in a profile's folder.

        Raises:
            EngineError: it is missing, is not the one with that digest, or OpenVINO is not installed.
        """
        path = folder / NETWORK
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: {error.strerror}; the profile's network is quantised and lies there") from error
        if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
            raise EngineError(f"{path}: is damaged, or of another profile; copy the whole folder again")
        return cls(content)

    def save(self, folder: Path) -> None:
        """Write the file into the folder of a profile."""
        replace_file(folder / NETWORK, self.content)

    def features(self, pixels: Tensor) -> Tensor:
        """See `Engine.features`."""
        return self._network(pixels)

    def forget(self) -> None:
        """Nothing is kept but the profile's own file."""

    def checked(self, shape: tuple[int, int]) -> Tensor:
        """(T, D) the features of the test images on this machine: what `check` has from where they were first made."""
        return self.features(_test_pixels(shape))


def _test_pixels(shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.stack(surfaces(*shape)))
