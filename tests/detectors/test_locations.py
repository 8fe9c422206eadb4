"""The distance of a place to what is normal there, against NumPy and on drawn features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from detectors.methods import locations
from detectors.methods.locations import Locations

HEIGHT, WIDTH, CHANNELS = 5, 7, 4


def features(seed: int, count: int) -> torch.Tensor:
    """(count, HEIGHT, WIDTH, CHANNELS): every place has its own mean, every channel its own scale."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(HEIGHT, WIDTH, CHANNELS, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, HEIGHT, WIDTH, CHANNELS, generator=generator)
    return (places + 0.3 * noise) * torch.tensor([1.0, 20.0, 0.05, 3.0])


@pytest.mark.parametrize(("max_values", "size"), [(10**6, 1), (200, 2), (100, 3)])
def test_distances_are_those_of_the_formula_also_where_cells_share_a_covariance(
    max_values: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "MAX_VALUES", max_values)
    local, new = features(0, 80), features(1, 3)
    fitted = Locations((CHANNELS,)).fit(local)
    learned = local[:60].double().numpy()
    mean = learned.mean(axis=0)
    z = (learned - mean) / (learned - mean).std(axis=(0, 1, 2))
    expected = np.empty((3, HEIGHT, WIDTH))
    for y, x in np.ndindex(HEIGHT, WIDTH):
        top, left = y // size * size, x // size * size
        cell = z[:, top : top + size, left : left + size].reshape(-1, CHANNELS)
        inverse = np.linalg.inv(cell.T @ cell / len(cell) + locations.RIDGE * np.eye(CHANNELS))
        off = (new[:, y, x].double().numpy() - mean[y, x]) / (learned - mean).std(axis=(0, 1, 2))
        expected[:, y, x] = np.einsum("nc,cd,nd->n", off, inverse, off)
    found = fitted.unusual(new) * fitted.learned["unit"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=5e-3)


def test_one_in_twenty_new_normal_images_reaches_one_and_a_changed_place_goes_beyond() -> None:
    fitted = Locations((CHANNELS,)).fit(features(0, 1200))
    new = features(1, 1000)
    # the quantile of 300 held-out images: its true share is Beta(16, 285), beyond .1 once in 10,000
    assert 0.01 < float((fitted.unusual(new).flatten(1).amax(dim=1) >= 1).float().mean()) < 0.1
    new[:, 3, 2, 2] += 0.2
    changed = fitted.unusual(new)
    assert (changed[:, 3, 2] > 1).all()
    assert (changed.flatten(1).argmax(dim=1) == 3 * WIDTH + 2).float().mean() > 0.99


def test_a_saved_state_gives_the_same_map_bit_for_bit() -> None:
    fitted = Locations((CHANNELS,)).fit(features(0, 80))
    restored = Locations((CHANNELS,)).restore(load(save(fitted.state())))
    assert torch.equal(restored.unusual(features(1, 5)), fitted.unusual(features(1, 5)))


def test_features_that_never_vary_give_finite_maps_that_see_a_change() -> None:
    fitted = Locations((CHANNELS,)).fit(torch.ones(40, HEIGHT, WIDTH, CHANNELS))
    assert (fitted.unusual(torch.ones(2, HEIGHT, WIDTH, CHANNELS)) == 0).all()
    changed = fitted.unusual(2 * torch.ones(2, HEIGHT, WIDTH, CHANNELS))
    assert torch.isfinite(changed).all()
    assert (changed > 1).all()
