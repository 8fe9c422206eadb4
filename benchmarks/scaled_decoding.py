"""What scaled decoding sees of sensor faults beside full decoding: AUROC of large camera images, spoilt and encoded.

    python benchmarks/scaled_decoding.py --data FOLDER [--images 60] [--json FILE]

FOLDER holds tar files of images. Of each set a camera of WIDTH x HEIGHT pixels is made: `tiles` are mosaics of factory
images at their own resolution, with the noise and the grain that their camera gave them; the photographs of the other
sets are enlarged and get the noise of a sensor, sd SENSOR_SD. Every frame is spoilt at its full size and encoded as
JPEG, as a camera does it. The properties of the same bytes are then measured under each way of decoding.

A cell is the AUROC of the p-values of one property, normal frames against spoilt ones; `best` is the highest of all
properties. `bytes_per_pixel` sees much of what decoding no longer shows, as long as the camera's encoder keeps its
quality: `best but bytes` is without it. `sizes` are the same scenes by a camera of two thirds as many pixels a side,
which nobody should take for another scene; properties that name the size are left out.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faults_and_drift import Pixels, Values, blur, contrast, darker, dead_rows, less_blue, noise, salt
from detectors.evaluation.metrics import auroc
from detectors.images.prepare import DECODINGS, Preparer
from detectors.images.properties import NAMES, TWO_SIDED
from detectors.images.reading import read_images
from detectors.profile.calibration import Calibration, jitter

WIDTH, HEIGHT, QUALITY, SENSOR_SD = 1280, 720, 90, 2.0
INPUT_PX = 96
REFERENCE = 150
CAMERAS = ("tiles", "cifar10", "dtd", "flowers")
FILES = {"tiles": "tiles_good_train", "cifar10": "cifar10_test", "dtd": "dtd10", "flowers": "flowers5"}
Found = dict[str, dict[str, dict[str, float]]]
Spoil = Callable[[Pixels, float, np.random.Generator], Pixels]
FAULTS: dict[str, tuple[Spoil, tuple[float, ...]]] = {
    "noise, sd": (noise, (2, 4)),
    "blur, sd px": (blur, (0.8, 1.5)),
    "dead rows": (dead_rows, (1, 4)),
    "salt, share": (salt, (0.0002, 0.001)),
    "darker, times": (darker, (0.9, 0.7)),
    "contrast, times": (contrast, (0.9, 0.7)),
    "blue, times": (less_blue, (0.95, 0.9)),
}
SHOWN = ("noise", "sharpness", "row_jump", "clipped_high", "bytes_per_pixel", "best", "best but bytes")
OF_SIZE = ("width", "height", "bytes_per_pixel")


@dataclass(frozen=True)
class Camera:
    """Frames of one set, always the same for the same number."""

    name: str
    pictures: list[Pixels]

    @classmethod
    def of(cls, name: str, data: Path) -> Camera:
        """Of a tar file of `data`."""
        found = [
            np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
            for _, image in read_images([data / f"{FILES[name]}.tar"])
        ]
        order = np.random.default_rng(0).permutation(len(found))
        return cls(name, [found[i] for i in order])

    def frame(self, number: int) -> Pixels:
        """(HEIGHT, WIDTH, 3)."""
        rng = np.random.default_rng(number)
        if self.name == "tiles":
            return self._mosaic(rng)
        picture = Image.fromarray(self.pictures[number % len(self.pictures)])
        large = np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        return noise(large, SENSOR_SD, rng)

    def _mosaic(self, rng: np.random.Generator) -> Pixels:
        frame, top = np.empty((HEIGHT, WIDTH, 3), np.uint8), 0
        while top < HEIGHT:
            left, high = 0, HEIGHT - top
            while left < WIDTH:
                tile = self.pictures[rng.integers(len(self.pictures))]
                high = min(high, tile.shape[0])
                wide = min(WIDTH - left, tile.shape[1])
                frame[top : top + high, left : left + wide] = tile[:high, :wide]
                left += wide
            top += high
        return frame


def encoded(frame: Pixels, shape: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(frame)
    if picture.size != shape:
        picture = picture.resize(shape, Image.Resampling.BICUBIC)
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def groups(camera: Camera, count: int) -> Iterator[tuple[str, list[bytes]]]:
    """(name, JPEGs) of what is scored, `normal` first."""
    frames = [camera.frame(REFERENCE + i) for i in range(count)]
    yield "normal", [encoded(frame) for frame in frames]
    yield "sizes", [encoded(frame, (WIDTH * 2 // 3, HEIGHT * 2 // 3)) for frame in frames]
    for name, (spoil, strengths) in FAULTS.items():
        for strength in strengths:
            rng = np.random.default_rng(1)
            yield f"{name} {strength:g}", [encoded(spoil(frame, strength, rng)) for frame in frames]


def p_values(measured: Values, reference: Values) -> Values:
    """(N, P) p-values of (N, P) properties, by (M, P) of the reference."""
    ties, known = jitter([b"%d" % i for i in range(len(measured))]), jitter([b"r%d" % i for i in range(len(reference))])
    columns = [
        Calibration.of(reference[:, i], known, side).p_values(measured[:, i], ties) for i, side in enumerate(TWO_SIDED)
    ]
    return np.stack(columns, axis=1)


def row(normal: Values, spoilt: Values, left_out: tuple[str, ...]) -> dict[str, float]:
    """{property: AUROC} of (N, P) p-values, and the best one of them."""
    of = {
        name: round(float(auroc(-normal[:, i], -spoilt[:, i])), 3)
        for i, name in enumerate(NAMES)
        if name not in left_out
    }
    best = max(of, key=lambda name: of[name])
    but_bytes = max((name for name in of if name != "bytes_per_pixel"), key=lambda name: of[name])
    return {**of, "best": of[best], "best but bytes": of[but_bytes]}


def measure(camera: Camera, count: int) -> Found:
    """{group: {decoding: {column: AUROC}}}."""
    preparers = {decoding: Preparer(INPUT_PX, decoding=decoding) for decoding in DECODINGS}

    def measured(images: list[bytes]) -> dict[str, Values]:
        return {name: np.stack([of(image).properties for image in images]) for name, of in preparers.items()}

    references = measured([encoded(camera.frame(i)) for i in range(REFERENCE)])
    normal: dict[str, Values] = {}
    found: Found = {}
    for name, images in groups(camera, count):
        of = {decoding: p_values(values, references[decoding]) for decoding, values in measured(images).items()}
        normal = normal or of
        left_out = OF_SIZE if name == "sizes" else ()
        found[name] = {decoding: row(normal[decoding], of[decoding], left_out) for decoding in DECODINGS}
    del found["normal"]
    return found


def show(camera: str, found: Found) -> None:
    print(f"\n{camera}: AUROC, " + " / ".join(DECODINGS))
    print(f"{'':22}" + "".join(f"{name:>17}" for name in SHOWN))
    for name, of in found.items():
        cells = [" / ".join(f"{of[d][c]:.2f}" if c in of[d] else "-" for d in DECODINGS) for c in SHOWN]
        print(f"{name:22}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--cameras", nargs="+", choices=CAMERAS, default=CAMERAS)
    arguments.add_argument("--images", type=int, default=60, help="of each fault")
    arguments.add_argument("--json", type=Path, default=Path("results/scaled_decoding.json"))
    options = arguments.parse_args()
    began, result = time.perf_counter(), {}
    for name in options.cameras:
        result[name] = measure(Camera.of(name, options.data), options.images)
        show(name, result[name])
    print(f"took {time.perf_counter() - began:.0f} s")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
