"""A step of a head off directions that were taken out of it: what it keeps, where it ends, what is held out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from protonmf_cli.maths import head_refit
from protonmf_cli.maths.head_refit import HeadProblem, cross_validated, refitted
from protonmf_cli.maths.qp import constrained_step

CLASSES, WITH_IMAGES = 5, 4


def problem(*, images=40, width=30, removed=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    labels = torch.arange(images) % WITH_IMAGES
    return HeadProblem(
        rows=drawn(WITH_IMAGES, width)[labels] + drawn(images, width),
        labels=labels,
        head=0.3 * drawn(CLASSES, width),
        bias=drawn(CLASSES),
        removed=drawn(removed, width),
    )


@pytest.mark.parametrize("by_solver", [True, False])
@pytest.mark.parametrize("ridge", [1e-6, 1e-1])
def test_no_row_of_the_head_gives_anything_for_what_was_removed(ridge, by_solver):
    whole = problem()
    head = refitted(whole, ridge, by_solver=by_solver)
    assert float((head @ whole.removed.mT).abs().max()) < 1e-12
    assert float((whole.head @ whole.removed.mT).abs().min()) > 1e-3


def test_directions_may_be_dependent():
    whole = problem()
    twice = replace(whole, removed=torch.cat([whole.removed, 3 * whole.removed[:1] - whole.removed[1:]]))
    assert len(twice.frame) == 2
    assert torch.allclose(refitted(twice, 0.01), refitted(whole, 0.01), atol=1e-9)


@pytest.mark.parametrize("width", [30, 60])
def test_the_solver_and_the_normal_equations_agree(width):
    """With fewer and with more dimensions than images."""
    whole = problem(width=width)
    by_solver, eliminated = (refitted(whole, 1e-3, by_solver=how) for how in (True, False))
    assert torch.allclose(by_solver, eliminated, atol=1e-8)
    assert float((by_solver - whole.off(whole.head)).abs().max()) > 0.01


def test_a_constrained_step_solves_its_optimality_conditions():
    generator = np.random.default_rng(0)
    design, target = generator.standard_normal((20, 7)), generator.standard_normal((20, 70))
    fixed, held = generator.standard_normal((2, 7)), generator.standard_normal((2, 70))
    found = constrained_step(design, target, 0.5, fixed, held)
    system = np.block([[design.T @ design + 0.5 * np.eye(7), fixed.T], [fixed, np.zeros((2, 2))]])
    expected = np.linalg.solve(system, np.concatenate([design.T @ target, held]))[:7]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_many_programs_end_at_the_minimum(monkeypatch):
    """There the slope of the objective lies along what was removed alone, in rows that move."""
    monkeypatch.setattr(head_refit, "PROGRAMS", 400)
    whole, ridge = problem(), 1e-2
    head = refitted(whole, ridge, by_solver=False).requires_grad_()
    loss = torch.nn.functional.cross_entropy(whole.logits(head)[:, :WITH_IMAGES], whole.labels)
    (loss + ridge / 2 * whole.unit * (head - whole.head).square().sum()).backward()
    assert float(whole.off(head.grad)[:WITH_IMAGES].abs().max()) < 1e-8
    assert float(head.grad.abs().max()) > 1e-3


def test_a_few_programs_come_near_it():
    whole, ridge = problem(), 1e-2

    def objective(head):
        loss = torch.nn.functional.cross_entropy(whole.logits(head)[:, :WITH_IMAGES], whole.labels)
        return float(loss + ridge / 2 * whole.unit * (head - whole.head).square().sum())

    assert objective(refitted(whole, ridge, by_solver=False)) < objective(whole.off(whole.head)) / 2


def test_only_rows_of_classes_with_images_move():
    whole = problem()
    head, projected = refitted(whole, 1e-4), whole.off(whole.head)
    assert torch.allclose(head[WITH_IMAGES:], projected[WITH_IMAGES:], atol=1e-12)
    step = (head - projected)[:WITH_IMAGES]
    assert float(step.norm(dim=1).min()) > 0.01
    assert float(step.sum(dim=0).abs().max()) < 1e-9  # as a whole they gain nothing on the others


def test_a_large_ridge_leaves_the_head_where_the_constraint_puts_it():
    whole = problem()
    assert torch.allclose(refitted(whole, 1e9), whole.off(whole.head), atol=1e-6)


def test_images_are_judged_by_heads_that_did_not_see_them():
    whole = problem()
    folds = torch.arange(40) // WITH_IMAGES % 3
    folds[0] = -1
    none, step = cross_validated(whole, [1e-3], folds)
    assert (none.ridge, step.ridge) == (None, 1e-3)
    assert torch.equal(none.top[1:], whole.logits(whole.head).argmax(dim=1)[1:])
    losses = []
    for fold in range(3):
        seen, out = folds != fold, folds == fold
        part = replace(whole, rows=whole.rows[seen], labels=whole.labels[seen])
        logits = whole.logits(refitted(part, 1e-3))[out]
        assert torch.equal(step.top[out], logits.argmax(dim=1))
        losses.append(torch.nn.functional.cross_entropy(logits[:, :WITH_IMAGES], whole.labels[out], reduction="none"))
    assert step.loss == pytest.approx(float(torch.cat(losses).mean()), abs=1e-8)
    assert none.top[0] == step.top[0] == -1


def test_images_that_differ_in_what_was_removed_alone():
    whole = problem()
    same = replace(whole, rows=whole.rows[:1] + torch.randn(40, 1).double() @ whole.removed[:1])
    assert same.nothing_left
    assert not whole.nothing_left
