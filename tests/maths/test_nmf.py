import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization

from protonmf_cli.maths import nmf
from protonmf_cli.maths.nnls import nonnegative_codes
from protonmf_cli.options import NmfOptions


def data(rows=120, columns=50, seed=0, rank=6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    E = torch.rand(rows, rank, generator=generator) ** 3
    B = torch.rand(rank, columns, generator=generator) ** 3
    return E @ B + 0.05 * torch.rand(rows, columns, generator=generator)


def from_a_start(A, rank, seed, options):
    """Codes (N, p) and basis (p, D) after some iterations, and where they started."""
    task = nmf._task([A], "none", [()], options.balance)
    codes, basis = nmf.STARTS[options.init](task, rank, [seed])
    start = codes[0, 0].mT.clone(), basis[0, 0].clone()
    run = nmf._iterate(task, codes, basis, options)
    return start, (run.codes[0, 0].mT, run.basis[0, 0]), run


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("solver", ["mu", "cd"])
def test_objective_equals_scikit_learn_from_the_same_start(rank, solver):
    A = data()
    own = {"mu": NmfOptions(init="abs", solver="mu", inner_updates=1), "cd": NmfOptions(init="abs", inner_updates=1)}
    steps = {"mu": 30, "cd": 400}[solver]  # the orders of coordinate descent differ: compared where both have ended
    options = own[solver].__class__(**{**vars(own[solver]), "balance": 0.0, "tolerance": 0.0, "max_iterations": steps})
    (E, B), (codes, basis), _ = from_a_start(A, rank, 7, options)
    W, H, iterations = non_negative_factorization(
        A.double().numpy(),
        W=np.ascontiguousarray(E.double().numpy()),
        H=B.double().numpy().copy(),
        n_components=rank,
        init="custom",
        solver=solver,
        tol=0.0,
        max_iter=steps,
    )
    expected = np.square(A.double().numpy() - W @ H).sum()
    found = float((A.double() - codes.double() @ basis).square().sum())
    assert iterations == steps
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("solver", ["mu", "hals"])
@pytest.mark.parametrize("init", ["abs", "nndsvda", "paper"])
@pytest.mark.parametrize("inner", [1, 8])
def test_objective_never_rises_and_is_the_naive_one(solver, init, inner):
    A = data()
    options = NmfOptions(init=init, solver=solver, inner_updates=inner, balance=0, max_iterations=80)
    found = nmf.factorise(A, 4, options=options, seed=3)
    assert all(later <= earlier for earlier, later in zip(found.history, found.history[1:], strict=False))
    naive = float((A - found.codes @ found.basis).double().square().sum() / A.double().square().sum())
    assert found.error == pytest.approx(naive, rel=1e-3)
    assert found.error <= found.history[-1] * (1 + 1e-5)
    assert found.error == pytest.approx(found.history[-1], rel=5e-3)
    assert found.history[-1] < found.history[0]
    assert found.size == pytest.approx(float(A.double().square().sum()), rel=1e-6)
    assert len(found.history) == found.iterations + 1


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
    options = NmfOptions(init=init, solver=solver, inner_updates=8, tolerance=1e-9, max_iterations=2000)
    found = nmf.factorise(codes @ basis, 3, options=options, seed=0)
    match = (found.basis @ basis.T).max(dim=1)
    assert sorted(match.indices.tolist()) == [0, 1, 2]
    assert match.values.min() > 0.999
    assert torch.allclose(found.codes[:, match.indices.argsort()], codes, atol=0.02)


def test_codes_are_the_best_ones_for_the_basis():
    A = data()
    found = nmf.factorise(A, 4, options=NmfOptions(max_iterations=2), seed=0)
    assert not found.converged
    assert torch.allclose(found.codes, nonnegative_codes(A, found.basis), atol=1e-3 * float(found.codes.max()))


def test_extrapolation_saves_passes_and_the_default_stops_where_a_long_run_ends(monkeypatch):
    A = data(rows=300, columns=80, rank=8)
    endless = NmfOptions(tolerance=0.0, max_iterations=200)
    long = nmf.factorise(A, 5, options=endless, seed=0).history
    stopped = nmf.factorise(A, 5, options=NmfOptions(), seed=0)
    assert stopped.converged
    assert stopped.history[-1] < 1.0005 * long[-1]
    monkeypatch.setattr(nmf, "EXTRAPOLATED", set())
    plain = nmf.factorise(A, 5, options=endless, seed=0).history
    passes = [next(n for n, error in enumerate(run) if error <= 1.001 * long[-1]) for run in (long, plain)]
    assert passes[1] > 1.5 * passes[0]


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
@pytest.mark.parametrize("signs", ["none", "split", "clip"])
def test_a_batch_gives_what_each_gives_alone(init, signs):
    options = NmfOptions(init=init)
    matrices = [data(rows, seed=rows) - (0 if signs == "none" else 0.1) for rows in (40, 90, 65)]
    matrices.insert(1, data(50, seed=50))  # which has no negative entries to split
    halves = [(torch.arange(0, len(A), 2),) for A in matrices]
    together = {}
    for group in nmf._batches(matrices, signs, halves):  # as on an accelerator
        chosen, parts = [matrices[g] for g in group], [halves[g] for g in group]
        together.update(zip(group, nmf._factorise(chosen, 3, options, group, signs, parts), strict=True))
    assert len(together) == 4
    alone = nmf.factorise_group(matrices, 3, options=options, seeds=range(4), signs=signs, parts=halves)
    for g, (A, expected) in enumerate(zip(matrices, alone, strict=True)):
        found = together[g]
        assert found.codes.shape == expected.codes.shape == (len(A), 3)
        assert found.error == pytest.approx(expected.error, rel=1e-3)
        assert (found.basis * expected.basis).sum(dim=1).min() > 0.999
        assert (found.parts[0] * expected.parts[0]).sum(dim=1).min() > 0.999


@pytest.mark.parametrize("init", ["abs", "nndsvda"])
@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_parts_of_the_rows_give_what_they_give_alone(init, balance):
    A = data() * torch.logspace(-0.3, 0.3, 120)[:, None]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    parts = order[:50], order[50:]
    options = NmfOptions(init=init, balance=balance)
    (found,) = nmf.factorise_group([A], 3, options=options, seeds=[4], parts=[parts])
    for part, basis in zip(parts, found.parts, strict=True):
        alone = nmf.factorise(A[part.sort().values], 3, options=options, seed=4)
        assert torch.allclose(basis, alone.basis, atol=1e-3)
    assert torch.allclose(found.basis, nmf.factorise(A, 3, options=options, seed=4).basis, atol=1e-3)


def test_parts_are_of_images_where_each_has_several_rows():
    A = data()
    images = torch.tensor([3, 0, 7])
    options = NmfOptions()
    (found,) = nmf.factorise_group([A.view(12, 10, 50)], 3, options=options, seeds=[0], parts=[(images,)])
    alone = nmf.factorise(A.view(12, 10, 50)[images.sort().values], 3, options=options, seed=0)
    assert found.codes.shape == (120, 3)
    assert torch.allclose(found.parts[0], alone.basis, atol=1e-3)


def test_rows_split_by_sign_have_their_parts_side_by_side_and_joined_again():
    A = data() - 0.15
    beside = torch.cat([A.clamp_min(0), (-A).clamp_min(0)], dim=1)
    found = nmf.factorise(A, 3, options=NmfOptions(), seed=0, signs="split")
    split = nmf.factorise(beside, 3, options=NmfOptions(), seed=0)
    joined = nmf.joined(split)
    assert found.error == pytest.approx(split.error, rel=1e-3)
    assert found.size == pytest.approx(float(A.double().square().sum()), rel=1e-6)
    assert torch.allclose(found.basis.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(found.basis, joined.basis, atol=3e-3)
    expected = split.codes @ (split.basis[:, :50] - split.basis[:, 50:])
    assert torch.allclose(found.codes @ found.basis, expected, atol=3e-2)


def test_clipped_rows_are_those_without_what_lies_below_zero():
    A = data() - 0.15
    found = nmf.factorise(A, 3, options=NmfOptions(), seed=0, signs="clip")
    clipped = nmf.factorise(A.clamp_min(0), 3, options=NmfOptions(), seed=0)
    assert torch.equal(found.basis, clipped.basis)
    assert torch.equal(found.codes, clipped.codes)
    assert found.size == clipped.size


def test_same_seed_same_bytes_and_the_svd_start_ignores_seed_and_row_order():
    A = data()
    first, second = (nmf.factorise(A, 3, options=NmfOptions(init="abs"), seed=5) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.basis, second.basis)
    shuffled = A[torch.randperm(len(A), generator=torch.Generator().manual_seed(0))]
    one = nmf.factorise(A, 3, options=NmfOptions(init="nndsvda"), seed=1)
    other = nmf.factorise(shuffled, 3, options=NmfOptions(init="nndsvda"), seed=2)
    assert (one.basis * other.basis).sum(dim=1).min() > 0.99999


def test_the_papers_start_keeps_its_zeros():
    A = data()
    options = NmfOptions(init="paper", solver="mu")
    (_, start), _, _ = from_a_start(A, 3, 0, options)
    found = nmf.factorise(A, 3, options=options, seed=0)
    assert 0.3 < (start == 0).double().mean() < 0.7
    assert (found.basis[start == 0] == 0).all()


@pytest.mark.parametrize(
    ("matrix", "rank", "words"),
    [
        (torch.ones(3, 4), 4, "rank 4 is outside 1..3"),
        (torch.ones(1, 3, 4), 4, "rank 4 is outside 1..3"),
        (torch.ones(3, 4), 0, "rank 0 is outside"),
        (-torch.ones(3, 4), 1, "finite values >= 0, got values from -1 to -1"),
        (torch.full((3, 4), torch.nan), 1, "finite values >= 0"),
        (torch.full((3, 4), torch.inf), 1, "finite values >= 0, got values from inf to inf"),
        (torch.ones(3, 4, dtype=torch.int64), 1, "matrix of floats"),
    ],
)
def test_refusals(matrix, rank, words):
    with pytest.raises(ValueError, match=words):
        nmf.factorise(matrix, rank, options=NmfOptions(), seed=0)


@pytest.mark.parametrize("signs", ["split", "clip"])
def test_no_treatment_of_signs_lets_a_nan_pass(signs):
    rows = torch.ones(3, 4)
    rows[0, 0], rows[1, 1] = -1.0, torch.nan
    with pytest.raises(ValueError, match="finite values"):
        nmf.factorise(rows, 1, options=NmfOptions(), seed=0, signs=signs)
