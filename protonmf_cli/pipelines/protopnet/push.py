"""Stages 2 and 3 of ProtoPNet: prototypes become training patches, then the last layer is fitted to them."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.maths.last_layer import l1_path, last_layer_objective, solve_last_layer
from protonmf_cli.maths.losses import other_class_mask
from protonmf_cli.maths.patch_assignment import Projected, theorem_counts
from protonmf_cli.maths.similarity import EPSILON, seen_by
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet, start_of_head
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.progress import SILENT, Progress
from protonmf_cli.pipelines.protopnet.activations import Activations, accuracy, compare_activations
from protonmf_cli.pipelines.protopnet.nearest_patches import project


def push(
    net: ProtoPNet,
    backbone: Backbone,
    images: Callable[[], Iterable[ImageBatch]],
    count: int,
    options: ProtoPNetOptions,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], list[dict[str, Any] | None]]:
    """Project the prototypes, measure what that did, and fit the last layer; the network is changed.

    Args:
        net, backbone: the network in evaluation mode.
        images: opens the training images, class after class.
        count: how many there are.
        options: rules of the projection and of the last layer.

    Returns:
        Figures of the push, and image and row of every prototype's patch, with `boxes_before_push` also the map of the
        image.

    Raises:
        InputError: a class has fewer patches than prototypes.
        NotExactError: the last layer could not be solved to the tolerance.
    """
    if options.reset_head:
        net.head.data = start_of_head(net.owner, len(net.head))
    progress.stage("push: nearest patches", count)
    found = project(
        net, backbone, images(), distinct=options.distinct, per_image=options.per_image,
        maps=options.boxes_before_push, progress=progress,
    )  # fmt: skip
    progress.stage("push: before and after", count)
    old = net.prototypes.detach().cpu().clone()
    before, after = compare_activations(net, backbone, images(), [old, found.prototypes], progress)
    net.prototypes.data = found.prototypes.to(net.prototypes)
    way = seen_by(found.prototypes, net.similarity) - seen_by(old, net.similarity)
    facts: dict[str, Any] = {
        "moved": float(way.norm(dim=1).mean()),
        "distance": float(found.distance.mean()),
        "images": found.images,
        "duplicates": found.duplicates,
        "kept": sum(source is None for source in found.sources),
        "accuracy_before": accuracy(net, before),
        "accuracy_after": accuracy(net, after),
        "theorem": _theorem(net, before, after, old),
    }
    if options.last_layer == "exact":
        facts["last_layer"] = fit_last_layer(net, after, options)
        facts["accuracy_last_layer"] = accuracy(net, after)
    maps = [{}] * len(old) if found.maps is None else [{"map": values} for values in found.maps.tolist()]
    return facts, [None if s is None else asdict(s) | values for s, values in zip(found.sources, maps, strict=True)]


def _theorem(net: ProtoPNet, before: Activations, after: Activations, old: Tensor) -> dict[str, Any] | None:
    """The theorem is about log similarities."""
    if net.similarity != "log":
        return None
    projected = Projected(
        before=before.distance,
        after=after.distance,
        same_patch=before.row == after.row,
        moved=(net.prototypes.detach().cpu() - old).norm(dim=1),
    )
    head, owner = net.head.detach().cpu(), net.owner.cpu()
    return asdict(theorem_counts(projected, head, owner, after.labels, epsilon=EPSILON))


def fit_last_layer(net: ProtoPNet, activations: Activations, options: ProtoPNetOptions) -> dict[str, Any]:
    """Solve stage 3 on cached activations and give the network its solution.

    Raises:
        NotExactError: the KKT residual stays above the tolerance; the network keeps its last layer.
    """
    owner, classes = net.owner.cpu(), len(net.head)
    similarities = net.similarities(activations.distance)
    found = solve_last_layer(
        similarities, activations.labels, owner, classes, l1=options.l1, tolerance=options.tolerance
    )
    if not found.converged:
        raise NotExactError(
            f"the last layer was not solved: KKT residual {found.kkt:.1e} after {found.iterations} iterations, at most "
            f"{options.tolerance:.0e} is wanted. Give a larger --l1 or --tolerance."
        )
    net.head.data = found.weights.to(net.head)
    other = other_class_mask(owner, classes)
    stored = net.head.detach().cpu()
    _, kkt = last_layer_objective(stored, similarities, activations.labels, owner, options.l1)
    return {
        "objective": found.objective,
        "cross_entropy": found.cross_entropy,
        "kkt": found.kkt,
        "kkt_in_float32": kkt,
        "iterations": found.iterations,
        "l1": options.l1,
        "other_class_weights": int((stored[other] != 0).sum()),
    }


L1_PATH = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


def last_layer_path(
    net: ProtoPNet, train: Activations, test: Activations | None, options: ProtoPNetOptions
) -> list[dict[str, Any]]:
    """Last layers for several weights of the L1 term: how sparse, and how right; the network is not changed.

    Args:
        net: the network.
        train: activations of the training images.
        test: of other images, for their accuracy.
        options: tolerance.
    """
    owner, classes = net.owner.cpu(), len(net.head)
    other = other_class_mask(owner, classes)
    found = l1_path(
        net.similarities(train.distance), train.labels, owner, classes, l1s=L1_PATH, tolerance=options.tolerance
    )
    return [
        {
            "l1": l1,
            "other_class_weights": int((solution.weights[other] != 0).sum()),
            "cross_entropy": solution.cross_entropy,
            "kkt": solution.kkt,
            "accuracy_train": accuracy(net, train, solution.weights.float()),
            "accuracy_test": None if test is None else accuracy(net, test, solution.weights.float()),
        }
        for l1, solution in zip(sorted(L1_PATH, reverse=True), found, strict=True)
    ]


def prune(net: ProtoPNet, activations: Activations, *, nearest: int, least: int) -> Tensor:
    """(P,) which prototypes stay: those with at least `least` of their own class among their `nearest` images.

    Reference: Chen et al. 2019, supplement (6 nearest patches, each of another image, fewer than 3: removed).
    """
    count = min(nearest, len(activations.labels))
    close = activations.distance.argsort(dim=0, stable=True)[:count]
    same = activations.labels[close] == net.owner.cpu()
    return same.sum(dim=0) >= least


def check_pruning(kept: Tensor, net: ProtoPNet, names: tuple[str, ...], nearest: int, least: int) -> None:
    """Refuse to prune a class away.

    Raises:
        InputError: naming the classes that would keep no prototype.
    """
    owner = net.owner.cpu()
    gone = [names[c] for c in owner.unique().tolist() if not bool(kept[owner == c].any())]
    if gone:
        listed = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        raise InputError(
            f"pruning would leave no prototype for {listed}: none of theirs has {least} of its own class among its "
            f"{nearest} nearest training images. Give a smaller --least."
        )
