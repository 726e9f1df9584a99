import cvxpy
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from protonmf_cli.maths import orthant_newton
from protonmf_cli.maths.last_layer import l1_path, last_layer_objective, solve_last_layer


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The problems are tiny: threads that wait for a busy core would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(n=120, per_class=5, classes=4, noise=1.2, seed=0):
    """Similarities of noisy points to prototypes: positive columns that rise and fall together."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=generator)
    labels = torch.arange(n) % classes
    points = centres[labels] + noise * torch.randn(n, 6, generator=generator)
    owner = torch.arange(classes).repeat_interleave(per_class)
    prototypes = centres[owner] + 0.5 * noise * torch.randn(len(owner), 6, generator=generator)
    distance = torch.cdist(points, prototypes).square() / 4 * (0.5 + torch.rand(n, 1, generator=generator))
    return torch.log((distance + 1) / (distance + 1e-4)), labels, owner


def usual_start(owner, classes):
    return torch.where(torch.arange(classes)[:, None] == owner, 1.0, -0.5)


def by_hand(weights, activations, labels, owner, l1):
    """Objective, cross-entropy and residual with loops over the definition, in numpy."""
    W, S = np.asarray(weights, dtype=np.float64), np.asarray(activations, dtype=np.float64)
    Z = S @ W.T
    shifted = Z - Z.max(axis=1, keepdims=True)
    P = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    entropy = np.mean([np.log(np.exp(z).sum()) - z[y] for z, y in zip(shifted, labels.tolist(), strict=True)])
    onehot = np.eye(len(W))[labels.numpy()]
    G = (P - onehot).T @ S / len(S)
    penalty, worst = 0.0, 0.0
    for k in range(W.shape[0]):
        for j in range(W.shape[1]):
            if int(owner[j]) == k:
                residual = abs(G[k, j])
            elif W[k, j] != 0:
                residual = abs(G[k, j] + l1 * np.sign(W[k, j]))
            else:
                residual = max(abs(G[k, j]) - l1, 0.0)
            penalty += l1 * abs(W[k, j]) * (int(owner[j]) != k)
            worst = max(worst, residual)
    return entropy + penalty, entropy, worst


def by_cones(activations, labels, owner, classes, l1):
    """Minimum of the objective by an interior point method on the exponential cone."""
    S = activations.double().numpy()
    W = cvxpy.Variable((classes, S.shape[1]))
    own = np.arange(classes)[:, None] == owner.numpy()
    logits = S @ W.T
    entropy = (
        cvxpy.sum(cvxpy.log_sum_exp(logits, axis=1)) - cvxpy.sum(logits[np.arange(len(S)), labels.numpy()])
    ) / len(S)
    program = cvxpy.Problem(cvxpy.Minimize(entropy + l1 * cvxpy.sum(cvxpy.abs(cvxpy.multiply(~own, W)))))
    program.solve(solver=cvxpy.CLARABEL)
    return program.value


def by_adam(activations, labels, owner, classes, l1, rate, epochs=500):
    generator = torch.Generator().manual_seed(0)
    weights = usual_start(owner, classes).requires_grad_()
    off = torch.arange(classes)[:, None] != owner
    optimiser = torch.optim.Adam([weights], lr=rate)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator).split(80):
            loss = cross_entropy(activations[chosen] @ weights.T, labels[chosen]) + l1 * (weights * off).abs().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return weights.detach()


@pytest.fixture(params=["one dense Hessian", "a block per class", "several blocks per class"])
def route(request, monkeypatch):
    if request.param != "one dense Hessian":
        monkeypatch.setattr(orthant_newton, "DIRECT", 0)
    if request.param == "several blocks per class":
        monkeypatch.setattr(orthant_newton, "BLOCK", 3)


@pytest.mark.parametrize("l1", [1e-4, 1e-3, 1e-2])
def test_the_subgradient_recomputed_by_hand_is_within_the_tolerance(route, l1):
    S, y, owner = problem()
    found = solve_last_layer(S, y, owner, 4, l1=l1)
    objective, entropy, residual = by_hand(found.weights, S, y, owner, l1)
    assert found.converged
    assert found.weights.dtype == torch.float32
    assert residual <= 1e-6
    assert found.kkt == pytest.approx(residual, abs=1e-11)
    assert found.objective == pytest.approx(objective, abs=1e-11)
    assert found.cross_entropy == pytest.approx(entropy, abs=1e-11)


def test_objective_of_any_weights_is_the_one_by_hand():
    S, y, owner = problem()
    owner[3] = -1
    W = torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
    W[torch.rand(4, 20, generator=torch.Generator().manual_seed(2)) < 0.5] = 0
    objective, _, residual = by_hand(W, S, y, owner, 0.07)
    assert last_layer_objective(W, S, y, owner, 0.07) == pytest.approx((objective, residual), abs=1e-12)


@pytest.mark.parametrize("l1", [1e-3, 1e-2])
def test_objective_is_the_one_of_an_interior_point_method(route, l1):
    S, y, owner = problem(n=60, per_class=3, classes=3, noise=2.0)
    owner[4] = -1
    found = solve_last_layer(S, y, owner, 3, l1=l1)
    assert found.objective == pytest.approx(by_cones(S, y, owner, 3, l1), abs=1e-6)


@pytest.mark.parametrize("l1", [1e-4, 1e-3])
def test_objective_is_not_above_500_epochs_of_adam(l1):
    S, y, owner = problem()
    found = solve_last_layer(S, y, owner, 4, l1=l1)
    begin = last_layer_objective(usual_start(owner, 4), S, y, owner, l1)[0]
    for rate in (1e-4, 1e-3, 1e-2):
        trained = last_layer_objective(by_adam(S, y, owner, 4, l1, rate), S, y, owner, l1)[0]
        assert found.objective < trained < begin


def test_classes_that_can_be_separated_converge(route):
    S, y, owner = problem(noise=0.2)
    found = solve_last_layer(S, y, owner, 4, l1=1e-3)
    assert found.converged
    assert found.cross_entropy < 1e-5
    assert found.weights.isfinite().all()
    assert (found.weights[usual_start(owner, 4) < 0] == 0).all()
    assert found.iterations < 40


def test_equal_prototypes_converge_to_the_objective_without_them(route):
    S, y, owner = problem()
    once = solve_last_layer(S, y, owner, 4, l1=1e-3)
    again = solve_last_layer(S.repeat(1, 3), y, owner.repeat(3), 4, l1=1e-3)
    assert again.converged
    assert again.objective == pytest.approx(once.objective, abs=2e-5)


def test_a_larger_penalty_leaves_fewer_weights_and_a_very_large_one_none():
    S, y, owner = problem()
    off = usual_start(owner, 4) < 0
    found = l1_path(S, y, owner, 4, l1s=[1e-4, 1e-3, 1e2])
    counts = [int(solution.weights[off].count_nonzero()) for solution in found]
    assert all(solution.converged for solution in found)
    assert off.sum() == 60 > counts[0] > counts[1] > counts[2] == 0
    assert found[2].weights[~off].count_nonzero() == 20


def test_between_two_classes_the_own_weights_are_enough():
    S, y, owner = problem(classes=2)
    found = solve_last_layer(S, y, owner, 2, l1=1e-4)
    assert found.converged
    assert (found.weights[usual_start(owner, 2) < 0] == 0).all()


def test_without_a_penalty_the_gradient_vanishes(route):
    S, y, owner = problem(noise=3.0)
    found = solve_last_layer(S, y, owner, 4, l1=0.0)
    assert found.converged
    assert found.objective == found.cross_entropy


def test_a_path_holds_the_single_solutions_in_the_order_given():
    S, y, owner = problem()
    l1s = [1e-3, 1e-2, 2e-4]
    for l1, found in zip(l1s, l1_path(S, y, owner, 4, l1s=l1s), strict=True):
        assert found.converged
        assert found.objective == pytest.approx(solve_last_layer(S, y, owner, 4, l1=l1).objective, abs=2e-5)
    assert l1_path(S, y, owner, 4, l1s=[]) == []


def test_start_and_order_do_not_change_the_objective():
    S, y, owner = problem()
    expected = solve_last_layer(S, y, owner, 4, l1=1e-3)
    generator = torch.Generator().manual_seed(3)
    random = solve_last_layer(S, y, owner, 4, l1=1e-3, start=5 * torch.randn(4, 20, generator=generator))
    columns, rows = torch.randperm(20, generator=generator), torch.randperm(len(S), generator=generator)
    shuffled = solve_last_layer(S[rows][:, columns], y[rows], owner[columns], 4, l1=1e-3)
    for found in (random, shuffled):
        assert found.converged
        assert found.objective == pytest.approx(expected.objective, abs=2e-5)
    resumed = solve_last_layer(S, y, owner, 4, l1=1e-3, start=expected.weights)
    assert resumed.iterations <= 1
    assert resumed.objective == pytest.approx(expected.objective, abs=1e-8)


def test_a_prototype_of_no_class_is_penalised_for_every_class():
    S, y, owner = problem()
    with_owner = solve_last_layer(S, y, owner, 4, l1=10.0)
    owner = owner.clone()
    owner[7] = -1
    without = solve_last_layer(S, y, owner, 4, l1=10.0)
    assert with_owner.weights[:, 7].count_nonzero() == 1
    assert without.converged
    assert without.weights[:, 7].count_nonzero() == 0
    assert by_hand(without.weights, S, y, owner, 10.0)[2] <= 1e-6
    nobody = solve_last_layer(S, y, torch.full_like(owner, -1), 4, l1=10.0)
    assert nobody.converged
    assert nobody.objective == pytest.approx(np.log(4))


def test_odd_columns_and_classes(route):
    S, y, owner = problem()
    S = S.clone()
    S[:, 2] = 0
    found = solve_last_layer(S, y.clamp_max(2), owner, 5, l1=1e-3)  # class 3 has prototypes only, class 4 nothing
    assert found.converged
    assert found.weights.isfinite().all()


@pytest.mark.parametrize("n", [3, 20])
def test_images_far_on_the_wrong_side_are_reached(route, n):
    """There the slope is large and the curvature vanishes."""
    S, y, owner = problem(n=n, per_class=10, classes=3, noise=0.1)
    found = solve_last_layer(S, y.roll(1), owner, 3, l1=1e-2)
    begin = last_layer_objective(usual_start(owner, 3), S, y.roll(1), owner, 0.0)[0]
    assert found.converged
    assert found.objective < 2 < 10 < begin


def test_equal_bytes_every_time_and_nothing_else_changes():
    S, y, owner = problem()
    start = usual_start(owner, 4)
    before, state = (S.clone(), start.clone()), torch.get_rng_state()
    first, second = (solve_last_layer(S.requires_grad_(), y, owner, 4, l1=1e-3, start=start) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert not first.weights.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(S.detach(), before[0]) and torch.equal(start, before[1])


def test_weights_stay_in_float64_where_rounding_would_break_the_tolerance():
    S, y, owner = problem()
    found = solve_last_layer(S, y, owner, 4, l1=1e-3, tolerance=1e-11)
    assert found.converged
    assert found.weights.dtype == torch.float64
    assert by_hand(found.weights, S, y, owner, 1e-3)[2] <= 1.1e-11
    assert last_layer_objective(found.weights.float(), S, y, owner, 1e-3)[1] > 1e-11


@pytest.mark.parametrize("limit", [0, 1])
def test_an_early_end_is_reported(limit):
    S, y, owner = problem()
    found = solve_last_layer(S, y, owner, 4, l1=1e-3, max_iterations=limit)
    assert not found.converged
    assert found.iterations == limit
    assert found.kkt == pytest.approx(by_hand(found.weights, S, y, owner, 1e-3)[2], abs=1e-11)
    assert found.objective <= last_layer_objective(usual_start(owner, 4), S, y, owner, 1e-3)[0]


def test_curvature_is_the_hessian_of_the_cross_entropy():
    S, y, owner = problem(n=30, per_class=2, classes=3)
    W = torch.randn(3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    S64 = S.double()
    expected = torch.autograd.functional.hessian(lambda x: cross_entropy(S64 @ x.view(3, 6).T, y), W.flatten())
    chosen = torch.tensor([0, 3, 4, 7, 12, 13, 16])
    found = orthant_newton._curvature(S64.T.contiguous(), (S64 @ W.T).softmax(dim=1).T, chosen // 6, chosen % 6)
    assert torch.allclose(found, expected[chosen][:, chosen], atol=1e-12)


def change(**parts):
    S, y, owner = problem(n=20, per_class=2, classes=3)
    given = {"activations": S, "labels": y, "owner": owner, "classes": 3, "l1": 1e-3} | parts
    return {
        name: value((S, y, owner)["alo".index(name[0])]) if callable(value) else value for name, value in given.items()
    }


def spoiled(value):
    def edit(S):
        S = S.clone()
        S[3, 2] = value
        return S

    return edit


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"activations": spoiled(torch.nan)}, "1 of 120 activations are not finite"),
        ({"activations": spoiled(-torch.inf)}, "1 of 120 activations are not finite"),
        ({"activations": torch.zeros(0, 6)}, "N and P >= 1"),
        ({"labels": lambda y: y[:-1]}, "do not fit"),
        ({"owner": lambda owner: owner[:-1]}, "do not fit"),
        ({"classes": 2}, "labels from 0 to 2 are outside 0..1"),
        ({"owner": lambda owner: owner - 2}, "owners from -2 to 0 are outside -1..2"),
        ({"l1": -1.0}, "finite and >= 0"),
        ({"start": torch.zeros(2, 6)}, "weights of shape"),
        ({"start": torch.full((3, 6), torch.nan)}, "finite weights"),
    ],
)
def test_refusals(parts, words):
    with pytest.raises(ValueError, match=words):
        solve_last_layer(**change(**parts))
