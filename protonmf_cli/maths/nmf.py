"""Non-negative matrix factorisation with a fixed number of components."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.options import NmfOptions


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A ~ codes @ basis."""

    codes: Tensor
    """(N, p), >= 0, in the units of A."""
    basis: Tensor
    """(p, D), >= 0, each row of unit L2 norm (all zero if the component died out)."""
    error: float
    """||A - E B||^2 / ||A||^2, in [0, 1], of the rows as given."""
    iterations: int
    """Products with A that were spent."""
    converged: bool
    """False when the limit on iterations came first."""
    history: tuple[float, ...]
    """Objective (rows balanced) at the start and after each iteration, divided by its value for E = 0."""


def factorise(A: Tensor, rank: int, *, options: NmfOptions, seed: int) -> Factors:
    """Factorise one non-negative matrix: minimise sum_n ||A_n - E_n B||^2 / ||A_n||^(2 q) over E, B >= 0.

    q = `options.balance`; 0 is the plain objective ||A - E B||_F^2. A larger q keeps few rows of large norm
    from deciding alone; the codes of a row do not depend on its weight, only the prototypes do.

    Args:
        A: (N, D) float32 or float64, >= 0.
        rank: number of components p, 1 <= p <= min(N, D).
        options: start, solver and stopping rule.
        seed: for the random starts; equal seeds give equal bytes on one machine.

    Returns:
        Factors on the device and with the dtype of A.

    Raises:
        ValueError: A is not a finite non-negative matrix or has fewer than p rows or columns.

    Reference: Lee and Seung 2001; Gillis and Glineur 2012 (inner updates); ProtoNMF, eq. 1-3.

    >>> A = torch.outer(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 4.0]))
    >>> found = factorise(A, 1, options=NmfOptions(), seed=0)
    >>> [round(x, 4) for x in found.basis[0].tolist()], round(found.error, 6)
    ([0.6, 0.0, 0.8], 0.0)
    """
    return factorise_group([A], rank, options=options, seeds=[seed])[0]


def factorise_group(
    matrices: Sequence[Tensor], rank: int, *, options: NmfOptions, seeds: Sequence[int]
) -> list[Factors]:
    """Factorise several matrices of equal width in one batch.

    Shorter matrices are padded with zero rows, which stay zero and add nothing to the objective; a
    finished matrix is frozen while the others go on, so each result is the one it would have alone,
    up to rounding.

    Args:
        matrices: G matrices, (N_g, D) each.
        rank, options: as in `factorise`.
        seeds: one per matrix.

    Returns:
        G factorisations, in order.
    """
    for A in matrices:
        _check(A, rank)
    scales = [_row_scale(A, options.balance) for A in matrices]
    balanced = [A * scale if options.balance else A for A, scale in zip(matrices, scales, strict=True)]
    starts = [STARTS[options.init](A, rank, seed) for A, seed in zip(balanced, seeds, strict=True)]
    if len(matrices) == 1:
        A, E, B = balanced[0], *starts[0]
    else:
        A = torch.nn.utils.rnn.pad_sequence(balanced, batch_first=True)
        E = torch.nn.utils.rnn.pad_sequence([codes for codes, _ in starts], batch_first=True)
        B = torch.stack([basis for _, basis in starts])
    run = _iterate(A, E, B, options)
    if len(matrices) == 1:
        run = _Run(run.codes[None], run.basis[None], run.errors, run.iterations)
    return [_finish(A, scale, run, g, options) for g, (A, scale) in enumerate(zip(matrices, scales, strict=True))]


@dataclass(frozen=True)
class _Run:
    codes: Tensor
    basis: Tensor
    errors: Tensor
    iterations: Tensor


def _iterate(A: Tensor, E: Tensor, B: Tensor, options: NmfOptions) -> _Run:
    """Alternate the two half steps until every matrix of the batch stops."""
    update = UPDATES[options.solver]
    size = _sum_of_squares(A).clamp_min(torch.finfo(torch.float64).tiny)
    errors = [_error(size, E.mT @ A, E.mT @ E, B)]
    running = torch.ones_like(errors[0], dtype=torch.bool)
    iterations = torch.zeros_like(running, dtype=torch.int64)
    while running.any() and len(errors) <= options.max_iterations:
        E_new = update(E, A @ B.mT, B @ B.mT, options.inner_updates)
        EA, EE = E_new.mT @ A, E_new.mT @ E_new
        B_new = update(B.mT, EA.mT, EE, options.inner_updates).mT
        error = _error(size, EA, EE, B_new)
        # a step that rounding made worse is not taken, so the objective never rises
        better = running & (error <= errors[-1])
        keep = better.view(-1, 1, 1) if A.ndim == 3 else better
        E, B = torch.where(keep, E_new, E), torch.where(keep, B_new, B)
        error = torch.where(better, error, errors[-1])
        iterations += running
        running = better & (errors[-1] - error >= options.tolerance * errors[0])
        errors.append(error)
    history = (torch.stack(errors) / size).reshape(len(errors), -1).cpu()
    return _Run(E, B, history, iterations.reshape(-1).cpu())


def _multiplicative(factor: Tensor, cross: Tensor, gram: Tensor, repeats: int) -> Tensor:
    """factor <- factor * cross / (factor gram), repeated with the same products."""
    for _ in range(repeats):
        denominator = factor @ gram
        factor = factor * cross / torch.where(denominator > 0, denominator, torch.finfo(gram.dtype).eps)
    return factor


def _hierarchical(factor: Tensor, cross: Tensor, gram: Tensor, repeats: int) -> Tensor:
    """Exact minimisation over one column after the other (HALS, Cichocki and Phan 2009)."""
    factor = factor.clone(memory_format=torch.contiguous_format)
    for _ in range(repeats):
        for k in range(gram.shape[-1]):
            curvature = gram[..., k, k].clamp_min(torch.finfo(gram.dtype).tiny)[..., None]
            slope = cross[..., k] - (factor @ gram[..., k, None])[..., 0]
            factor[..., k] = (factor[..., k] + slope / curvature).clamp_min(0)
    return factor


UPDATES: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {"mu": _multiplicative, "hals": _hierarchical}


def _start_abs(A: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    E, B = _start_gaussian(A, rank, seed)
    return E.abs(), B.abs()


def _start_paper(A: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    E, B = _start_gaussian(A, rank, seed)
    return E.clamp_min(0), B.clamp_min(0)


def _start_gaussian(A: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian factors, scaled so that their product has the size of A; drawn on the CPU for every device."""
    generator = torch.Generator().manual_seed(seed)
    scale = (A.mean(dtype=torch.float64) / rank).sqrt().item()
    E = torch.randn(A.shape[0], rank, generator=generator, dtype=torch.float64) * scale
    B = torch.randn(rank, A.shape[1], generator=generator, dtype=torch.float64) * scale
    return E.to(A), B.to(A)


def _start_nndsvda(A: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Non-negative double SVD, zeros filled with a small constant (Boutsidis and Gallopoulos 2008); ignores the seed.

    The usual constant, the mean of A, changes with the scale of A and can swamp the start; this one scales with
    the factors.
    """
    left, values, right = _leading_singular_vectors(A, rank)
    E, B = torch.empty_like(left), torch.empty_like(right)
    for k in range(rank):
        u, v = left[:, k], right[k]
        positive = u.clamp_min(0).norm() * v.clamp_min(0).norm()
        negative = (-u).clamp_min(0).norm() * (-v).clamp_min(0).norm()
        sign = 1.0 if positive >= negative else -1.0
        u, v = (sign * u).clamp_min(0), (sign * v).clamp_min(0)
        size = (values[k] * u.norm() * v.norm()).sqrt()
        E[:, k] = size * torch.nn.functional.normalize(u, dim=0)
        B[k] = size * torch.nn.functional.normalize(v, dim=0)
    fill = 0.3 * (A.mean(dtype=torch.float64) / rank).sqrt().to(A)
    return torch.where(E > 0, E, fill), torch.where(B > 0, B, fill)


def _leading_singular_vectors(A: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (N, p), S (p,), Vt (p, D) by subspace iteration from the column side (Halko et al. 2011).

    The test vectors are drawn over the columns, so the order of the rows does not matter. Kept here rather
    than taken from scikit-learn because it stays on the device of A, and because handing A to another
    library's threads and back costs three times as much as the iteration itself.
    """
    generator = torch.Generator().manual_seed(0)
    Q = torch.randn(A.shape[1], min(rank + 10, *A.shape), generator=generator, dtype=torch.float64).to(A)
    for _ in range(7):
        Q = torch.linalg.qr(A.mT @ (A @ Q)).Q
    U, S, Wt = torch.linalg.svd(A @ Q, full_matrices=False)
    return U[:, :rank], S[:rank], (Wt @ Q.mT)[:rank]


STARTS: dict[str, Callable[[Tensor, int, int], tuple[Tensor, Tensor]]] = {
    "abs": _start_abs,
    "nndsvda": _start_nndsvda,
    "paper": _start_paper,
}


def _sum_of_squares(A: Tensor) -> Tensor:
    """||A||_F^2 in float64 without a float64 copy of A: one block of rows at a time."""
    total = torch.zeros(A.shape[:-2], dtype=torch.float64, device=A.device)
    for block in A.split(4096, dim=-2):
        total = total + block.double().square().sum(dim=(-2, -1))
    return total


def _error(size: Tensor, EA: Tensor, EE: Tensor, B: Tensor) -> Tensor:
    """||A - E B||^2 = ||A||^2 - 2 <E^T A, B> + <E^T E, B B^T>, combined in float64."""
    B = B.double()
    cross = (EA.double() * B).sum(dim=(-2, -1))
    return (size - 2 * cross + (EE.double() * (B @ B.mT)).sum(dim=(-2, -1))).clamp_min(0)


def _row_scale(A: Tensor, balance: float) -> Tensor:
    """(N, 1) norm^-balance; rows far below the mean norm are treated as if they had a twentieth of it."""
    norm = A.norm(dim=1, keepdim=True)
    floor = 0.05 * norm.mean().clamp_min(torch.finfo(A.dtype).tiny)
    return torch.pow(norm.clamp_min(floor), -balance)


def _finish(A: Tensor, scale: Tensor, run: _Run, g: int, options: NmfOptions) -> Factors:
    """One matrix's factors: the scale of each component in its codes, the codes in the units of the rows."""
    iterations = int(run.iterations[g])
    norm = run.basis[g].norm(dim=1)
    codes, basis = run.codes[g, : len(A)] * norm / scale, torch.nn.functional.normalize(run.basis[g], dim=1)
    size = _sum_of_squares(A).clamp_min(torch.finfo(torch.float64).tiny)
    return Factors(
        codes=codes,
        basis=basis,
        error=float(_error(size, codes.mT @ A, codes.mT @ codes, basis) / size),
        iterations=iterations,
        converged=iterations < options.max_iterations,
        history=tuple(run.errors[: iterations + 1, g].tolist()),
    )


def _check(A: Tensor, rank: int) -> None:
    if A.ndim != 2 or not A.is_floating_point():
        raise ValueError(f"expected a matrix of floats, got shape {tuple(A.shape)} and {A.dtype}")
    if not 1 <= rank <= min(A.shape):
        raise ValueError(f"rank {rank} is outside 1..{min(A.shape)}, the smaller side of a {tuple(A.shape)} matrix")
    low, high = torch.aminmax(A)
    if not (low >= 0 and torch.isfinite(high)):
        raise ValueError(f"expected finite values >= 0, got values from {low:.3g} to {high:.3g}")
