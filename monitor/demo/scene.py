"""What the demo's cameras see: one part on a moving belt under changing light, drawn with NumPy and Pillow.

A picture is lit like a real one: the part's height map is turned and shifted, its normals are shaded by one lamp, it
casts a soft shadow on the belt, and the sensor adds shot noise before JPEG. About 4 ms each on one core.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from monitor.demo.parts import CANVAS_PX, FOREIGN_KIND, KINDS, Plane, Sprite, cloud, make_sprite

__all__ = ["FOREIGN_KIND", "KINDS", "Light", "draw", "jpeg", "light_at"]

SIZE_PX = CANVAS_PX
RAIL_PX = 15
BELT_PX = 1024
"""Length of the belt before it repeats."""
JPEG_QUALITY = 88
NOISE_PX = 512


@dataclass(frozen=True, slots=True)
class Light:
    """The lamp over the line. level: 1 = nominal. warmth: -1 bluish to 1 reddish. angle: where it stands, radians."""

    level: float = 1.0
    warmth: float = 0.0
    angle: float = -2.2


def light_at(time_s: float, phase: float) -> Light:
    """The light of a hall over time: clouds before the windows (47 s), a lamp that warms and cools (31 s).

    phase: in [0, 1), different for each line.
    """
    cloud = np.sin(2 * np.pi * (time_s / 47.0 + phase))
    lamp = np.sin(2 * np.pi * (time_s / 31.0 + 2.3 * phase))
    return Light(1.0 + 0.10 * cloud + 0.03 * lamp, 0.5 * lamp + 0.3 * cloud, -2.2 + 0.25 * lamp)


def draw(rng: np.random.Generator, kind: str, light: Light = Light(), smear: float = 0.0) -> NDArray[np.uint8]:
    """(SIZE_PX, SIZE_PX, 3) picture of one part; the same generator state gives the same one.

    Args:
        kind: one of KINDS, or FOREIGN_KIND.
        smear: grease on the lens, 0 = clean, 1 = most of the picture is blurred and veiled.

    Raises:
        KeyError: no such kind.
    """
    sprite = make_sprite(kind)
    turn, scale, at = rng.normal(0, 0.09), rng.normal(1.0, 0.015), rng.normal(0, 5, 2)
    scene = _belt_view(rng)
    _place(scene, sprite, light, turn, scale, at)
    picture = _expose(scene, light, rng)
    return _through_grease(picture, smear) if smear > 0 else picture


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """The picture as the camera sends it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _turned(plane: Image.Image, turn: float, scale: float, at: NDArray[np.float64]) -> Image.Image:
    """The plane as the camera sees it: turned, scaled, and moved by `at` pixels from the centre."""
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    centre = SIZE_PX / 2
    x, y = centre + at
    to_sprite = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)
    return plane.transform((SIZE_PX, SIZE_PX), Image.Transform.AFFINE, to_sprite, Image.Resampling.BILINEAR)


def _place(scene: Plane, sprite: Sprite, light: Light, turn: float, scale: float, at: NDArray[np.float64]) -> None:
    """Put the lit part and its shadow into `scene` (3, n, n), in place."""
    height = np.asarray(_turned(sprite.height, turn, scale, at))
    planes = _turned(sprite.cover, turn, scale, at).split()
    cover, grain, contact = (np.asarray(plane, np.float32) / 255 for plane in planes)
    tilt = np.array([np.cos(light.angle), np.sin(light.angle)])
    shadow = np.asarray(_turned(sprite.cover.getchannel(2), turn, scale, at - 7 * tilt), np.float32) / 255
    scene *= 1 - 0.58 * shadow * (1 - 0.3 * contact) - 0.20 * contact

    slope_y, slope_x = np.gradient(height + 1.2 * grain)
    upright = 1 / np.sqrt(slope_x**2 + slope_y**2 + 1)
    tilt_x, tilt_y = tilt.astype(np.float32)
    facing = (-slope_x * tilt_x - slope_y * tilt_y) * upright  # along the lamp's direction, -1 to 1
    diffuse = np.maximum(0.80 * upright + 0.60 * facing, 0)
    highlight = np.maximum(0.945 * upright + 0.327 * facing, 0)  # half-way vector between lamp and camera
    for _ in range(4):  # to the 16th power
        highlight = highlight * highlight
    # A dark hall and a bright lamp mirror in the metal: what faces the lamp is bright, flanks away from it are dark.
    sky = 0.62 + 0.38 * facing
    metal = sprite.material
    for i, colour in enumerate(metal.rgb):
        shade = colour * (0.12 + 0.68 * diffuse) * (0.5 + 1.0 * grain) * sky
        shade += metal.gloss * highlight * (0.3 + 0.7 * colour) * 0.62
        scene[i] += cover * (shade - scene[i])


def _belt_view(rng: np.random.Generator) -> Plane:
    """(3, n, n) linear light of an empty stretch of belt between its rails; a copy."""
    across, along = int(rng.integers(0, 7)), int(rng.integers(0, BELT_PX - SIZE_PX))
    return _belt()[:, across : across + SIZE_PX, along : along + SIZE_PX].copy()


@lru_cache
def _belt() -> Plane:
    """(3, SIZE_PX + 6, BELT_PX): woven rubber with wear marks, dust and side rails."""
    rng = np.random.default_rng(11)
    height, width = SIZE_PX + 6, BELT_PX
    y, x = np.mgrid[:height, :width].astype(np.float32)
    weave = np.sin((x + y) * (2 * np.pi / 9)) * np.sin((x - y) * (2 * np.pi / 9))
    worn = cloud(rng, (9, 33), (height, width))
    streaks = cloud(rng, (height // 3, 4), (height, width))
    grains = Image.fromarray(np.where(rng.random((height, width)) > 0.9985, 255, 0).astype(np.uint8))
    dust = np.asarray(grains.filter(ImageFilter.GaussianBlur(0.9)), np.float32) / 90
    speckle = rng.normal(size=(height, width)).astype(np.float32)
    tone = 1 + 0.10 * weave * (1 - 0.5 * np.abs(worn)) + 0.07 * worn + 0.05 * streaks + 0.05 * speckle + dust
    belt = np.stack([tone * c for c in (0.150, 0.205, 0.195)])
    rail = np.minimum(y, height - 1 - y)  # pixels from the nearer edge
    metal = 0.42 + 0.10 * np.sin(rail / RAIL_PX * np.pi) + 0.015 * streaks + 0.012 * speckle
    gap = np.clip((rail - RAIL_PX) / 5, 0, 1) * 0.75 + 0.25
    rails = metal * np.array([0.97, 1.0, 1.03])[:, None, None]
    return np.asarray(np.where(rail < RAIL_PX, rails, belt * gap), np.float32)


def _expose(scene: Plane, light: Light, rng: np.random.Generator) -> NDArray[np.uint8]:
    """From linear light to 8 bits: lamp, vignette, shot noise, the camera's tone curve."""
    flicker = light.level * rng.normal(1.0, 0.015)
    tint = np.array([1 + 0.05 * light.warmth, 1.0, 1 - 0.07 * light.warmth], np.float32) * np.float32(flicker)
    exposed = scene * tint[:, None, None]
    exposed *= _falloff(round(light.angle, 1))
    exposed += np.sqrt(0.00004 + 0.0011 * exposed) * _noise(rng)
    toned = np.sqrt(np.clip(exposed, 0, 1))  # close to sRGB's curve, and fast
    return np.ascontiguousarray((toned * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))


@lru_cache
def _falloff(angle: float) -> Plane:
    """(n, n) the lens darkens its corners, and the side away from the lamp is dimmer."""
    axis = np.linspace(-1, 1, SIZE_PX, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    return np.asarray((1 - 0.16 * (x**2 + y**2)) * (1 + 0.16 * (x * np.cos(angle) + y * np.sin(angle))), np.float32)


def _noise(rng: np.random.Generator) -> Plane:
    """(3, n, n) standard normal, cut anywhere out of a large sheet: drawing it afresh would cost half the time."""
    top, left = rng.integers(0, NOISE_PX - SIZE_PX, 2)
    return _noise_sheet()[:, top : top + SIZE_PX, left : left + SIZE_PX]


@lru_cache
def _noise_sheet() -> Plane:
    return np.random.default_rng(23).standard_normal((3, NOISE_PX, NOISE_PX), dtype=np.float32)


def _through_grease(picture: NDArray[np.uint8], smear: float) -> NDArray[np.uint8]:
    """Blur and veil what lies behind the smear; it grows from a finger's touch to a wiped film."""
    clean = Image.fromarray(picture)
    coarse = clean.resize((56, 56), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.6))
    soft = np.asarray(coarse.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), np.float32)
    alpha = np.clip((1.25 * smear - _grease()) * 3.0, 0, 1)[:, :, None] * np.float32(min(1.0, 0.5 + smear))
    veiled = 0.80 * soft + np.float32(34)
    seen: NDArray[np.uint8] = (picture + alpha * (veiled - picture)).clip(0, 255).astype(np.uint8)
    return seen


@lru_cache
def _grease() -> Plane:
    """(n, n) in [0, 1]: where the film reaches first (0) and last (1); streaks along a wipe."""
    rng = np.random.default_rng(31)
    axis = np.linspace(-1, 1, SIZE_PX, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    touch = np.hypot((x - 0.25) * 0.9, y + 0.15)
    wipe = Image.fromarray(cloud(rng, (48, 5), (320, 320)))
    streaks = np.asarray(wipe.rotate(28, Image.Resampling.BILINEAR).crop((48, 48, 48 + SIZE_PX, 48 + SIZE_PX)))
    field = touch + 0.16 * streaks
    return np.asarray((field - field.min()) / (field.max() - field.min()), np.float32)
