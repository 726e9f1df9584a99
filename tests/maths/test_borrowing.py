"""Moments, borrowing and shares against independent references."""

import cvxpy
import numpy as np
import pytest
import torch

from protonmf_cli.maths.augment import residual_shares
from protonmf_cli.maths.matching import match_prototypes, split_stability
from protonmf_cli.maths.moments import Moments, class_metric
from protonmf_cli.maths.support import choose_support


def rows(count, width=12, seed=0):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1


def test_moments_streamed_in_parts_are_those_of_all_images():
    pooled = rows(50)
    moments = Moments.empty(12)
    for part in pooled.split(7):
        moments.add(part.float())
    centred = pooled - pooled.mean(dim=0)
    assert torch.allclose(moments.mean, pooled.mean(dim=0))
    assert torch.allclose(moments.covariance, centred.T @ centred / 50, atol=1e-6)
    assert torch.allclose(moments.root @ moments.root.T, moments.covariance, atol=1e-10)


def test_constant_features_leave_no_direction():
    moments = Moments.empty(12)
    moments.add(rows(1).expand(40, 12) * 1e3)
    assert moments.root.shape == (12, 0)


@pytest.mark.parametrize("own_weight", [0.0, 0.05, 1.0])
def test_the_metric_is_the_weighted_variance(own_weight):
    pooled, own = rows(60), rows(9, seed=1) * 2
    moments = Moments.empty(12)
    moments.add(pooled)
    metric = class_metric(moments.root * (1 - own_weight) ** 0.5, moments.mean, own, own_weight)
    everything = torch.cat([pooled, own])
    weight = torch.cat([torch.full((60,), (1 - own_weight) / 60), torch.full((9,), own_weight / 9)]).double()
    difference = torch.linspace(-1, 2, 12, dtype=torch.float64)
    logits = everything @ difference
    mean = weight @ logits
    assert float(metric.project(difference[None]).square().sum()) == pytest.approx(float(weight @ (logits - mean) ** 2))
    assert float(metric.mean @ difference) == pytest.approx(float(mean))


def error(features, target, support):
    fitted = torch.linalg.lstsq(features[support].T, target).solution @ features[support]
    return float((target - fitted).square().sum())


def test_each_choice_is_the_best_single_addition():
    features, target = rows(30, 15, seed=2) - 2, rows(1, 15, seed=3)[0] - 2
    chosen = choose_support(features, target, [4, 7], 4)
    support = [4, 7]
    for found in chosen:
        candidates = [j for j in range(30) if j not in support]
        best = min(candidates, key=lambda j: error(features, target, [*support, j]))
        assert found == best
        support.append(found)


def test_dependent_and_empty_candidates_are_never_borrowed():
    features = rows(6, 8)
    features[2] = features[0] * 2  # depends on what is given
    features[3] = 0
    chosen = choose_support(features, rows(1, 8, seed=5)[0], [0], 10)
    assert sorted(chosen) == [1, 4, 5]
    assert choose_support(torch.zeros(4, 3), torch.ones(3), [0], 2) == []


def test_dynamic_shares_solve_their_convex_problem():
    generator = np.random.default_rng(0)
    weights, strength = generator.standard_normal(5), generator.random(5) + 0.1
    beta = cvxpy.Variable(5)
    change = cvxpy.sum_squares(cvxpy.multiply(beta, 1 / (weights * np.sqrt(strength))))
    cvxpy.Problem(cvxpy.Minimize(change), [cvxpy.sum(beta) == 1]).solve(solver=cvxpy.CLARABEL)
    found = residual_shares("dynamic", torch.from_numpy(weights), torch.from_numpy(strength))
    np.testing.assert_allclose(found.numpy(), beta.value, atol=1e-6)


@pytest.mark.parametrize("kind", ["min-norm", "dynamic", "paper"])
def test_shares_sum_to_one_and_rebuild_the_head(kind):
    weights, basis, residual = torch.tensor([2.0, -0.5, 0.7]).double(), rows(3), rows(1, seed=9)[0] - 3
    share = residual_shares(kind, weights, torch.ones(3).double())
    augmented = basis + (share / weights)[:, None] * residual
    assert float(share.sum()) == pytest.approx(1)
    assert torch.allclose(weights @ augmented, weights @ basis + residual)


def test_equal_distribution_is_refused_where_the_weights_cancel():
    cancelling = torch.tensor([1.0, -0.999, 0.0])
    assert residual_shares("paper", cancelling, torch.ones(3)) is None
    assert residual_shares("min-norm", cancelling, torch.ones(3)).sum() == pytest.approx(1)


def test_stability_follows_each_prototype_through_both_halves():
    whole = torch.eye(3)
    first = torch.eye(3)[[2, 0, 1]]
    tilted = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    assert split_stability(whole, first, tilted[[1, 2, 0]]).tolist() == pytest.approx([0.5**0.5, 1, 1])
    partner, cosine = match_prototypes(whole, first)
    assert partner.tolist() == [1, 2, 0]
    assert cosine.tolist() == [1, 1, 1]
