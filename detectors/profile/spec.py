"""The specification of a backbone. No torch here: the command line builds one before it loads anything heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from detectors.images.prepare import DECODINGS, RESIZES, Decoding, Filter, InputSize, Resize, shape_of

EMBEDDED = Path(__file__).parent.parent / "weights" / "embedded.safetensors"
WEIGHTS = frozenset({"embedded", "hub", "random"})
"""Names of weights; all others are paths."""
Precision = Literal["float32", "bfloat16", "int8"]
FIT_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
"""Those that a fit can choose: an int8 network is made of a fitted profile (`detectors.profile.quantize`)."""
EngineName = Literal["auto", "torch", "compile", "openvino", "cudagraphs"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
"""What runs the network when images are scored; see `detectors.engines.engine`."""


class BackboneError(ValueError):
    """A backbone cannot be built as asked; the message says what to change."""


@dataclass(frozen=True)
class BackboneSpec:
    """A timm network, its weights, the layers that are pooled and the input it takes.

    weights: embedded, hub (timm's own download or `pretrained_cfg_overlay` in args), random (seeded), or the path of a
    .safetensors or .pth file. layers: indices into timm's `feature_info`, or strides: the layers with these reductions;
    both empty choose all but stride 2 (ViTs: four blocks, evenly spaced). mean, std: per channel, of pixels in [0, 1].
    input_px: side of a square input, or (height, width). What is None comes from timm's data config. resize: how images
    get that size; the bars of a letterbox have the colour `mean`, which is zero to the network, like the padding of its
    own layers. args: for `timm.create_model`. grid: cells a side over which narrow layers are averaged
    (`detectors.profile.pooling`). precision: of the forward pass, by torch's autocast; features are pooled in float32
    either way. bfloat16 is faster on GPUs and on CPUs with matrix units, slower elsewhere; int8: another network, made
    of this one, gives the features (`detectors.engines.int8`). decoding: how much of an image is decoded
    (`Preparer.shrink`).

    >>> BackboneSpec("resnet50", weights="hub", strides=(4, 8, 16), input_px=224).precision
    'float32'
    """

    model: str
    weights: str
    layers: tuple[int, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    input_px: InputSize | None = None
    filter: Filter | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    strides: tuple[int, ...] = ()
    precision: Precision = "float32"
    grid: int = 1
    resize: Resize = "stretch"
    decoding: Decoding = "full"

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise BackboneError(f"resize {self.resize!r} is none of {', '.join(RESIZES)}")
        if self.decoding not in DECODINGS:
            raise BackboneError(f"decoding {self.decoding!r} is none of {', '.join(DECODINGS)}")
        if self.input_px is not None and min(shape_of(self.input_px)) < 1:
            raise BackboneError(f"an image size of {size_text(self.input_px)} px is impossible")

    @classmethod
    def embedded(cls) -> BackboneSpec:
        """The backbone that ships in the package and needs no network connection."""
        facts = json.loads(EMBEDDED.with_suffix(".json").read_text())
        del facts["source"]
        return cls.from_json({**facts, "weights": "embedded"})

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> BackboneSpec:
        """The specification that to_json() wrote."""
        lists = {name: tuple(facts[name]) for name in ("layers", "mean", "std", "strides") if name in facts}
        size = facts.get("input_px")
        return cls(**{**facts, **lists, "input_px": tuple(size) if isinstance(size, list) else size})

    def to_json(self) -> dict[str, Any]:
        """As plain values; full decoding is left out, as in what programs wrote that knew no other."""
        facts = asdict(self)
        return facts if self.decoding != "full" else {name: of for name, of in facts.items() if name != "decoding"}


def size_text(input_px: InputSize | list[int]) -> str:
    """An input size as the command line takes it: 224, or HEIGHTxWIDTH.

    >>> size_text((160, 320))
    '160x320'
    """
    return str(input_px) if isinstance(input_px, int) else "x".join(map(str, input_px))
