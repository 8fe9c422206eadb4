"""Cost of the image properties beside the decode of the same image.

    python benchmarks/property_cost.py [--size 640x480] [--images 300] [--json FILE]

Decode and measurement alternate on the same images, so both feel the same load of the machine; medians are compared.
The pictures have the spectrum of photographs (amplitude 1 / f), an edge or two and sensor noise.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectors.images import properties
from detectors.images.decode import Limits, decode
from detectors.images.tones import Tones

LIMIT = 0.15


def picture(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """(H, W, 3) a picture like a photograph."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1.0
    phase = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
    cloud = np.fft.irfft2(phase / frequency, s=(height, width))
    cloud = 0.8 * cloud[:1] + 0.2 * cloud
    image = 120 + 45 * (cloud / cloud.std()) + rng.normal(0, 3, cloud.shape)
    y, x = np.mgrid[:height, :width]
    image[:, (x - width / 3) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2] += 50
    return np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--images", type=int, default=300, help="decodes and measurements per quality")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    rng, limits, found = np.random.default_rng(0), Limits(), {}
    for quality in (80, 90, 95):
        files = []
        for _ in range(5):
            buffer = io.BytesIO()
            Image.fromarray(picture(rng, width, height)).save(buffer, "JPEG", quality=quality)
            files.append(buffer.getvalue())
        times = np.zeros((2, options.images))
        for i in range(-10, options.images):  # the first ten warm caches up
            start = time.perf_counter()
            decoded = decode(files[i % 5], limits)
            pixels, _ = Tones().rgb(decoded.values)
            middle = time.perf_counter()
            properties.measure(pixels, len(files[i % 5]), decoded.mode)
            times[:, max(i, 0)] = middle - start, time.perf_counter() - middle
        decoding, measuring = np.median(times, axis=1)
        size = sum(map(len, files)) / len(files)
        found[quality] = {"bytes": size, "decode_ms": decoding * 1e3, "measure_ms": measuring * 1e3}
        print(
            f"{options.size} JPEG quality {quality} ({size / 1000:.0f} kB): decode {decoding * 1e3:.2f} ms, "
            f"properties {measuring * 1e3:.3f} ms = {measuring / decoding:.1%} (limit {LIMIT:.0%})"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
