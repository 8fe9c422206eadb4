"""The parts on the belt, as height maps: each shape is a signed distance field, each surface a height above the belt.

Coordinates x and y run over [-1, 1] across a square canvas; distances are in the same unit, negative inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.float32]
Surface = NDArray[np.float32]
"""(2, n, n): height in canvas units, 0 on the belt; and how much of each point the part covers, in [0, 1]."""

CANVAS_PX = 224
OVERSAMPLING = 3
"""Shapes are computed on a finer grid and averaged down: smooth edges without any special case."""
KINDS = ("gear", "washer", "bracket", "bolt", "nut")
"""What the line makes."""
FOREIGN_KIND = "spring"
"""What never belongs on it."""


@dataclass(frozen=True)
class Material:
    """rgb: colour of scattered light, in [0, 1]. gloss: strength of mirrored light. brushed: contrast of the grain."""

    rgb: tuple[float, float, float]
    gloss: float
    brushed: float


@dataclass(frozen=True)
class Sprite:
    """A part ready to be turned and lit: planes as Pillow images, so that turning them is one fast call each."""

    height: Image.Image
    """Mode F, pixels of height."""
    cover: Image.Image
    """Mode RGB: coverage, grain of the surface, and the soft footprint that becomes shadow."""
    material: Material


@lru_cache
def make_sprite(kind: str) -> Sprite:
    """Draw a part of that kind; the same every time.

    Raises:
        KeyError: no such kind.
    """
    shape, material = _PARTS[kind]
    n = CANVAS_PX * OVERSAMPLING
    axis = np.linspace(-1 + 1 / n, 1 - 1 / n, n, dtype=np.float32)
    fine = shape(axis[None, :], axis[:, None]) * np.array([CANVAS_PX / 2, 1], np.float32)[:, None, None]
    blocks = fine.reshape(2, CANVAS_PX, OVERSAMPLING, CANVAS_PX, OVERSAMPLING)
    height, inside = np.ascontiguousarray(blocks.mean(axis=(2, 4)), dtype=np.float32)
    cover = Image.fromarray(_byte(inside))
    grain = Image.fromarray(_byte(_grain(material.brushed)))
    footprint = cover.filter(ImageFilter.GaussianBlur(5))
    return Sprite(Image.fromarray(height), Image.merge("RGB", (cover, grain, footprint)), material)


def _grain(brushed: float) -> Plane:
    """(CANVAS_PX, CANVAS_PX) around 0.5: long scratches along x, as brushing leaves them, and stains."""
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(CANVAS_PX, CANVAS_PX)).astype(np.float32)
    kernel = np.ones(24, np.float32) / np.sqrt(24)
    scratches = np.stack([np.convolve(row, kernel, mode="same") for row in noise])
    stains = cloud(rng, (9, 9), (CANVAS_PX, CANVAS_PX))
    return np.asarray(0.5 + brushed * (0.7 * scratches + 0.5 * stains), dtype=np.float32)


def cloud(rng: np.random.Generator, grid: tuple[int, int], shape: tuple[int, int]) -> Plane:
    """Smooth noise of that shape with about `grid` bumps; sd near 0.6."""
    small = Image.fromarray(rng.normal(size=grid).astype(np.float32))
    return np.asarray(small.resize(shape[::-1], Image.Resampling.BICUBIC))


def _byte(plane: Plane) -> NDArray[np.uint8]:
    clipped: NDArray[np.uint8] = np.clip(plane * 255 + 0.5, 0, 255).astype(np.uint8)
    return clipped


def _circle(x: Plane, y: Plane, radius: float, at: tuple[float, float] = (0.0, 0.0)) -> Plane:
    return np.asarray(np.hypot(x - at[0], y - at[1]) - radius, np.float32)


def _box(x: Plane, y: Plane, half: tuple[float, float], corner: float, at: tuple[float, float] = (0.0, 0.0)) -> Plane:
    dx, dy = np.abs(x - at[0]) - half[0] + corner, np.abs(y - at[1]) - half[1] + corner
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return np.asarray(outside + np.minimum(np.maximum(dx, dy), 0) - corner, np.float32)


def _hexagon(x: Plane, y: Plane, radius: float) -> Plane:
    """Flats at distance `radius` from the centre, one pair of them horizontal."""
    slanted = np.abs(x) * np.float32(np.sqrt(0.75)) + np.abs(y) * np.float32(0.5)
    return np.maximum(slanted, np.abs(y)) - np.float32(radius)


def _surface(height: NDArray[np.floating], inside: NDArray[np.floating | np.bool_]) -> Surface:
    return np.stack((height, inside)).astype(np.float32)


def _solid(distance: NDArray[np.floating], thickness: float, bevel: float) -> Surface:
    """A plate of that outline whose edge is rounded over `bevel`."""
    rim = np.clip(-distance / np.float32(bevel), 0, 1)
    rounded = np.sqrt(np.maximum(1 - (1 - rim) ** 2, 0))
    return _surface(rounded * thickness, distance < 0)


def _stack(*surfaces: Surface) -> Surface:
    """The highest of them at each point."""
    return np.asarray(np.maximum.reduce(surfaces), np.float32)


def _gear(x: Plane, y: Plane) -> Surface:
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    teeth = np.clip(1.7 * np.cos(18 * angle), -1, 1)  # clipped: flanks with flat tops and roots
    body = radius - (0.62 + 0.05 * teeth)
    bore = np.minimum(_circle(x, y, 0.13), _box(x, y, (0.045, 0.06), 0.01, (0.0, -0.14)))
    pockets = [_circle(x, y, 0.115, (0.345 * np.cos(a), 0.345 * np.sin(a))) for a in np.arange(5) * 2 * np.pi / 5]
    cut = np.minimum.reduce([bore, *pockets])
    web = _solid(np.maximum(body, -cut), 0.10, 0.03)
    rim = _solid(np.maximum(body, 0.50 - radius), 0.15, 0.035)
    hub = _solid(np.maximum(_circle(x, y, 0.22), -bore), 0.19, 0.04)
    return _stack(web, rim, hub)


def _washer(x: Plane, y: Plane) -> Surface:
    ring = np.maximum(_circle(x, y, 0.52), -_circle(x, y, 0.25))
    face = np.maximum(_circle(x, y, 0.46), -_circle(x, y, 0.30))
    return _stack(_solid(ring, 0.07, 0.06), _solid(face, 0.085, 0.03))


def _bracket(x: Plane, y: Plane) -> Surface:
    arms = np.minimum(_box(x, y, (0.62, 0.17), 0.07, (0.0, 0.40)), _box(x, y, (0.17, 0.60), 0.07, (-0.45, -0.03)))
    holes = [_circle(x, y, 0.075, at) for at in ((-0.45, -0.45), (-0.45, -0.05), (0.05, 0.40), (0.45, 0.40))]
    plate = _solid(np.maximum(arms, -np.minimum.reduce(holes)), 0.06, 0.025)
    # A pressed rib across the inner corner, as sheet-metal brackets have it.
    along, across = (x - y) * np.float32(np.sqrt(0.5)), (x + y) * np.float32(np.sqrt(0.5))
    web = np.maximum(np.maximum(np.maximum(-0.36 - x, y - 0.28), x - y + 0.42), -x - 0.62)
    rib = _box(along, across, (0.16, 0.035), 0.03, (-0.55, 0.0))
    return _stack(plate, _solid(web, 0.05, 0.02), _solid(rib, 0.12, 0.04))


def _bolt(x: Plane, y: Plane) -> Surface:
    """Lying along x, head to the left."""
    radius = np.float32(0.115)
    thread = 0.014 * np.abs(((x * 21 + y * 3) % 2) - 1) * (x > -0.08)  # slanted by the pitch
    taper = np.clip((x - 0.60) / 0.06, 0, 1) * 0.05
    profile = radius - thread - taper
    shank = np.where((x > -0.45) & (x < 0.66), profile - np.abs(y), np.float32(-1))
    inside = shank > 0
    round_height = np.sqrt(np.maximum(profile**2 - y**2, 0)) + np.float32(0.03)
    rod = _surface(np.where(inside, round_height, 0), inside)
    outline = _box(x, y, (0.10, 0.27), 0.03, (-0.53, 0.0))
    # Three faces of the hexagon are seen: one level, two falling away.
    slope = np.clip(1.25 - np.abs(y) / 0.27 * 1.0, 0.25, 0.75)
    head = _solid(outline, 0.28, 0.03)
    flange = _solid(_box(x, y, (0.025, 0.31), 0.02, (-0.41, 0.0)), 0.17, 0.02)
    return _stack(rod, _surface(head[0] * slope, head[1]), flange)


def _nut(x: Plane, y: Plane) -> Surface:
    hexagon, bore = _hexagon(x, y, 0.40), _circle(x, y, 0.22)
    body = _solid(np.maximum(hexagon, -bore), 0.20, 0.025)
    # The corners are turned off: a cone that cuts the top face in a circle.
    cone = np.clip(0.22 - (np.hypot(x, y) - 0.37) * 1.1, 0, 0.22)
    height = np.where(bore < 0.03, np.minimum(body[0], 0.16 + bore), np.minimum(body[0], cone))
    return _surface(np.maximum(height, 0), body[1])


def _spring(x: Plane, y: Plane) -> Surface:
    """A coil along x: the upper halves of its turns, and the lower ones seen between them."""
    pitch, coil, wire = 0.15, 0.24, 0.036
    length = np.abs(x) < 0.60
    planes = []
    for lean, level in ((0.5, 0.20), (-0.5, 0.06)):
        wave = x / pitch - lean * np.clip(y / coil, -1, 1) * 0.5
        near = np.abs(wave - np.round(wave)) * pitch * 0.9
        bend = np.sqrt(np.maximum(1 - (y / coil) ** 2, 0))
        section = np.sqrt(np.maximum(wire**2 - near**2, 0))
        covered = (near < wire) & (np.abs(y) < coil) & length
        planes.append(_surface(np.where(covered, section + level * bend + 0.03, 0), covered))
    hooks = [np.abs(_circle(x, y, 0.13, (side * 0.70, 0.0))) - wire for side in (-1, 1)]
    return _stack(*planes, *(_solid(hook, 0.09, wire) for hook in hooks))


_STEEL = Material((0.56, 0.57, 0.59), 0.55, 0.055)
_ZINC = Material((0.66, 0.67, 0.68), 0.65, 0.035)
_BRASS = Material((0.66, 0.54, 0.30), 0.50, 0.04)
_OXIDE = Material((0.30, 0.31, 0.34), 0.40, 0.05)

_PARTS: dict[str, tuple[Callable[[Plane, Plane], Surface], Material]] = {
    "gear": (_gear, _STEEL),
    "washer": (_washer, _ZINC),
    "bracket": (_bracket, _OXIDE),
    "bolt": (_bolt, _BRASS),
    "nut": (_nut, _STEEL),
    "spring": (_spring, _STEEL),
}
