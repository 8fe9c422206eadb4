"""The timm network of a specification, with its weights: built, or refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detectors.deferred import Deferred
from detectors.profile.embedded import EmbeddedNetwork
from detectors.profile.spec import EMBEDDED, BackboneError, BackboneSpec

lean = Deferred("detectors.profile.lean_timm")
Network = Any
"""A timm network built with `features_only`: an nn.Module with attributes that timm does not declare."""


def build(spec: BackboneSpec) -> tuple[Network, tuple[int, ...]]:
    """The network with its weights, and the indices of its layers."""
    indices = spec.layers or _default_layers(spec, _outline(spec))
    try:
        network = _create(spec, spec.weights == "hub", out_indices=indices)
        found = len(network.feature_info.channels())
    except (BackboneError, IndexError, KeyError) as error:
        raise BackboneError(f"backbone {spec.model!r}: layers {list(indices)} are out of range: {error}") from error
    if found != len(indices):
        raise BackboneError(f"backbone {spec.model!r}: layers {list(indices)} are out of range")
    if spec.weights not in {"hub", "random"}:
        _load(network, EMBEDDED if spec.weights == "embedded" else Path(spec.weights))
    return network, tuple(indices)


def _outline(spec: BackboneSpec) -> Network:
    """The network without values, for what it says of its layers; in a sixth of the time."""
    try:
        with torch.device("meta"):
            return _create(spec, False)
    except BackboneError:  # a constructor that computes; or, said again, one that cannot be built
        return _create(spec, False)


def _create(spec: BackboneSpec, pretrained: bool, **more: Any) -> Network:
    args = {**spec.args, **more, "features_only": True, "pretrained": pretrained}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # `random` weights must be the same when the profile is loaded
            if (spec.model, spec.weights, args) == ("mobilenetv3_small_100", "embedded", EmbeddedNetwork.args):
                return EmbeddedNetwork()
            return lean.timm.create_model(spec.model, **args)
    except Exception as error:  # timm raises whatever the model's constructor does
        known = "" if lean.timm.is_model(spec.model) else "; see timm.list_models() for the names"
        raise BackboneError(
            f"backbone {spec.model!r}: timm cannot build it with features_only=True: {error}{known}"
        ) from error


def _default_layers(spec: BackboneSpec, network: Network) -> tuple[int, ...]:
    reductions = [int(r) for r in network.feature_info.reduction()]
    if spec.strides:
        if not set(spec.strides) <= set(reductions) or len(set(reductions)) < len(reductions):
            raise BackboneError(
                f"backbone {spec.model!r}: cannot choose layers by strides {list(spec.strides)}, its layers have "
                f"strides {reductions}; give indices from 0 to {len(reductions) - 1}"
            )
        return tuple(reductions.index(stride) for stride in sorted(spec.strides))
    if len(set(reductions)) > 1:
        return tuple(i for i, reduction in enumerate(reductions) if reduction > 2)
    # timm shows only the last blocks by default; the whole model lies under `.model`.
    depth = len(getattr(network.model, "blocks", reductions)) if hasattr(network, "model") else len(reductions)
    return tuple(sorted({max(0, round(depth * (i + 1) / 4) - 1) for i in range(4)}))


def _load(network: Network, path: Path) -> None:
    try:
        state: dict[str, Any] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)  # refuses arbitrary pickles
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise BackboneError(f"weights {path}: cannot be read: {error}") from error
    own: dict[str, Tensor] = network.state_dict()
    # FeatureGetterNet (ViTs) keeps the whole model under `model.`.
    prefix = "model." if own and all(name.startswith("model.") for name in own) else ""
    # A features_only network flattens `stages.0` into `stages_0`; both spellings occur in files.
    given = {_flat(prefix + name.removeprefix(prefix)): t for name, t in state.get("state_dict", state).items()}
    fitting = {name: given[_flat(name)] for name in own if _flat(name) in given}
    missing = [n for n in own if n not in fitting and "num_batches_tracked" not in n]
    wrong = [n for n, t in fitting.items() if t.shape != own[n].shape]
    if missing or wrong:
        names = ", ".join((missing + wrong)[:3])
        raise BackboneError(
            f"weights {path}: {len(missing)} tensors missing, {len(wrong)} of wrong shape ({names}, ...)"
        )
    network.load_state_dict({**own, **{n: t.to(own[n].dtype) for n, t in fitting.items()}})


def _flat(name: str) -> str:
    return name.replace(".", "_")


def tensor_digest(tensors: Mapping[str, Tensor], n_bytes: int, beginning: str = "") -> str:
    """BLAKE2b of `beginning`, then of the names and contents of `tensors` in the order of their names, in hex."""
    digest = hashlib.blake2b(beginning.encode(), digest_size=n_bytes)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
