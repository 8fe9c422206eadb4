"""Does an image nearly match one that was learned? A fingerprint of 256 bits, and the search for the nearest one.

The bits are the signs of the 256 lowest frequencies of the model's input at 32 x 32 pixels, green, without the mean (a
perceptual hash by the discrete cosine transform; Zauner, "Implementation and benchmarking of perceptual image hash
functions", 2010, with more bits). A sign survives what changes all pixels a little: another encoding or quality, other
exposure, another size. In two different images half of the signs agree, in those of one static camera nearly all; so
what counts as unusually alike is left to the calibration.

Measured with `benchmarks/replays.py`: after JPEG at quality 75, 3 to 16 bits of 256 differ (medians of six sets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NAME = "seen"
"""The signal: `Learned.likeness`. One-sided: only too much is unusual."""
SIDE = 32
BITS = 256
WAVES = 23
"""Frequencies down and across among which the BITS lowest are."""
MAX_LEARNED = 20_000
"""Fingerprints kept, thinned evenly: 640 kB, and 25 microseconds to search."""
NEAR = 32
"""Differing bits up to which images count as alike: no two of 2,000 CIFAR-10 images differ in fewer than 50."""
NEAR_IN_WORD = 16
"""Of the 64 bits compared first: NEAR over all have 8 there, four standard deviations (2.4) below this."""
COMPARED = 1 << 16
"""Pairs of fingerprints at a time: half a megabyte for one of their words, which stays in a core's cache."""
FLAT = 2.0
"""Levels, of the largest frequency: below it signs are noise, and an even area resembles any other."""

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]


def hashes_of(pixels: Sequence[NDArray[np.uint8]]) -> Hashes:
    """(N, 4) fingerprints of N images (H, W, 3) of one size; zeros for images that show nothing."""
    step = max(1, min(pixels[0].shape[:2]) // (2 * SIDE))
    # green, as most of luma: to weigh three colours would take longer than all the rest
    green = np.stack([image[::step, ::step, 1] for image in pixels]).astype(np.float32)
    down, across = _cosines(green.shape[1]), _cosines(green.shape[2])
    chosen = (down @ green @ across.T).reshape(len(green), -1).take(_lowest(), axis=1)
    words = np.ascontiguousarray(np.packbits(chosen > 0, axis=1)).view(np.uint64)
    words[np.abs(chosen).max(axis=1) < FLAT * SIDE] = 0
    return words


@dataclass(frozen=True)
class Learned:
    """The fingerprints of the images that a profile has learned from: (M, 4), none of an image that shows nothing.

    >>> rng = np.random.default_rng(0)
    >>> hashes = hashes_of(rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    >>> Learned.of(hashes[:2]).likeness(hashes).tolist()
    [1.0, 1.0, 0.0]
    """

    hashes: Hashes

    @classmethod
    def of(cls, hashes: Hashes) -> Learned:
        """Of (N, 4) fingerprints, thinned evenly to MAX_LEARNED."""
        kept = hashes[hashes.any(axis=1)]
        return cls(np.ascontiguousarray(kept[:: -(-len(kept) // MAX_LEARNED) or 1]))

    def beside(self, measured: Floats, hashes: Hashes, among: bool = False) -> Floats:
        """(N, P) properties -> (N, P + 1): the likeness of the images after them."""
        return np.column_stack([measured, self.likeness(hashes, among)])

    def likeness(self, hashes: Hashes, among: bool = False) -> Floats:
        """(N,) share of bits that (N, 4) fingerprints have in common with the nearest one; 0 if more than NEAR differ.

        Args:
            among: the images are among the learned ones: each is compared with all but one that equals it.
        """
        first, nearest = np.ascontiguousarray(self.hashes[:, 0]), np.full(len(hashes), BITS)
        learned = max(1, len(first))
        step = max(1, COMPARED // learned)
        for start in range(0, len(hashes), step):
            part = hashes[start : start + step]
            near = np.bitwise_count(first ^ part[:, :1]) <= NEAR_IN_WORD
            images, near = np.divmod(np.flatnonzero(near), learned)  # three times as fast as nonzero
            differing = np.bitwise_count(self.hashes[near] ^ part[images]).sum(axis=1, dtype=np.int64)
            if among:
                equal = np.flatnonzero(differing == 0)
                differing[equal[np.unique(images[equal], return_index=True)[1]]] = BITS
            np.minimum.at(nearest, start + images, differing)
        return np.where((nearest <= NEAR) & hashes.any(axis=1), 1 - nearest / BITS, 0.0)


@lru_cache(maxsize=16)
def _cosines(samples: int) -> NDArray[np.float32]:
    """(WAVES, samples): averages `samples` values over SIDE cells, and takes the cosine transform of these."""
    edges = np.linspace(0, samples, SIDE + 1)
    places = np.arange(samples)
    overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    cells = np.maximum(overlap, 0) * SIDE / samples
    waves = np.sqrt(2 / SIDE) * np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(WAVES)[:, None] / SIDE)
    cosines: NDArray[np.float32] = (waves @ cells).astype(np.float32)
    return cosines


@lru_cache(maxsize=1)
def _lowest() -> NDArray[np.intp]:
    """(BITS,) places of the lowest frequencies but the mean, dealt out evenly to the four words of a fingerprint."""
    down, across = np.indices((WAVES, WAVES))
    order = np.argsort(down + across + down / SIDE, axis=None, kind="stable")[1 : BITS + 1]
    return np.concatenate([order[word::4] for word in range(4)])
