"""Soft prototypes against loops, automatic gradients, scikit-learn and planted clusters."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from protonmf_cli.maths.soft_prototypes import (
    Penalty,
    SoftPrototypes,
    error_signal,
    estimate,
    fit_weights,
    gradients,
    matches,
    objective,
    prototype_step,
    refine,
)

CLASSES = 3


def samples(seed=0, count=18, width=5, spread=0.6):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, width, generator=generator, dtype=torch.float64)
    rows = centres[labels] + spread * torch.randn(count, width, generator=generator, dtype=torch.float64)
    return rows, labels


def model_of(rows, labels, scale=2.0, prototypes=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    start = rows[torch.randperm(len(rows), generator=generator)[:prototypes]].clone()
    weights = torch.randn(CLASSES, prototypes, generator=generator, dtype=torch.float64)
    moved = start + 0.1 * torch.randn(start.shape, generator=generator, dtype=torch.float64)
    return SoftPrototypes(prototypes=moved, weights=weights, anchors=start, scale=scale)


def objective_as_a_loop(model, rows, labels, penalty):
    """The formulas of the module, one number at a time."""
    total = 0.0
    for x, y in zip(rows.tolist(), labels.tolist(), strict=True):
        near = [
            math.exp(-model.scale * sum((a - b) ** 2 for a, b in zip(x, p, strict=True)) / 2)
            for p in model.prototypes.tolist()
        ]
        q = [value / sum(near) for value in near]
        z = [sum(w * v for w, v in zip(of_class, q, strict=True)) for of_class in model.weights.tolist()]
        total -= math.log(math.exp(z[y]) / sum(map(math.exp, z)))
    flat = model.weights.flatten().tolist()
    size = sum(map(abs, flat)) if penalty.norm == "l1" else sum(w * w for w in flat) / 2
    moved = sum(v * v for v in (model.prototypes - model.anchors).flatten().tolist()) / 2
    return total / len(rows) + penalty.alpha * size + penalty.anchor * moved


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_objective_is_its_formula(norm):
    rows, labels = samples()
    penalty = Penalty(norm=norm, alpha=0.03, anchor=0.2)
    model = model_of(rows, labels)
    assert objective(model, rows, labels, penalty) == pytest.approx(
        objective_as_a_loop(model, rows, labels, penalty), rel=1e-12
    )


def test_gradients_are_those_of_the_objective():
    rows, labels = samples()
    penalty = Penalty(alpha=0.0, anchor=0.2)
    model = model_of(rows, labels)
    P, W = model.prototypes.clone().requires_grad_(), model.weights.clone().requires_grad_()
    q = (-model.scale * torch.cdist(rows, P).square() / 2).softmax(dim=1)
    loss = functional.cross_entropy(q @ W.mT, labels) + penalty.anchor / 2 * (P - model.anchors).square().sum()
    loss.backward()
    of_prototypes, of_weights = gradients(model, matches(rows, model.prototypes, model.scale), rows, labels, penalty)
    assert torch.allclose(of_prototypes, P.grad, atol=1e-12)
    assert torch.allclose(of_weights, W.grad, atol=1e-12)


def test_the_error_signal_sums_to_nothing_over_prototypes():
    """Matches sum to one, so what pulls a sample to some prototypes pushes it from others."""
    rows, labels = samples()
    model = model_of(rows, labels)
    signal, _ = error_signal(matches(rows, model.prototypes, model.scale), model.weights, labels)
    assert float(signal.sum(dim=1).abs().max()) < 1e-12
    assert float(signal.abs().max()) > 0.01


@pytest.mark.parametrize("alpha", [1e-1, 1e-3, 1e-5])
def test_l2_weights_are_those_of_a_logistic_regression(alpha):
    rows, labels = samples()
    model = model_of(rows, labels)
    q = matches(rows, model.prototypes, model.scale)
    weights, slope = fit_weights(q, labels, CLASSES, Penalty(alpha=alpha))
    assert slope <= 1e-8
    peer = LogisticRegression(C=1 / (len(rows) * alpha), fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(q.numpy(), labels.numpy())
    assert torch.allclose(weights, torch.from_numpy(peer.coef_), rtol=1e-3, atol=1e-3)


def test_l1_weights_meet_their_conditions():
    rows, labels = samples()
    model = model_of(rows, labels)
    q = matches(rows, model.prototypes, model.scale)
    alpha = 0.02
    weights, _ = fit_weights(q, labels, CLASSES, Penalty(norm="l1", alpha=alpha))
    slope = -(functional.one_hot(labels, CLASSES) - (q @ weights.mT).softmax(dim=1)).mT @ q / len(q)
    zero = weights == 0
    assert zero.any() and not zero.all()
    assert float(slope[zero].abs().max()) <= alpha + 1e-6
    assert torch.allclose(slope[~zero], -alpha * weights[~zero].sign(), atol=1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scale", [0.5, 5.0, 500.0])
def test_estimation_never_raises_the_objective(norm, scale):
    rows, labels = samples()
    penalty = Penalty(norm=norm, alpha=1e-2, anchor=1e-2)
    start = model_of(rows, labels, scale)
    found, history = estimate(start, rows, labels, penalty)
    assert len(history) > 2 and all(after <= before + 1e-12 for before, after in itertools.pairwise(history))
    assert history[-1] == objective(found, rows, labels, penalty)
    refined = refine(found, rows, labels, penalty)
    assert objective(refined, rows, labels, penalty) <= history[-1]


def test_a_step_of_the_prototypes_is_the_weighted_k_means_of_the_paper():
    """Without an anchor and where a whole step falls: p_j + sum_i g_ij (x_i - p_j) / sum_i |g_ij|, in a loop."""
    rows, labels = samples()
    model = model_of(rows, labels, scale=0.5)
    penalty = Penalty(anchor=0.0)
    found = prototype_step(model, rows, labels, penalty)
    q = matches(rows, model.prototypes, model.scale)
    z = q @ model.weights.mT
    c = z.softmax(dim=1)
    expected = model.prototypes.clone()
    for j in range(len(expected)):
        way, mass = torch.zeros(rows.shape[1], dtype=torch.float64), 0.0
        for i in range(len(rows)):
            g = sum(
                float(q[i, j] * ((labels[i] == k).double() - c[i, k]) * (model.weights[k, j] - z[i, k]))
                for k in range(CLASSES)
            )
            way += g * (rows[i] - model.prototypes[j])
            mass += abs(g)
        expected[j] += way / mass
    assert torch.allclose(found.prototypes, expected, atol=1e-10)


def test_a_step_that_cannot_fall_leaves_the_prototypes():
    rows = torch.zeros(4, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    start = SoftPrototypes(
        prototypes=torch.zeros(2, 3, dtype=torch.float64), weights=torch.zeros(3, 2, dtype=torch.float64),
        anchors=torch.zeros(2, 3, dtype=torch.float64), scale=1.0,
    )  # fmt: skip
    assert prototype_step(start, rows, labels, Penalty()) is start


def test_the_order_of_the_samples_does_not_matter():
    rows, labels = samples()
    penalty = Penalty(alpha=1e-2, anchor=1e-2)
    start = model_of(rows, labels)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))
    one, _ = estimate(start, rows, labels, penalty, rounds=5)
    other, _ = estimate(start, rows[order], labels[order], penalty, rounds=5)
    assert torch.allclose(one.prototypes, other.prototypes, atol=1e-9)
    assert torch.allclose(one.weights, other.weights, atol=1e-7)


def test_refinement_ends_where_the_gradient_does():
    rows, labels = samples()
    penalty = Penalty(alpha=1e-2, anchor=1e-1)
    found = refine(estimate(model_of(rows, labels), rows, labels, penalty)[0], rows, labels, penalty, steps=1000)
    of_prototypes, of_weights = gradients(found, matches(rows, found.prototypes, found.scale), rows, labels, penalty)
    assert float(of_prototypes.abs().max()) < 1e-4
    assert float((of_weights + penalty.alpha * found.weights).abs().max()) < 1e-4


def test_prototypes_stay_on_planted_clusters():
    generator = torch.Generator().manual_seed(3)
    centres = 4 * torch.eye(4, 6, dtype=torch.float64)
    rows = centres.repeat_interleave(8, dim=0) + 0.1 * torch.randn(32, 6, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0]).repeat_interleave(8)  # class 0 has two clusters
    start = SoftPrototypes(
        prototypes=centres + 0.5, weights=torch.zeros(3, 4, dtype=torch.float64), anchors=centres + 0.5, scale=1.0
    )
    found, _ = estimate(start, rows, labels, Penalty(alpha=1e-3, anchor=1e-3))
    found = refine(found, rows, labels, Penalty(alpha=1e-3, anchor=1e-3))
    assert (found.logits(rows).argmax(dim=1) == labels).all()
    assert matches(rows, found.prototypes, found.scale).argmax(dim=1).tolist() == [
        j for j in range(4) for _ in range(8)
    ]
    assert found.weights.argmax(dim=0).tolist() == [0, 1, 2, 0]


def test_a_larger_scale_makes_matches_crisp():
    rows, labels = samples()
    model = model_of(rows, labels)
    largest = [float(matches(rows, model.prototypes, s).amax(dim=1).mean()) for s in (1e-6, 1.0, 100.0)]
    assert largest[0] == pytest.approx(1 / 4, abs=1e-4) and largest[0] < largest[1] < largest[2]
    crisp = replace(model, scale=1e6)
    nearest = torch.cdist(rows, model.prototypes).argmin(dim=1)
    assert (matches(rows, crisp.prototypes, crisp.scale).argmax(dim=1) == nearest).all()
