"""`seen`: does a profile tell images that it has learned from, encoded anew, and new images of the same kind apart?

    PYTHONPATH=. python benchmarks/replays.py --data DIR [-o FILE]

Of each set seven tenths are learned (tiles: the good training images; new ones are the good test images). The share of
images that are more alike to a learned one than 95 of 100 learned images are to the others; of all learned images,
encoded as PNG and as JPEG, and of the new ones. Then what the signal adds to the time that scoring takes.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectors.images.decode import Limits, decode
from detectors.images.likeness import BITS, Hashes, Learned, hashes_of
from detectors.images.prepare import AnyImage, Preparer
from detectors.images.reading import read_images
from detectors.images.tones import Tones
from detectors.profile.backbone import Backbone
from detectors.profile.calibration import Calibration, jitter
from detectors.profile.spec import BackboneSpec

SETS = ("cifar10_test", "gtsrb", "dtd10", "mnist", "chest_xray28", "tiles_good_train")
NEW_OF = {"tiles_good_train": "tiles_good_test"}
MOST = 3000
Pixels = NDArray[np.uint8]


def images_of(path: Path) -> list[Pixels]:
    images = [Tones().rgb(decode(image, Limits()).values)[0] for _, image in read_images([path])]
    order = np.random.default_rng(0).permutation(len(images))[:MOST]
    return [images[i] for i in order]


def encoded(image: Pixels, kind: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=quality)
    return buffer.getvalue()


def fingerprints(prepare: Preparer, images: list[Any]) -> Hashes:
    return np.concatenate(
        [
            hashes_of([prepare(image).pixels for image in images[start : start + 64]])
            for start in range(0, len(images), 64)
        ]
    )


def of_set(name: str, data: Path, prepare: Preparer) -> dict[str, float]:
    images = images_of(data / f"{name}.tar")
    cut = len(images) if name in NEW_OF else len(images) * 7 // 10
    learned, new = images[:cut], images_of(data / f"{NEW_OF[name]}.tar") if name in NEW_OF else images[cut:]
    own = fingerprints(prepare, learned)
    known = Learned.of(own)
    among = known.likeness(own, among=True)
    calibration = Calibration.of(among, jitter([b"%d" % i for i in range(cut)]), two_sided=False)

    def share(hashes: Hashes) -> float:
        keys = jitter([b"new %d" % i for i in range(len(hashes))])
        return float((calibration.p_values(known.likeness(hashes), keys) <= 0.05).mean())

    row = {"learned": cut, "new": len(new), "alike_among_learned": float((among > 0).mean())}
    versions: dict[str, list[AnyImage]] = {
        "png": [encoded(image, "PNG", 0) for image in learned],
        "jpeg90": [encoded(image, "JPEG", 90) for image in learned],
        "jpeg75": [encoded(image, "JPEG", 75) for image in learned],
    }
    for version, given in versions.items():
        hashes = fingerprints(prepare, given)
        row[version] = share(hashes)
        row[f"{version}_bits"] = float(np.median(np.bitwise_count(hashes ^ own).sum(axis=1)))
    row["fresh"] = share(fingerprints(prepare, list(new)))
    return row


def cost(backbone: Backbone, prepare: Preparer) -> dict[str, float]:
    """Microseconds an image, the best of ten: the backbone, a fingerprint, a search among so many."""
    rng = np.random.default_rng(0)
    pixels = [prepare(rng.integers(0, 256, (*prepare.shape, 3), dtype=np.uint8)).pixels for _ in range(64)]
    stacked, hashes = np.stack(pixels), hashes_of(pixels)

    def best(work: Any) -> float:
        times = []
        for _ in range(10):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times) / len(pixels) * 1e6

    found = {"backbone": best(lambda: backbone.features(stacked)), "fingerprint": best(lambda: hashes_of(pixels))}
    for count in (2000, 20_000):
        known = Learned.of(rng.integers(0, 2**62, (count, BITS // 64), dtype=np.uint64))
        found[f"search {count}"] = best(lambda known=known: known.likeness(hashes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/replays.json"))
    options = parser.parse_args()
    backbone = Backbone(BackboneSpec.embedded(), "cpu")
    prepare = backbone.preparer(Limits(), Tones())
    print("share of images with p <= .05 by `seen`; in brackets the median of differing bits")
    found: dict[str, Any] = {}
    for name in options.sets:
        found[name] = row = of_set(name, options.data, prepare)
        cells = (f"{kind} {row[kind]:6.1%} ({row[f'{kind}_bits']:.0f})" for kind in ("png", "jpeg90", "jpeg75"))
        alike = f"alike among learned {row['alike_among_learned']:.1%}"
        print(f"{name:18}{row['learned']:6.0f}  {'  '.join(cells)}  new {row['fresh']:6.1%}  {alike}", flush=True)
    found["microseconds"] = cost(backbone, prepare)
    print("microseconds an image: " + ", ".join(f"{name} {value:.0f}" for name, value in found["microseconds"].items()))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
