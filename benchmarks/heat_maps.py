"""Heat maps on factory images with masks of their defects: do they show where the defect is, and what do they cost?

    python -m benchmarks.heat_maps --data DIR --models DIR [--backbones imagenet,embedded]

DIR holds tiles_good_train.tar (learned), tiles_good_test.tar, one tiles_DEFECT.tar for each defect and tiles_masks.tar
(PNG files of the same names, white where the defect is); all seen at 224 px. Prints for each defect

    pixel AUROC    of the pixels on the defect against all others, of the images with it and of good ones, at full size
    hottest on     share of images whose hottest place lies on the defect (in brackets: at most one grid cell away)
    first box on   share of images whose first box covers a pixel of the defect; without a box it does not
    image AUROC    of the value of the hottest place, as a score of the image

and what maps cost, at fit and beside a score. Writes results/heat_maps.json.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy import ndimage

import detectors
from benchmarks.ood_accuracy import specs
from detectors.evaluation.metrics import auroc
from detectors.images.prepare import Prepared
from detectors.images.reading import read_images
from detectors.profile.places import LocalSample, Places

DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
INPUT_PX, BATCH = 224, 32
PIXELS = 7
"""Every seventh pixel off the defects is compared: they are some twenty million."""

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--models", type=Path, required=True)
    arguments.add_argument("--backbones", default="imagenet,embedded")
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/heat_maps.json"))
    args = arguments.parse_args()
    masks = dict(read_masks(args.data / "tiles_masks.tar"))
    results = {}
    for name in args.backbones.split(","):
        spec = replace(specs(args.models)[name], input_px=INPUT_PX)
        options = detectors.FitOptions(backbone=spec, seed=0)
        profile = detectors.fit_profile(read_images([args.data / "tiles_good_train.tar"]), options)
        results[name] = run(profile, args.data, masks)
        show(name, results[name])
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


def read_masks(path: Path) -> Iterator[tuple[str, Mask]]:
    """(name without its ending, (H, W) True on the defect)."""
    with tarfile.open(path) as archive:
        for member in archive:
            if content := archive.extractfile(member) if member.isfile() else None:
                yield (
                    str(Path(member.name).with_suffix("")),
                    np.asarray(Image.open(io.BytesIO(content.read())).convert("L")) > 127,
                )


def run(profile: detectors.Profile, data: Path, masks: dict[str, Mask]) -> dict[str, Any]:
    """Figures of every defect, of good images, and the cost."""
    _, good = prepared(profile, data / "tiles_good_test.tar")
    good_maps = maps_of(profile, good)
    good_pixels = np.concatenate(
        [
            enlarged(heat, (image.height, image.width)).ravel()[::PIXELS]
            for heat, image in zip(good_maps, good, strict=True)
        ]
    )
    rows = {}
    for defect in DEFECTS:
        names, images = prepared(profile, data / f"tiles_{defect}.tar")
        found = maps_of(profile, images)
        rows[defect] = figures(found, [masks[name] for name in names], good_pixels)
        rows[defect]["image_auroc"] = auroc(hottest_values(good_maps), hottest_values(found))
    return {
        "defects": rows,
        "good_images_with_a_box": float(np.mean([bool(detectors.hottest(heat)) for heat in good_maps])),
        "cost": cost(profile, good),
    }


def prepared(profile: detectors.Profile, path: Path) -> tuple[list[str], list[Prepared]]:
    pairs = [(str(Path(name).with_suffix("")), profile.prepare(image)) for name, image in read_images([path])]
    return [name for name, _ in pairs], [image for _, image in pairs]


def maps_of(profile: detectors.Profile, images: Sequence[Prepared]) -> Floats:
    return np.concatenate([profile.heat_maps(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def enlarged(heat: Floats, size: tuple[int, ...]) -> Floats:
    """(h, w) -> (H, W), bilinear."""
    return np.asarray(Image.fromarray(heat).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def hottest_values(maps: Floats) -> NDArray[np.float64]:
    return maps.reshape(len(maps), -1).max(axis=1).astype(np.float64)


def figures(maps: Floats, masks: Sequence[Mask], good_pixels: Floats) -> dict[str, Any]:
    on, off, hits, near, boxed = [], [good_pixels], [], [], []
    for heat, mask in zip(maps, masks, strict=True):
        large = enlarged(heat, mask.shape)
        on.append(large[mask])
        off.append(large[~mask][::PIXELS])
        place = np.unravel_index(int(large.argmax()), large.shape)
        cell = [2 * -(-side // cells) + 1 for side, cells in zip(mask.shape, heat.shape, strict=True)]
        hits.append(mask[place])
        near.append(ndimage.maximum_filter(mask, cell)[place])
        boxed.append(any(covers(box, mask) for box in detectors.hottest(heat, most=1)))
    return {
        "images": len(maps),
        "pixel_auroc": auroc(np.concatenate(off).astype(np.float64), np.concatenate(on).astype(np.float64)),
        "hottest_on": float(np.mean(hits)),
        "hottest_near": float(np.mean(near)),
        "first_box_on": float(np.mean(boxed)),
    }


def covers(box: detectors.Region, mask: Mask) -> bool:
    height, width = mask.shape
    rows = slice(int(box.y * height), int((box.y + box.height) * height) + 1)
    columns = slice(int(box.x * width), int((box.x + box.width) * width) + 1)
    return bool(mask[rows, columns].any())


def cost(profile: detectors.Profile, images: Sequence[Prepared], rounds: int = 5) -> dict[str, float]:
    """Milliseconds an image, medians of alternating runs on the same batch; and seconds to learn from a sample.

    features_ms and sampled_ms: what a fit does with each image, without and with the sample of local features.
    """
    batch = images[:BATCH]
    pixels = np.stack([image.pixels for image in batch])
    sample = LocalSample()
    steps: dict[str, Callable[[], object]] = {
        "score_ms": lambda: profile.score(batch),
        "map_ms": lambda: profile.heat_maps(batch),
        "features_ms": lambda: profile.backbone.features(pixels),
        "sampled_ms": lambda: profile.backbone.features(pixels, sample.see),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1000 * (time.perf_counter() - start) / len(batch))
    start = time.perf_counter()
    Places.learn(profile.backbone, sample)
    learned = time.perf_counter() - start
    found = {name: float(np.median(values)) for name, values in times.items()}
    facts = profile.manifest
    return {**found, "learn_s": learned, "learned_images": len(sample.kept), "fit_s": facts["seconds"]}


def show(name: str, found: dict[str, Any]) -> None:
    table = Table(title=f"{name}, {INPUT_PX} px", title_justify="left")
    for column in ("", "images", "pixel AUROC", "hottest on (near)", "first box on", "image AUROC"):
        table.add_column(column)
    for defect, row in found["defects"].items():
        hits = f"{row['hottest_on']:.2f} ({row['hottest_near']:.2f})"
        table.add_row(
            defect,
            str(row["images"]),
            f"{row['pixel_auroc']:.3f}",
            hits,
            f"{row['first_box_on']:.2f}",
            f"{row['image_auroc']:.3f}",
        )
    Console(width=150).print(table)
    print(f"good images with a box: {found['good_images_with_a_box']:.3f}")
    print(", ".join(f"{what} {value:.1f}" for what, value in found["cost"].items()))


if __name__ == "__main__":
    main()
