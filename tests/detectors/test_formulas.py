"""Every formula against numbers worked out by hand or by another route."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detectors.evaluation import metrics
from detectors.methods.diffusion import PublishedLFDN, diffuse, paper_levels, training_level
from detectors.methods.dlsr import Spaces, choose_level, layer_statistics
from detectors.methods.dlsr_paper import PaperLR, PaperMFsim, PaperMSE, standardise
from detectors.methods.knn import KNN
from detectors.methods.mahalanobis import gaussian, shrink, squared_distance
from detectors.methods.pca import PCAResidual
from detectors.profile.calibration import Calibration


def test_training_levels_run_from_clean_to_noise() -> None:
    levels = training_level(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(levels, torch.tensor([0.99, 0.5, 0.01]))


def test_the_schedule_of_the_paper_ends_at_the_known_level() -> None:
    levels = paper_levels()
    assert levels.shape == (100,)
    assert levels[0] == pytest.approx(1 - 0.0015)
    # betas linear in their roots: prod (1 - beta_t), computed in another way
    roots = np.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 100)
    assert float(levels[-1]) == pytest.approx(np.exp(np.log1p(-(roots**2)).sum()))
    assert float(levels[-1]) == pytest.approx(0.41, abs=0.01)


def test_diffusion_keeps_unit_variance_and_mixes_by_the_level() -> None:
    mixed = diffuse(torch.tensor([[2.0, 0.0]]), torch.tensor([0.25]), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(mixed, torch.tensor([[1.0, math.sqrt(0.75)]]))


def test_the_published_network_starts_at_zero_and_has_the_published_size() -> None:
    network = PublishedLFDN(720)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(86e6, rel=0.03)
    small = PublishedLFDN(4, width=8, blocks=2)
    assert torch.equal(small(torch.randn(3, 4), torch.tensor([7])), torch.zeros(3, 4))


def test_standardising_is_per_image_and_layer() -> None:
    z = standardise(torch.tensor([[1.0, 3.0, 10.0, 20.0, 30.0]]), (2, 3))
    half = math.sqrt(0.5)
    torch.testing.assert_close(z, torch.tensor([[-half, half, -1.0, 0.0, 1.0]]), rtol=1e-4, atol=1e-4)


def test_the_published_scores_follow_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, features = (2, 2, 2), torch.tensor([[1.0, 3.0, 5.0, 2.0, 0.0, 4.0]])
    clean = standardise(features, layers)
    answers = {"final": clean * torch.tensor([1, 1, -1, -1, 1, 1.0]), "first": torch.zeros_like(clean)}
    for score, expected in (
        (PaperMSE, 4.0),  # only the second layer, turned round: (2 * half)^2 twice
        (PaperLR, 3.0 - 4.0),
        (PaperMFsim, -(-1.0 + 1.0) / 2),  # layers 2 and 3; the first is left out
    ):
        monkeypatch.setattr(score, "reconstruct", lambda self, z, weights="final": answers[weights])
        assert float(score(layers).score(features)) == pytest.approx(expected, abs=1e-3)


def test_fisher_joins_ranks_and_goes_on_beyond_the_largest_error() -> None:
    held = torch.tensor([[1.0, 2.0, 3.0, 4.0]])  # one space, one layer, n = 4
    errors = torch.tensor([0.5, 2.0, 3.5, 8.0]).view(4, 1, 1)
    p = torch.tensor([5 / 5, 4 / 5, 2 / 5, 1 / 5 * 4 / 8], dtype=torch.float64)
    torch.testing.assert_close(layer_statistics(errors, held), (-2 * p.log()).view(4, 1))


def test_statistics_add_over_spaces_not_over_layers() -> None:
    held = torch.tensor([[1.0], [1.0], [1.0], [1.0]])  # 2 spaces, 2 layers, n = 1
    errors = torch.tensor([[[0.0, 2.0], [2.0, 2.0]]])  # beyond the largest by a factor of 2: 1/2 becomes 1/4
    expected = torch.tensor([[-2 * math.log(0.25), -4 * math.log(0.25)]], dtype=torch.float64)
    torch.testing.assert_close(layer_statistics(errors, held), expected)


def test_the_level_follows_turned_images_only_where_they_decide() -> None:
    assert choose_level({0.3: 0.7, 0.1: 0.6, 0.03: 0.5}, 100) == 0.3
    assert choose_level({0.3: 0.52, 0.1: 0.5, 0.03: 0.5}, 100) == 0.1
    assert choose_level({}, 0) == 0.1


def test_the_spaces_are_what_they_are_called() -> None:
    reference = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 4, 5.0]) + 7
    spaces = Spaces((2, 3)).fit(reference)
    bn, rz, sw = spaces(reference)
    torch.testing.assert_close(bn[:, :2].mean(1), torch.zeros(4000), atol=1e-3, rtol=0)
    torch.testing.assert_close(rz.std(0), torch.ones(5), atol=1e-3, rtol=0)
    for part in torch.split(sw, [2, 3], dim=1):  # 1 % ridge: just below the identity
        torch.testing.assert_close(part.T @ part / 4000, torch.eye(part.shape[1]), atol=0.05, rtol=0)


def test_mahalanobis_is_the_textbook_distance() -> None:
    mean, whiten = torch.tensor([1.0, 0.0]).double(), torch.diag(torch.tensor([0.5, 1.0])).double()
    distance = squared_distance(torch.tensor([[3.0, 2.0]]), mean, whiten)
    assert float(distance) == pytest.approx(1.0 + 4.0)


def test_the_fitted_gaussian_inverts_its_shrunk_covariance() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).double() @ torch.diag(
        torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    )
    mean, whiten = gaussian(features)
    centred = features - mean
    shrunk = shrink(centred, centred.T @ centred / 50)
    torch.testing.assert_close(whiten @ whiten.T @ shrunk, torch.eye(4).double(), atol=1e-9, rtol=0)


def test_ledoit_wolf_agrees_with_its_definition_sample_by_sample() -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(2)).double() * torch.tensor([1.0, 2.0, 5.0]).double()
    x -= x.mean(0)
    c = x.T @ x / 30
    m = c.diagonal().mean()
    d = (c - m * torch.eye(3)).square().sum() / 3
    b = sum((torch.outer(row, row) - c).square().sum() for row in x) / (3 * 30 * 30)
    r = min(1.0, float(b / d))
    torch.testing.assert_close(shrink(x, c), (1 - r) * c + r * m * torch.eye(3).double())


def test_knn_gives_the_distance_to_the_kth_normalised_neighbour() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    scores = KNN((2,), k=2).fit(bank).score(torch.tensor([[5.0, 0.0]]))
    assert float(scores) == pytest.approx(math.sqrt(2))


def test_the_pca_residual_is_the_part_off_the_line() -> None:
    along = torch.linspace(-1, 1, 101)
    line = torch.stack([along, along], dim=1)
    detector = PCAResidual((2,), explained=0.9).fit(line)
    sd = float(along.double().std())
    # (1, -1) in units of the deviation lies wholly off the diagonal: its length squared is 2 / sd^2
    scores = detector.score(torch.tensor([[1.0, -1.0], [0.5, 0.5]]))
    torch.testing.assert_close(scores, torch.tensor([2 / sd**2, 0.0], dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_metrics_on_scores_that_fit_on_a_hand() -> None:
    id_scores, ood_scores = np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 4.0])
    assert metrics.auroc(id_scores, ood_scores) == pytest.approx((2.5 + 4) / 8)
    assert metrics.auroc(np.array([1.0, 2.0]), np.array([0.0, 2.0, 3.0])) == pytest.approx((0.0 + 0.75 + 1.0) / 3)
    assert metrics.fpr_at_tpr(id_scores, ood_scores, 0.75) == 0.5
    assert metrics.fpr_at_tpr(id_scores, ood_scores, 0.5) == 0.0
    # thresholds 4, 3, 2: precision 1, 1/2, 2/4; recall .5, .5, 1
    assert metrics.aupr(id_scores, ood_scores) == pytest.approx(0.5 * 1 + 0.5 * 0.5)


def test_bootstrap_intervals_hold_the_estimate_and_repeat() -> None:
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(0, 1, 300), rng.normal(1, 1, 200)
    first, second = (metrics.measure(id_scores, ood_scores) for _ in range(2))
    assert first == second
    interval, auroc = first["auroc_interval"], first["auroc"]
    assert isinstance(interval, tuple)
    assert isinstance(auroc, float)
    assert interval[0] < auroc < interval[1]


def test_metrics_refuse_nothing_and_nan() -> None:
    for broken in (np.array([]), np.array([np.nan])):
        with pytest.raises(ValueError, match="scores"):
            metrics.auroc(np.array([1.0]), broken)


def test_p_values_of_tied_scores_go_by_the_jitter() -> None:
    jitters = np.array([10, 20, 30, 40], dtype=np.uint64)
    calibration = Calibration.of(np.full(4, 7.0), jitters, two_sided=False)
    p = calibration.p_values(np.array([7.0, 7.0, 7.0, 6.0, 8.0]), np.array([5, 25, 40, 0, 0], dtype=np.uint64))
    np.testing.assert_allclose(p, [5 / 5, 3 / 5, 2 / 5, 5 / 5, 1 / 5])


def test_p_values_count_the_pairs_of_value_and_jitter_that_are_not_smaller() -> None:
    rng = np.random.default_rng(0)
    values, jitters = rng.integers(0, 9, (2, 50)).astype(float), rng.integers(0, 2**63, (2, 50), dtype=np.uint64)
    known = sorted(zip(values[0].tolist(), jitters[0].tolist(), strict=True))
    values[1, 0], jitters[1, 0] = known[20]  # the same image
    values[1, 1:20] += 0.5  # between two values
    p = Calibration.of(values[0], jitters[0], two_sided=False).p_values(values[1], jitters[1])
    pairs = zip(values[1].tolist(), jitters[1].tolist(), strict=True)
    assert p.tolist() == [(1 + sum(other >= pair for other in known)) / 51 for pair in pairs]
