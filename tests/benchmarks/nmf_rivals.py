"""The factorisation against other libraries': CPU time to the same objective, each from its own start, on one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/nmf_rivals.py MODEL DATA [--only small,middle,large,real]

needs overcomplete and nmf-torch besides. The objective is ||A - E B||^2 of rows as they are. Every method first runs
long. The target is the worst of their last objectives times 1.001; a second one is the best of them times 1.001, which
not every method reaches. For each method the least number of iterations is searched that reaches the target. Then the
library's public call with that number and without its own stopping rule is timed, start included: CPU seconds, the
smallest of several rounds in which the methods take turns. The ratio is a method's time over that of ours.
"""

import argparse
import contextlib
import io
import os
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from nmf.nmf_models import NMFBatchHALS, NMFBatchMU, NMFBatchNnlsBpp
from sklearn.decomposition import NMF

from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.maths.nmf import factorise
from protonmf_cli.options import NmfOptions
from protonmf_cli.pipelines.conversion.rows import factorised_rows

# where overcomplete 0.3 and nmf-torch 0.1 ask for what older versions of these libraries had
mpl.cm.get_cmap = mpl.colormaps.get_cmap
torch.cholesky = torch.linalg.cholesky
from overcomplete.optimization import NMF as Overcomplete  # noqa: E402

SIZES = {"small": (2940, 1280, 3), "middle": (19600, 512, 5), "large": (63700, 2048, 5)}
"""Rows, width, components: a class of 60 images of 7 x 7 places, of 400, and of 1,300."""
LONG = 100
"""Iterations of every method before the target is set."""
ROUNDS = 3

Method = Callable[[torch.Tensor, int, int], tuple[np.ndarray, np.ndarray]]


def ours(solver: str, inner_updates: int) -> Method:
    def run(A: torch.Tensor, p: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        options = NmfOptions(
            solver=solver, inner_updates=inner_updates, balance=0.0, tolerance=0.0, max_iterations=iterations
        )
        found = factorise(A, p, options=options, seed=0)
        return found.codes.numpy(), found.basis.numpy()

    return run


def scikit_learn(solver: str) -> Method:
    def run(A: torch.Tensor, p: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        model = NMF(p, init="nndsvda", solver=solver, max_iter=iterations, tol=0.0, random_state=0)
        return model.fit_transform(A.numpy()), model.components_

    return run


def overcomplete(solver: str) -> Method:
    def run(A: torch.Tensor, p: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        codes, basis = Overcomplete(p, solver=solver, tol=0.0).fit(A, max_iter=iterations)
        return codes.numpy(), basis.numpy()

    return run


def nmf_torch(model: type, **more: float) -> Method:
    """With the options of its `run_nmf`, which itself fails below ten iterations."""
    words = {
        "init": "nndsvdar", "beta_loss": 2, "tol": 0.0, "random_state": 0, "alpha_W": 0.0, "l1_ratio_W": 0.0,
        "alpha_H": 0.0, "l1_ratio_H": 0.0, "fp_precision": "float", "device_type": "cpu", "n_jobs": 1,
    }  # fmt: skip

    def run(A: torch.Tensor, p: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        fitted = model(n_components=p, max_iter=iterations, **words, **more)
        with contextlib.redirect_stdout(io.StringIO()):
            codes = fitted.fit_transform(A)
        return codes.numpy(), fitted.W.numpy()

    return run


METHODS: dict[str, Method] = {
    "ours hals": ours("hals", 2),
    "ours mu": ours("mu", 8),
    "scikit-learn mu": scikit_learn("mu"),
    "scikit-learn cd": scikit_learn("cd"),
    "overcomplete mu": overcomplete("mu"),
    "overcomplete hals": overcomplete("hals"),
    "nmf-torch mu": nmf_torch(NMFBatchMU),
    "nmf-torch hals": nmf_torch(NMFBatchHALS, hals_max_iter=1),
    "nmf-torch halsvar": nmf_torch(NMFBatchHALS),
    "nmf-torch bpp": nmf_torch(NMFBatchNnlsBpp),
}


def planted(rows: int, width: int, p: int) -> torch.Tensor:
    """Rows >= 0 of twice as many sparse parts as are looked for, with noise before the ReLU; about half are zeros."""
    generator = torch.Generator().manual_seed(0)
    used = torch.rand(rows, 2 * p, generator=generator) < 0.4
    codes = torch.rand(rows, 2 * p, generator=generator) ** 4 * used * torch.logspace(0, -0.7, 2 * p)
    A = codes @ torch.rand(2 * p, width, generator=generator) ** 4
    spread = float(A.std())
    A += 0.5 * spread * torch.randn(rows, width, generator=generator) - 0.1 * spread
    return A.clamp_min_(0)


def class_rows(model: str, data: Path) -> torch.Tensor:
    """(N, D) rows of the first class of the training images, as the network reads them."""
    backbone, _ = load_backbone(BackboneRequest(name=model))
    images = find_images(data, "train", backbone.classes, ClassMapping())
    reader = image_reader(backbone.preprocessing, batch_size=32, workers=1)
    batches = reader.batches(images.of(sorted(images.files)[:1]))
    return torch.cat([backbone.read(b.crops).rows[:, : factorised_rows(backbone)].flatten(0, 1) for b in batches])


def objective(A: torch.Tensor, codes: np.ndarray, basis: np.ndarray) -> float:
    """||A - E B||^2 / ||A||^2 in float64, block by block."""
    E, B = torch.from_numpy(codes).double(), torch.from_numpy(np.ascontiguousarray(basis)).double()
    left = size = 0.0
    for part, code in zip(A.split(2048), E.split(2048), strict=True):
        left += float((part.double() - code @ B).square().sum())
        size += float(part.double().square().sum())
    return left / size


def iterations_to(objective_of: Callable[[int], float], target: float) -> int | None:
    """The least number of iterations whose objective is at most the target; None beyond `LONG`."""
    reached = 1
    while objective_of(reached) > target:
        if reached >= LONG:
            return None
        reached = min(LONG, 2 * reached)
    missed = reached // 2
    while reached - missed > 1:
        middle = (reached + missed) // 2
        missed, reached = (missed, middle) if objective_of(middle) <= target else (middle, reached)
    return reached


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(
    name: str, A: torch.Tensor, p: int, objectives: dict[str, Callable[[int], float]], target: float, words: str
) -> None:
    counts = {method: iterations_to(objective_of, target) for method, objective_of in objectives.items()}
    seconds: dict[str, list[float]] = {method: [] for method, count in counts.items() if count is not None}
    for _ in range(ROUNDS):
        for method, found in seconds.items():
            found.append(cpu_seconds(lambda method=method: METHODS[method](A, p, counts[method])))
    base = min(seconds["ours hals"])
    print(f"\n{name}, {A.shape[0]} x {A.shape[1]}, p = {p}: to {target:.6f}, {words}")
    for method, count in counts.items():
        if count is None:
            print(f"  {method:18} not within {LONG} iterations")
        else:
            best = min(seconds[method])
            print(f"  {method:18} {count:4d} iterations  {best:8.4f} s  ratio {best / base:6.2f}", flush=True)


def stopping(A: torch.Tensor, p: int) -> None:
    """What the default's own stopping rule reaches, on rows as they are and balanced, against a long run."""
    for balance in (0.0, NmfOptions().balance):
        stopped = factorise(A, p, options=NmfOptions(balance=balance), seed=0)
        long = factorise(A, p, options=NmfOptions(balance=balance, tolerance=0.0, max_iterations=400), seed=0)
        above = stopped.history[-1] / long.history[-1] - 1
        print(f"  default stop, balance {balance}: {stopped.iterations} iterations, {above:+.2%} of a long run's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="small,middle,large,real")
    words = parser.parse_args()
    torch.set_num_threads(1)
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1, so that every library computes on one thread")
    warnings.simplefilter("ignore")
    for name in words.only.split(","):
        A, p = (class_rows(words.model, words.data), 3) if name == "real" else (planted(*SIZES[name]), SIZES[name][2])
        objectives = {
            method: cache(lambda n, run=run, A=A, p=p: objective(A, *run(A, p, n))) for method, run in METHODS.items()
        }
        last = {method: objective_of(LONG) for method, objective_of in objectives.items()}
        print(name, {method: round(value, 6) for method, value in last.items()}, flush=True)
        compare(name, A, p, objectives, 1.001 * max(last.values()), "the worst last objective times 1.001")
        compare(name, A, p, objectives, 1.001 * min(last.values()), "the best last objective times 1.001")
        stopping(A, p)


if __name__ == "__main__":
    main()
