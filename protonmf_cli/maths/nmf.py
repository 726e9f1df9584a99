"""Non-negative matrix factorisation with a fixed number of components, in passes over blocks of rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from protonmf_cli.maths.row_blocks import RowBlocks, Rows, Signs, small_steps
from protonmf_cli.options import NmfOptions

Update = Callable[[Tensor, Tensor, Tensor, int], None]
"""Brings a factor (..., p, n) nearer to its best in place: given the other factor's products with the data (..., p, n)
and with itself (..., p, p), and how often."""

LAST_UPDATES = 8
"""Least number of updates of the codes that are handed out."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A ~ codes @ basis."""

    codes: Tensor
    """(N, p), >= 0, in the units of A: the best ones for the basis."""
    basis: Tensor
    """(p, D), each row of unit L2 norm (all zero if the component died out); >= 0 unless A was split by sign."""
    error: float
    """||A - E B||^2 / ||A||^2, in [0, 1], of the rows as given, clipped or split by sign."""
    size: float
    """||A||^2 of the same rows."""
    iterations: int
    """Passes over the rows that were spent after the start."""
    converged: bool
    """False when the limit on iterations came first."""
    history: tuple[float, ...]
    """Objective (rows balanced) of the starting basis and after each iteration, divided by its value for E = 0."""
    parts: tuple[Tensor, ...] = ()
    """(p, D) basis of each part of the rows that was factorised along."""


def factorise(A: Rows, rank: int, *, options: NmfOptions, seed: int, signs: Signs = "none") -> Factors:
    """Factorise one non-negative matrix: minimise sum_n ||A_n - E_n B||^2 / ||A_n||^(2 q) over E, B >= 0.

    q = `options.balance`; 0 is the plain objective ||A - E B||_F^2. A larger q keeps few rows of large norm
    from deciding alone; the codes of a row do not depend on its weight, only the prototypes do.

    Rows are read block by block, in one pass per iteration and six more, and never copied as a whole; rows of
    equal values give equal bytes wherever they lie.

    Args:
        A: (N, D) or (n, T, D), float32 or float64, >= 0 unless `signs` says what is done about negative entries.
        rank: number of components p, 1 <= p <= min(N, D).
        options: start, solver and stopping rule.
        seed: for the random starts; equal seeds give equal bytes on one machine.
        signs: "split" factorises the positive parts of the rows with their negative ones beside them, where there are
            any, and joins the halves of each direction; "clip" takes negative entries as 0.

    Returns:
        Factors on the device and with the dtype of A.

    Raises:
        ValueError: A is not a finite matrix, has negative entries, or has fewer than p rows or columns.

    Reference: Lee and Seung 2001; Gillis and Glineur 2012 (inner updates); Ang and Gillis 2019 (extrapolation);
    ProtoNMF, eq. 1-3.

    >>> A = torch.outer(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 4.0]))
    >>> found = factorise(A, 1, options=NmfOptions(), seed=0)
    >>> [round(x, 4) for x in found.basis[0].tolist()], round(found.error, 6)
    ([0.6, 0.0, 0.8], 0.0)
    """
    return factorise_group([A], rank, options=options, seeds=[seed], signs=signs)[0]


def factorise_group(
    matrices: Sequence[Rows],
    rank: int,
    *,
    options: NmfOptions,
    seeds: Sequence[int],
    signs: Signs = "none",
    parts: Sequence[Sequence[Tensor]] = (),
) -> list[Factors]:
    """Factorise several matrices of equal width, in one batch on an accelerator.

    There, shorter matrices are padded with zero rows, which stay zero and add nothing to the objective. Parts of the
    rows are factorised in the same passes as the whole. The basis that has finished is left as it is while the others
    go on, so each is the one it would be alone, up to rounding; its codes are improved along.

    Args:
        matrices: G matrices, (N_g, D) or (n_g, T, D) each.
        rank, options, signs: as in `factorise`.
        seeds: one per matrix.
        parts: for each matrix as many sets of indices along its first axis; their bases are found as well.

    Returns:
        G factorisations, in order.
    """
    together = len(matrices) > 1 and all(isinstance(A, Tensor) and A.device.type != "cpu" for A in matrices)
    parts = parts or [()] * len(matrices)
    found: dict[int, Factors] = {}
    for group in _batches(matrices, signs, parts) if together else ([g] for g in range(len(matrices))):
        A, own, seen = [matrices[g] for g in group], [seeds[g] for g in group], [parts[g] for g in group]
        found.update(zip(group, _factorise(A, rank, options, own, signs, seen), strict=True))
    return [found[g] for g in range(len(matrices))]


def _batches(matrices: Sequence[Rows], signs: Signs, parts: Sequence[Sequence[Tensor]]) -> Iterable[list[int]]:
    """Matrices of as many parts and equal width once they are split: random starts are as wide as that."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for g, (A, chosen) in enumerate(zip(matrices, parts, strict=True)):
        negative = signs == "split" and bool(A[: A.shape[0]].amin() < 0)
        groups.setdefault((len(chosen), negative), []).append(g)
    return groups.values()


@dataclass(frozen=True)
class _Task:
    """G matrices, and Q weightings of the rows of each: of the whole, and of every part."""

    blocks: RowBlocks
    members: Tensor
    """(G, Q, N) which rows count."""
    weights: Tensor
    """(G, Q, N) of the rows' squared errors, 0 for those that do not count."""
    norms: Tensor
    """(G, N) of the rows."""

    @property
    def size(self) -> Tensor:
        """(G, Q) objective for E = 0."""
        return (self.weights.double() * self.norms[:, None].double().square()).sum(dim=-1)


def _factorise(
    matrices: Sequence[Rows], rank: int, options: NmfOptions, seeds: Sequence[int], signs: Signs,
    parts: Sequence[Sequence[Tensor]],
) -> list[Factors]:  # fmt: skip
    for A in matrices:
        _check(A, rank)
    with small_steps() as threads:
        task = _task(matrices, signs, parts, options.balance, threads)
        codes, basis = STARTS[options.init](task, rank, seeds)
        run = _iterate(task, codes, basis, options)
        return _finished(task, run, options)


def _task(
    matrices: Sequence[Rows], signs: Signs, parts: Sequence[Sequence[Tensor]], balance: float, threads: int = 1
) -> _Task:
    """One pass over the rows: their norms, which give their weights.

    Raises:
        ValueError: an entry is not finite, or is negative where none may be.
    """
    blocks = RowBlocks(matrices, "none", threads)
    norms, low = _survey(blocks)
    if not norms.isfinite().all() or (low < 0 and signs == "none"):
        low, high = _range(blocks)
        raise ValueError(f"expected finite values >= 0, got values from {low:.3g} to {high:.3g}")
    if low < 0:
        blocks = RowBlocks(matrices, signs, threads)
        norms = _survey(blocks)[0] if signs == "clip" else norms
    members = torch.stack([_members(blocks, g, chosen) for g, chosen in enumerate(parts)]).to(norms.device)
    return _Task(blocks, members, _weights(norms, members, balance), norms)


def _survey(blocks: RowBlocks) -> tuple[Tensor, float]:
    """(G, N) norms of the rows, and the smallest entry."""
    norms, low = [], []
    for block in blocks:
        part = block.plain
        norms.append(torch.linalg.vector_norm(part, dim=-1))
        low.append(part.amin())
    return torch.cat(norms, dim=1), float(torch.stack(low).amin())


def _range(blocks: RowBlocks) -> tuple[float, float]:
    found = [torch.stack(torch.aminmax(block.plain)) for block in blocks]
    low, high = torch.stack(found).unbind(dim=1)
    return float(low.amin()), float(high.amax())


def _members(blocks: RowBlocks, g: int, parts: Sequence[Tensor]) -> Tensor:
    """(Q, N) which rows belong to one matrix, and to each part of it."""
    found = torch.zeros(1 + len(parts), blocks.count, dtype=torch.bool)
    found[0, : blocks.counts[g]] = True
    for q, images in enumerate(parts, start=1):
        found[q].view(-1, blocks.each)[images] = True
    return found


def _weights(norms: Tensor, members: Tensor, balance: float) -> Tensor:
    """(G, Q, N) norm^(-2 balance) in units of the mean norm; rows far below that count as if they had a twentieth."""
    each = norms[:, None] * members
    mean = each.sum(dim=-1, keepdim=True, dtype=torch.float64) / members.sum(dim=-1, keepdim=True)
    relative = each / mean.clamp_min(torch.finfo(norms.dtype).tiny).to(norms)
    return members * relative.clamp_min(0.05).pow(-2 * balance)


@dataclass(frozen=True)
class _Run:
    codes: Tensor
    """(G, Q, p, N)"""
    basis: Tensor
    """(G, Q, p, D) float64"""
    errors: Tensor
    """(iterations + 1, G, Q) as shares of the objective for E = 0."""
    iterations: Tensor
    """(G, Q)"""


def _iterate(task: _Task, codes: Tensor, basis: Tensor, options: NmfOptions) -> _Run:
    """Alternate the two half steps until every problem stops.

    The codes are found at a point beyond the last basis, in the direction of its last change, further the longer the
    objective has fallen. A basis that is worse than the last one is not taken, and the next starts from that one.
    """
    update, extrapolate = UPDATES[options.solver], options.solver in EXTRAPOLATED
    size = task.size.clamp_min(torch.finfo(torch.float64).tiny)
    point, momentum = basis, torch.ones_like(size)
    running, iterations = torch.ones_like(size, dtype=torch.bool), torch.zeros_like(size, dtype=torch.int64)
    errors: list[Tensor] = []
    while len(left := running.any(dim=0).nonzero()[:, 0]) and len(errors) <= options.max_iterations:
        EA, EE = _products(task, codes, point, update, options.inner_updates, left)
        errors = errors or [_error(size, EA, EE, point)]
        new = point.clone()
        update(new, EA, EE, options.inner_updates)
        error = _error(size, EA, EE, new)
        better = running & (error <= errors[-1])
        ahead = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        change = ((momentum - 1) / ahead)[..., None, None] * (new - basis) if extrapolate else 0.0
        basis = torch.where(better[..., None, None], new, basis)
        point = torch.where(better[..., None, None], (new + change).clamp_min(0), basis)
        error = torch.where(better, error, errors[-1])
        iterations += running
        # a step that extrapolation made worse is not the end, one that rounding made worse is
        running = torch.where(better, errors[-1] - error >= options.tolerance * errors[0], running & (momentum > 1))
        momentum = torch.where(better, ahead, 1.0) if extrapolate else momentum
        errors.append(error)
    return _Run(codes, basis, torch.stack(errors) / size, iterations)


def _products(
    task: _Task, codes: Tensor, basis: Tensor, update: Update, repeats: int, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """One pass over the rows: codes (G, Q, p, N) are updated for the basis, in place, for some of the Q.

    Returns:
        Weighted sums E^T A (G, Q, p, D) and E^T E (G, Q, p, p) in float64; zeros for the other Q.
    """
    chosen_basis = basis[:, chosen].to(codes.dtype)
    gram = chosen_basis @ chosen_basis.mT

    def updated(rows: slice, cross: Tensor) -> Tensor:
        part = codes[:, chosen, :, rows]
        update(part, cross, gram, repeats)
        codes[:, chosen, :, rows] = part
        return part

    EA = torch.zeros_like(basis)
    EE = EA.new_zeros(*basis.shape[:3], basis.shape[2])
    EA[:, chosen], EE[:, chosen] = _sums(task, chosen_basis, task.weights[:, chosen], updated)
    return EA, EE


def _sums(
    task: _Task, basis: Tensor, weights: Tensor, codes_of: Callable[[slice, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """E^T A and E^T E in float64, weighted, for codes E that follow block by block from the products A B^T.

    Args:
        task: the rows.
        basis: (G, Q, p, D) B.
        weights: (G, Q, N)
        codes_of: (G, Q, p, n) codes of some rows from their products (G, Q, p, n).
    """
    EA = torch.zeros_like(basis, dtype=torch.float64)
    EE = EA.new_zeros(*basis.shape[:3], basis.shape[2])
    for block in task.blocks:
        rows = slice(block.start, block.stop)
        part = codes_of(rows, block.times(basis.flatten(1, 2)).unflatten(1, basis.shape[1:3]))
        weighted = part * weights[:, :, None, rows]
        EA += block.gathered(weighted.flatten(1, 2)).view(basis.shape)
        EE += weighted @ part.mT
    return EA, EE


def _multiplicative(factor: Tensor, cross: Tensor, gram: Tensor, repeats: int) -> None:
    """factor <- factor * cross / (gram factor) in place, repeated with the same products."""
    cross = cross.clamp_min(0)
    for _ in range(repeats):
        denominator = gram @ factor
        factor.mul_(cross / torch.where(denominator > 0, denominator, torch.finfo(gram.dtype).eps))


def _hierarchical(factor: Tensor, cross: Tensor, gram: Tensor, repeats: int) -> None:
    """Exact minimisation over one row of the factor (..., p, n) after the other (HALS, Cichocki and Phan 2009)."""
    factor, cross, gram = (part.view(-1, *part.shape[-2:]) for part in (factor, cross, gram))
    curvature = gram.diagonal(dim1=-2, dim2=-1)[..., None].clamp_min(torch.finfo(gram.dtype).tiny)
    goals, slopes = (cross / curvature).split(1, dim=1), (gram / curvature).split(1, dim=1)
    steps = list(zip(factor.split(1, dim=1), goals, slopes, strict=True))
    for _ in range(repeats):
        for row, goal, slope in steps:
            row.add_(torch.baddbmm(goal, slope, factor, alpha=-1)).relu_()


UPDATES: dict[str, Update] = {"mu": _multiplicative, "hals": _hierarchical}
EXTRAPOLATED = {"hals"}
"""Solvers whose bases may lie beyond the last one: multiplicative updates would keep the zeros that clipping makes."""


def _start_abs(task: _Task, rank: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return _start_gaussian(task, rank, seeds, torch.abs)


def _start_paper(task: _Task, rank: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return _start_gaussian(task, rank, seeds, torch.relu)


def _start_gaussian(
    task: _Task, rank: int, seeds: Sequence[int], sign: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gaussian factors, scaled so that their product has the size of A; drawn on the CPU for every device."""
    blocks, root = task.blocks, task.weights.sqrt()
    ones = torch.ones(len(root), 1, blocks.width, dtype=blocks.dtype, device=blocks.device)
    sums = torch.cat([block.times(ones) for block in blocks], dim=-1)
    mean = (root * sums).sum(dim=-1, dtype=torch.float64) / task.members.sum(dim=-1) / blocks.width
    codes = root.new_zeros(*root.shape[:2], rank, root.shape[2])
    basis = root.new_zeros(*root.shape[:2], rank, blocks.width, dtype=torch.float64)
    for g, seed in enumerate(seeds):
        for q, members in enumerate(task.members[g]):
            generator = torch.Generator().manual_seed(seed)
            scale = float((mean[g, q] / rank).sqrt())
            E = torch.randn(int(members.sum()), rank, generator=generator, dtype=torch.float64) * scale
            B = torch.randn(rank, blocks.width, generator=generator, dtype=torch.float64) * scale
            codes[g, q][:, members] = sign(E).mT.to(codes) / root[g, q, members]
            basis[g, q] = sign(B).to(basis)
    return codes, basis


def _start_nndsvda(task: _Task, rank: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Non-negative double SVD, zeros filled with a small constant (Boutsidis and Gallopoulos 2008); ignores the seeds.

    The usual constant, the mean of A, changes with the scale of A and can swamp the start; this one, a tenth of the
    component's mean, scales with each component, of which nothing is left below it.
    """
    right = _leading_right_vectors(task, rank)
    codes = task.weights.new_empty(*right.shape[:3], task.blocks.count)
    sizes = torch.zeros(2, *right.shape[:3], dtype=torch.float64, device=codes.device)
    for block in task.blocks:
        rows = slice(block.start, block.stop)
        left = block.times(right.flatten(1, 2).to(codes)).view(*right.shape[:3], -1)
        codes[..., rows] = left
        sizes += (_sides(left).square_() * task.weights[:, :, None, rows]).sum(dim=-1)
    up, down = sizes.sqrt() * _sides(right).norm(dim=-1)
    sign = torch.where(up >= down, 1.0, -1.0)[..., None]
    basis = (sign * right).relu_()
    codes.mul_((sign * basis.norm(dim=-1, keepdim=True)).to(codes)).relu_()
    basis = torch.nn.functional.normalize(basis, dim=-1)
    inside = task.members[..., None].to(codes)
    floor = codes @ inside / inside.sum(dim=-2, keepdim=True)
    return torch.maximum(codes, 0.1 * floor, out=codes), basis.maximum(0.1 * basis.mean(dim=-1, keepdim=True))


def _sides(values: Tensor) -> Tensor:
    """(2, ...) sizes of the positive and of the negative ones."""
    return torch.stack([values, -values]).relu_()


def _leading_right_vectors(task: _Task, rank: int) -> Tensor:
    """(G, Q, p, D) leading right singular vectors by three passes of subspace iteration (Halko et al. 2011).

    The test vectors are drawn over the columns, so the order of the rows does not matter.
    """
    weights, width = task.weights, task.blocks.width
    drawn = torch.randn(width, min(rank + 10, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    AA = drawn.mT.to(weights.device).expand(*weights.shape[:2], -1, -1)
    for _ in range(3):
        Q = torch.linalg.qr(AA.mT).Q.mT
        AA, _ = _sums(task, Q.to(weights.dtype), weights, lambda rows, products: products)
    axes = torch.linalg.eigh(Q @ AA.mT).eigenvectors.flip(-1)[..., :rank]
    return torch.nn.functional.normalize(axes.mT @ AA, dim=-1)


STARTS: dict[str, Callable[[_Task, int, Sequence[int]], tuple[Tensor, Tensor]]] = {
    "abs": _start_abs,
    "nndsvda": _start_nndsvda,
    "paper": _start_paper,
}


def _error(size: Tensor, EA: Tensor, EE: Tensor, B: Tensor) -> Tensor:
    """||A - E B||^2 = ||A||^2 - 2 <E^T A, B> + <E^T E, B B^T>."""
    cross = (EA * B).sum(dim=(-2, -1))
    return (size - 2 * cross + (EE * (B @ B.mT)).sum(dim=(-2, -1))).clamp_min(0)


def _finished(task: _Task, run: _Run, options: NmfOptions) -> list[Factors]:
    """The best codes for each whole matrix's basis, and their error without weights, in one more pass."""
    length = run.basis[:, :1].norm(dim=-1, keepdim=True)
    codes, basis = run.codes[:, :1] * length.to(run.codes), torch.nn.functional.normalize(run.basis, dim=-1)
    whole = replace(task, members=task.members[:, :1], weights=task.members[:, :1].to(task.weights))
    update, first = UPDATES[options.solver], torch.zeros(1, dtype=torch.int64, device=codes.device)
    EA, EE = _products(whole, codes, basis[:, :1], update, max(LAST_UPDATES, options.inner_updates), first)
    size = whole.size.clamp_min(torch.finfo(torch.float64).tiny)
    errors = (_error(size, EA, EE, basis[:, :1]) / size)[:, 0].tolist()
    found = []
    for g, count in enumerate(task.blocks.counts):
        iterations = int(run.iterations[g, 0])
        directions = basis[g].to(task.blocks.dtype)
        factors = Factors(
            codes=codes[g, 0, :, :count].mT.contiguous(),
            basis=directions[0],
            error=errors[g],
            size=float(whole.size[g, 0]),
            iterations=iterations,
            converged=iterations < options.max_iterations,
            history=tuple(run.errors[: iterations + 1, g, 0].tolist()),
            parts=tuple(directions[1:]),
        )
        found.append(joined(factors) if task.blocks.signs == "split" else factors)
    return found


def joined(factors: Factors) -> Factors:
    """Factors of rows that were split by sign as signed directions in the rows' own space, s_k = b_k+ - b_k-.

    What E B was to the split rows, codes times s_k are to the rows themselves. Directions have unit norm again, and
    codes take up their length.
    """
    basis, length = _joined(factors.basis)
    parts = tuple(_joined(part)[0] for part in factors.parts)
    return replace(factors, basis=basis, codes=factors.codes * length, parts=parts)


def _joined(basis: Tensor) -> tuple[Tensor, Tensor]:
    positive, negative = basis.chunk(2, dim=1)
    signed = positive - negative
    length = signed.norm(dim=1)
    return signed * torch.where(length > 0, 1 / length, 0.0)[:, None], length


def _check(A: Rows, rank: int) -> None:
    if len(A.shape) not in (2, 3) or not A.dtype.is_floating_point:
        raise ValueError(f"expected a matrix of floats, got shape {tuple(A.shape)} and {A.dtype}")
    rows = A.shape[0] * (A.shape[1] if len(A.shape) == 3 else 1)
    if not 1 <= rank <= min(rows, A.shape[-1]):
        least = min(rows, A.shape[-1])
        raise ValueError(f"rank {rank} is outside 1..{least}, the smaller side of a {tuple(A.shape)} matrix")


def match_prototypes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one matching with the largest sum of cosines (Hungarian method).

    Args:
        first, second: (p, D) prototypes of unit norm.

    Returns:
        (p,) int64 row of `second` for each row of `first`, and (p,) float64 cosines.

    >>> partner, cosine = match_prototypes(torch.eye(2), torch.eye(2).flip(0))
    >>> partner.tolist(), cosine.tolist()
    ([1, 0], [1.0, 1.0])
    """
    cosine = first.double().cpu() @ second.double().cpu().mT
    row, column = linear_sum_assignment(cosine.numpy(), maximize=True)
    return torch.from_numpy(column), cosine[torch.from_numpy(row), torch.from_numpy(column)]


def split_stability(whole: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How alike each prototype comes out of two halves of the images.

    Args:
        whole: (p, D) prototypes of all images.
        first, second: (p, D) prototypes of each half.

    Returns:
        (p,) cosine between the partners of each prototype in the two halves.
    """
    one, _ = match_prototypes(whole, first)
    two, _ = match_prototypes(whole, second)
    return (first.double().cpu()[one] * second.double().cpu()[two]).sum(dim=1)
