"""Heads rebuilt from prototypes: what is minimised, what is borrowed, and what happens at the edges."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from protonmf_cli.maths.moments import Moments
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.reconstruction import Bases, reconstruct_heads

FUNCTIONAL = ConversionOptions(prototypes=2, borrow=0, own_weight=0.0)


def problem(classes=4, own=2, width=10, images=30, seed=0, constant=False):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.rand(classes * own, width, generator=generator) ** 2
    basis = torch.nn.functional.normalize(basis, dim=1)
    vectors = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    parts = {}
    for c in range(classes):
        codes = torch.rand(1 if constant else images, own, generator=generator)
        pooled = codes @ basis[c * own : (c + 1) * own] + 0.3 * torch.rand(len(codes), width, generator=generator)
        parts[c] = SimpleNamespace(pooled=pooled)
    if constant:
        parts = {c: SimpleNamespace(pooled=parts[0].pooled.expand(images, width)) for c in parts}
    bases = Bases(classes=list(range(classes)), prototypes=basis, owner=torch.arange(classes).repeat_interleave(own))
    moments = Moments.empty(width)
    for part in parts.values():
        moments.add(part.pooled)
    return vectors, bases, parts, moments


def solve(options, **size):
    vectors, bases, parts, moments = problem(**size)
    return vectors, bases, parts, reconstruct_heads(vectors, bases, parts, moments, options)


def left_out(found, vectors, parts, weights=None):
    """(C,) mean squared x . R - delta over all images, or over one class's with its weight on top."""
    pooled = torch.cat([part.pooled for part in parts.values()]).double()
    return (pooled @ found.residual.T - found.intercept).square().mean(dim=0)


def test_coefficients_are_least_squares_of_the_logits_with_an_intercept():
    vectors, bases, parts, found = solve(FUNCTIONAL)
    pooled = torch.cat([part.pooled for part in parts.values()]).double()
    for c in bases.classes:
        evidence = torch.cat([pooled @ bases.prototypes[bases.own(c)].double().T, torch.ones(len(pooled), 1)], dim=1)
        expected = torch.linalg.lstsq(evidence, pooled @ vectors[c]).solution
        hit = found.weights.class_index == c
        assert torch.allclose(found.weights.value[hit].double(), expected[:-1], atol=1e-4)
        assert float(found.intercept[c]) == pytest.approx(float(expected[-1]), abs=1e-4)


def test_parts_always_add_up_to_the_head():
    for options in (FUNCTIONAL, replace(FUNCTIONAL, borrow=3), replace(FUNCTIONAL, reconstruction="paper")):
        vectors, bases, _, found = solve(options)
        dense = torch.zeros(len(vectors), len(bases.prototypes), dtype=torch.float64)
        dense[found.weights.class_index, found.weights.prototype] = found.weights.value.double()
        assert torch.allclose(dense @ bases.prototypes.double() + found.residual, vectors, atol=1e-12)


def test_functional_leaves_less_of_the_logits_than_the_papers_and_borrowing_less_still():
    errors = []
    paper = replace(FUNCTIONAL, reconstruction="paper")
    for options in (paper, FUNCTIONAL, replace(FUNCTIONAL, borrow=2), replace(FUNCTIONAL, borrow=4)):
        vectors, _, parts, found = solve(options)
        errors.append(float(left_out(found, vectors, parts).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_a_class_borrows_from_others_only_and_not_more_than_asked_for():
    _, bases, _, found = solve(replace(FUNCTIONAL, borrow=3))
    for c in bases.classes:
        used = found.weights.prototype[found.weights.class_index == c].tolist()
        assert used[:2] == bases.own(c)
        assert len(set(used)) == len(used) == 5
        assert all(int(bases.owner[j]) != c for j in used[2:])


def test_own_weight_fits_the_class_s_own_images_better():
    def own_error(weight):
        _, _, parts, found = solve(replace(FUNCTIONAL, own_weight=weight))
        return sum(
            float((part.pooled.double() @ found.residual[c] - found.intercept[c]).square().mean())
            for c, part in parts.items()
        )

    assert own_error(0.5) < own_error(0.0)


def test_nothing_is_left_when_the_prototypes_span_all_rows():
    vectors, _, _, found = solve(replace(FUNCTIONAL, borrow=8), width=8, classes=5)
    assert found.nothing_left == (0, 1, 2, 3, 4)
    assert torch.equal(found.residual, torch.zeros_like(vectors))
    assert torch.equal(found.intercept, torch.zeros(len(vectors), dtype=torch.float64))


def test_constant_features_fall_back_to_the_match_in_parameter_space():
    _, _, _, found = solve(replace(FUNCTIONAL, borrow=2, own_weight=0.05), constant=True)
    _, _, _, paper = solve(replace(FUNCTIONAL, reconstruction="paper"), constant=True)
    assert found.constant_features
    assert torch.allclose(found.weights.value, paper.weights.value, atol=1e-4)


def test_one_image_per_class():
    vectors, bases, _, found = solve(replace(FUNCTIONAL, borrow=2, own_weight=0.05), images=1)
    assert found.weights.value.isfinite().all()
    assert found.residual.isfinite().all()
    assert len(found.weights.value) <= len(bases.classes) * 4


def test_classes_without_images_keep_their_head_row():
    vectors, bases, parts, moments = problem()
    wide = torch.cat([vectors, torch.ones(3, 10, dtype=torch.float64)])
    found = reconstruct_heads(wide, bases, parts, moments, FUNCTIONAL)
    assert torch.equal(found.residual[4:], wide[4:])
    assert not (found.weights.class_index >= 4).any()
