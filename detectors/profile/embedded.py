"""The network of the embedded weights, built without timm: MobileNetV3-Small up to its widest layer.

timm and torchvision take half as long to load as torch, and every `layerwatch run` with the embedded backbone waited
for them. This is the same network: the names of its tensors, its operations and their order are those that timm gives
`mobilenetv3_small_100` with `features_only=True`, so features and digest are equal bit for bit (a test compares them).

Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv 1905.02244, table 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

LAYERS = {16: 0, 24: 1, 48: 3, 576: 5}
"""Channels of the layers that are given -> the block each of them leaves: strides 4, 8, 16 and 32."""

# (kernel, inner channels, stride, channels out, squeezed channels or 0) of each block after the first
_BLOCKS = (
    ((3, 72, 2, 24, 0), (3, 88, 1, 24, 0)),
    ((5, 96, 2, 40, 24), (5, 240, 1, 40, 64), (5, 240, 1, 40, 64)),
    ((5, 120, 1, 48, 32), (5, 144, 1, 48, 40)),
    ((5, 288, 2, 96, 72), (5, 576, 1, 96, 144), (5, 576, 1, 96, 144)),
)


class FeatureInfo:
    """What timm says of the layers that a network gives."""

    def channels(self) -> list[int]:
        return list(LAYERS)

    def reduction(self) -> list[int]:
        return [4, 8, 16, 32]


class EmbeddedNetwork(nn.Module):
    """(N, 3, H, W) normalised images -> one (N, C, H / r, W / r) map of each layer."""

    feature_info = FeatureInfo()
    args: ClassVar[Mapping[str, Any]] = {"out_indices": (1, 2, 3, 4), "features_only": True, "pretrained": False}
    """With which timm builds the same; the layer of stride 2 is left out."""
    config: ClassVar[Mapping[str, Any]] = {"input_size": (3, 224, 224), "interpolation": "bicubic"}
    """Of what timm says of the input, what `embedded.json` leaves open."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = _Norm(16, nn.Hardswish)
        stages: list[nn.Module] = [nn.Sequential(_Separable(16, squeezed=8))]
        channels = 16
        for stage, sizes in enumerate(_BLOCKS):
            activation = nn.ReLU if stage == 0 else nn.Hardswish
            blocks = []
            for kernel, inner, stride, out, squeezed in sizes:
                blocks.append(_Inverted(channels, inner, out, _depthwise(inner, kernel, stride), squeezed, activation))
                channels = out
            stages.append(nn.Sequential(*blocks))
        stages.append(nn.Sequential(_Widening(channels, 576)))
        self.blocks = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        hidden, maps = self.bn1(self.conv_stem(images)), []
        for i, block in enumerate(self.blocks):
            hidden = block(hidden)
            if i in LAYERS.values():
                maps.append(hidden)
        return maps


class _Norm(nn.BatchNorm2d):
    """Batch normalisation and, if any, an activation; its tensors have the names of the normalisation."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__(channels)
        self.act = activation()

    def forward(self, given: Tensor) -> Tensor:
        normalised: Tensor = self.act(super().forward(given))
        return normalised


class _Squeeze(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, given: Tensor) -> Tensor:
        weights = self.conv_expand(nn.functional.relu(self.conv_reduce(given.mean((2, 3), keepdim=True))))
        return given * nn.functional.hardsigmoid(weights)


class _Separable(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = _depthwise(channels, 3, 2), _Norm(channels, nn.ReLU)
        self.se = _Squeeze(channels, squeezed)
        self.conv_pw, self.bn2 = _pointwise(channels, channels), _Norm(channels)

    def forward(self, given: Tensor) -> Tensor:
        given = self.se(self.bn1(self.conv_dw(given)))
        out: Tensor = self.bn2(self.conv_pw(given))
        return out


class _Inverted(nn.Module):
    def __init__(
        self,
        channels: int,
        inner: int,
        out: int,
        depthwise: nn.Conv2d,
        squeezed: int,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.conv_pw, self.bn1 = _pointwise(channels, inner), _Norm(inner, activation)
        self.conv_dw, self.bn2 = depthwise, _Norm(inner, activation)
        self.se = _Squeeze(inner, squeezed) if squeezed else nn.Identity()
        self.conv_pwl, self.bn3 = _pointwise(inner, out), _Norm(out)
        self._adds = depthwise.stride == (1, 1) and channels == out

    def forward(self, given: Tensor) -> Tensor:
        hidden = self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(given)))))
        out: Tensor = self.bn3(self.conv_pwl(hidden))
        return out + given if self._adds else out


class _Widening(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.bn1 = _pointwise(channels, out), _Norm(out, nn.Hardswish)

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv(given))
        return out


def _pointwise(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1, bias=False)


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
