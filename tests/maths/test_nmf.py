import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization

from protonmf_cli.maths import nmf
from protonmf_cli.options import NmfOptions

EXACT = NmfOptions(tolerance=0.0, max_iterations=30, inner_updates=1)


def data(rows=120, columns=50, seed=0, rank=6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    E = torch.rand(rows, rank, generator=generator) ** 3
    B = torch.rand(rank, columns, generator=generator) ** 3
    return E @ B + 0.05 * torch.rand(rows, columns, generator=generator)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_objective_equals_scikit_learn_from_the_same_start(rank):
    A = data()
    E, B = nmf.STARTS["abs"](A, rank, 7)
    run = nmf._iterate(A, E, B, EXACT)
    W, H, iterations = non_negative_factorization(
        A.double().numpy(),
        W=E.double().numpy().copy(),
        H=B.double().numpy().copy(),
        n_components=rank,
        init="custom",
        solver="mu",
        tol=0.0,
        max_iter=30,
    )
    expected = np.square(A.double().numpy() - W @ H).sum()
    found = float((A.double() - run.codes.double() @ run.basis.double()).square().sum())
    assert iterations == 30
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("solver", ["mu", "hals"])
@pytest.mark.parametrize("init", ["abs", "nndsvda", "paper"])
@pytest.mark.parametrize("inner", [1, 8])
def test_objective_never_rises_and_is_the_naive_one(solver, init, inner):
    A = data()
    options = NmfOptions(init=init, solver=solver, inner_updates=inner, balance=0)
    found = nmf.factorise(A, 4, options=options, seed=3)
    assert all(later <= earlier for earlier, later in zip(found.history, found.history[1:], strict=False))
    naive = float((A - found.codes @ found.basis).double().square().sum() / A.double().square().sum())
    assert found.error == pytest.approx(naive, rel=1e-3)
    assert found.error == pytest.approx(found.history[-1], rel=1e-5)
    assert found.history[-1] < found.history[0]


@pytest.mark.parametrize("balance", [0.5, 0.7, 1.0])
def test_the_balanced_objective_weighs_rows_by_their_norm(balance):
    A = data() * torch.logspace(-1, 1, 120)[:, None]
    found = nmf.factorise(A, 4, options=NmfOptions(balance=balance), seed=0)
    weight = A.double().norm(dim=1).clamp_min(0.05 * float(A.norm(dim=1).mean())) ** (-2 * balance)
    left = (A - found.codes @ found.basis).double().square().sum(dim=1)
    objective = float((weight * left).sum() / (weight * A.double().square().sum(dim=1)).sum())
    assert found.history[-1] == pytest.approx(objective, rel=1e-3)
    assert found.error == pytest.approx(float(left.sum() / A.double().square().sum()), rel=1e-4)
    plain = nmf.factorise(A, 4, options=NmfOptions(balance=0), seed=0)
    left_plain = (A - plain.codes @ plain.basis).double().square().sum(dim=1)
    assert float((weight * left).sum()) < float((weight * left_plain).sum())
    assert plain.error < found.error


@pytest.mark.parametrize("solver", ["mu", "hals"])
@pytest.mark.parametrize("init", ["abs", "nndsvda"])
def test_planted_factors_are_found(solver, init):
    generator = torch.Generator().manual_seed(1)
    basis = torch.zeros(3, 30)
    for k in range(3):
        basis[k, 10 * k : 10 * (k + 1)] = 0.2 + torch.rand(10, generator=generator)
    basis = torch.nn.functional.normalize(basis, dim=1)
    codes = torch.rand(200, 3, generator=generator) * (torch.rand(200, 3, generator=generator) > 0.4)
    options = NmfOptions(init=init, solver=solver, tolerance=1e-9, max_iterations=2000)
    found = nmf.factorise(codes @ basis, 3, options=options, seed=0)
    match = (found.basis @ basis.T).max(dim=1)
    assert sorted(match.indices.tolist()) == [0, 1, 2]
    assert match.values.min() > 0.999
    assert torch.allclose(found.codes[:, match.indices.argsort()], codes, atol=0.02)


@pytest.mark.parametrize("init", ["abs", "nndsvda", "paper"])
@pytest.mark.parametrize("solver", ["mu", "hals"])
def test_zero_rows_and_columns_give_no_nan(init, solver):
    A = data()
    A[::3] = 0
    A[:, ::4] = 0
    found = nmf.factorise(A, 5, options=NmfOptions(init=init, solver=solver), seed=0)
    assert found.codes.isfinite().all()
    assert found.basis.isfinite().all()
    empty = nmf.factorise(torch.zeros(6, 4), 2, options=NmfOptions(init=init, solver=solver), seed=0)
    assert empty.codes.isfinite().all()
    assert empty.basis.isfinite().all()


def test_basis_has_unit_norm_and_scale_moves_into_the_codes():
    A = data()
    found = nmf.factorise(A, 4, options=NmfOptions(), seed=0)
    larger = nmf.factorise(1000 * A, 4, options=NmfOptions(), seed=0)
    assert larger.error == pytest.approx(found.error, rel=1e-3)
    assert torch.allclose(found.basis.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.allclose(larger.basis, found.basis, atol=1e-3)
    assert torch.allclose(larger.codes, 1000 * found.codes, rtol=1e-2, atol=20.0)


@pytest.mark.parametrize("init", ["abs", "nndsvda"])
def test_a_batch_gives_what_each_gives_alone(init):
    options = NmfOptions(init=init)
    matrices = [data(rows, seed=rows) for rows in (40, 90, 65)]
    together = nmf.factorise_group(matrices, 3, options=options, seeds=[1, 2, 3])
    for A, seed, found in zip(matrices, (1, 2, 3), together, strict=True):
        alone = nmf.factorise(A, 3, options=options, seed=seed)
        assert found.codes.shape == alone.codes.shape == (len(A), 3)
        assert found.error == pytest.approx(alone.error, rel=1e-3)
        assert (found.basis * alone.basis).sum(dim=1).min() > 0.999


def test_same_seed_same_bytes_and_the_svd_start_ignores_seed_and_row_order():
    A = data()
    first, second = (nmf.factorise(A, 3, options=NmfOptions(init="abs"), seed=5) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.basis, second.basis)
    shuffled = A[torch.randperm(len(A), generator=torch.Generator().manual_seed(0))]
    one = nmf.factorise(A, 3, options=NmfOptions(init="nndsvda"), seed=1)
    other = nmf.factorise(shuffled, 3, options=NmfOptions(init="nndsvda"), seed=2)
    assert torch.allclose(one.basis, other.basis, atol=2e-4)


def test_the_papers_start_keeps_its_zeros():
    A = data()
    _, start = nmf.STARTS["paper"](A, 3, 0)
    found = nmf.factorise(A, 3, options=NmfOptions(init="paper"), seed=0)
    assert 0.3 < (start == 0).double().mean() < 0.7
    assert (found.basis[start == 0] == 0).all()


@pytest.mark.parametrize(
    ("matrix", "rank", "words"),
    [
        (torch.ones(3, 4), 4, "rank 4 is outside 1..3"),
        (torch.ones(3, 4), 0, "rank 0 is outside"),
        (-torch.ones(3, 4), 1, "finite values >= 0"),
        (torch.full((3, 4), torch.nan), 1, "finite values >= 0"),
        (torch.ones(3, 4, dtype=torch.int64), 1, "matrix of floats"),
    ],
)
def test_refusals(matrix, rank, words):
    with pytest.raises(ValueError, match=words):
        nmf.factorise(matrix, rank, options=NmfOptions(), seed=0)
