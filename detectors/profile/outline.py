"""What a profile says of itself without its network: enough to check a configuration, in a tenth of a second. No torch.

Not checked here: that the backbone and the detector can be built, and that the tensors are those the manifest was
written for. `Profile.load` does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from detectors.images import properties
from detectors.methods.registry import REGISTRY
from detectors.profile.files import MANIFEST, TENSORS, ProfileError, read_manifest
from detectors.profile.spec import WEIGHTS
from detectors.versions.store import located


@dataclass(frozen=True)
class Outline:
    """The attributes of a `Profile` by which rules and conditions are checked; see there.

    conditions: {name: the outline of the profile by that calibration}.
    """

    fingerprint: str
    signals: tuple[str, ...]
    calibration_sizes: tuple[int, ...]
    dependence: tuple[float, ...]
    constant: tuple[str, ...]
    condition: str
    scores: Mapping[str, Mapping[str, float]]
    conditions: dict[str, Outline] = field(default_factory=dict)

    @property
    def learned(self) -> tuple[bool, ...]:
        """True for the OOD score and those of layers."""
        return tuple(signal == "ood" or signal.startswith("layer") for signal in self.signals)

    @property
    def two_sided(self) -> tuple[bool, ...]:
        """Whether both tails of each signal count."""
        tails = dict(zip(properties.NAMES, properties.TWO_SIDED, strict=True))
        return tuple(tails.get(signal, False) for signal in self.signals)

    @property
    def mix_signals(self) -> tuple[str, ...]:
        """The signals of the mix."""
        return tuple(signal for signal in self.signals if signal.startswith("mix"))

    def quantiles(self) -> Mapping[str, Mapping[str, float]]:
        """{signal: quantiles of its calibration scores}."""
        return self.scores


def read_outline(path: str | Path) -> Outline:
    """The outline of the profile at an address, as `Profile.load` takes it.

    Raises:
        ProfileError: missing or truncated file, unknown version or detector, or weights that are not on this machine.
    """
    folder = located(path)
    document = read_manifest(folder / MANIFEST)
    detector, weights = document["detector"], document["backbone"]["weights"]
    if detector not in REGISTRY:
        raise ProfileError(f"{folder / MANIFEST}: unknown detector {detector!r}; choose from {', '.join(REGISTRY)}")
    if weights not in WEIGHTS and not Path(weights).exists():
        raise ProfileError(f"{folder / MANIFEST}: weights {weights}: not here")
    try:
        with safe_open(folder / TENSORS, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys() if name.endswith((".values", ".sizes"))}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ProfileError(f"{folder / TENSORS}: cannot be read: {error}") from error
    try:
        own = _outline(document, document["signals"], found, "calibration.")
        for name, facts in document.get("conditions", {}).items():
            own.conditions[name] = _outline(
                {"condition": name, **facts}, document["signals"], found, f"condition.{name}."
            )
    except KeyError as error:
        raise ProfileError(f"{folder}: has no {error.args[0]!r}") from error
    return own


def _outline(
    facts: Mapping[str, Any], signals: Sequence[str], tensors: Mapping[str, NDArray[Any]], prefix: str
) -> Outline:
    """By one calibration, as `calibration.to_tensors` saves it."""
    values = tensors[f"{prefix}values"]
    sizes = tensors[f"{prefix}sizes"].tolist() if f"{prefix}sizes" in tensors else [values.shape[1]] * len(values)
    ends = [np.quantile(column[:size], (0.01, 0.99)) for column, size in zip(values, sizes, strict=True)]
    return Outline(
        fingerprint=facts["fingerprint"],
        signals=tuple(signals),
        calibration_sizes=tuple(sizes),
        dependence=tuple(facts["dependence"]),
        constant=tuple(signal for signal, (low, high) in zip(signals, ends, strict=True) if low == high),
        condition=facts.get("condition", ""),
        scores=facts.get("calibration_scores", {}),
    )
