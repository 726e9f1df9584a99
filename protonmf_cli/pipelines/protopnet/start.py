"""Where a ProtoPNet's new layers start: the add-on layers from a linear classifier, the prototypes from a k-means."""

import warnings
from collections.abc import Callable, Iterable
from itertools import groupby

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet, feature_map
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.progress import SILENT, Progress

MOST_PATCHES = 20_000
"""Patches of a class that the k-means looks at, drawn with the seed."""
MOST_IMAGES = 20_000
"""Images that the linear classifier is fitted to, drawn with the seed, and as many patches."""
DIRECTION = 2.0
"""Standard deviation of the classifier's directions over patches, behind the first convolution."""
OTHER = 0.3
"""Of the other, random directions."""


def start_from_data(
    net: ProtoPNet,
    backbone: Backbone,
    batches: Callable[[], Iterable[ImageBatch]],
    count: int,
    options: ProtoPNetOptions,
    progress: Progress = SILENT,
) -> None:
    """Give the new layers their start.

    Args:
        net: as drawn; changed in place, unless the options want a random start.
        backbone: the same network, to read images.
        batches: the training images, class after class, as often as it is called.
        count: training images.
        options: start and seed.
    """
    if options.start == "random":
        return
    progress.stage("starting the add-on layers", count)
    start_add_on(net, backbone, batches(), options.seed, progress)
    progress.stage("starting the prototypes", count)
    start_prototypes(net, backbone, batches(), options.seed, progress)


def start_add_on(
    net: ProtoPNet, backbone: Backbone, batches: Iterable[ImageBatch], seed: int, progress: Progress = SILENT
) -> None:
    """Start the first add-on convolution with the directions that tell the classes apart in averaged features.

    A logistic regression on each image's mean feature gives one direction per class, or their principal directions
    where the classes are more than half of the channels. Each enters with both signs, because a ReLU follows; the
    other channels keep random directions. All are counted from the mean patch.

    Args:
        net: with its add-on layers as drawn; the first convolution is changed in place.
        backbone: the same network, to read images.
        batches: training images.
        seed: of the images and patches that are looked at.
    """
    (first, *_) = (layer for layer in net.addon.modules() if isinstance(layer, nn.Conv2d))
    pooled, patches, labels = _features(net, backbone, batches, seed, progress)
    mean = patches.mean(dim=0)
    centred = patches - mean
    directions = _class_directions(pooled, labels, first.out_channels // 2)
    directions *= (DIRECTION / (centred @ directions.mT).std(dim=0).clamp_min(1e-6))[:, None]
    weight = first.weight.data.flatten(1).cpu()
    weight *= OTHER / (centred @ weight.mT).std().clamp_min(1e-6)
    count = len(directions)
    weight[:count], weight[count : 2 * count] = directions, -directions
    first.weight.data = weight.reshape(first.weight.shape).to(first.weight)
    assert first.bias is not None
    first.bias.data = -(weight @ mean).to(first.bias)


def _features(
    net: ProtoPNet, backbone: Backbone, batches: Iterable[ImageBatch], seed: int, progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean features (N, D) and one random patch (N, D) of every image, and labels (N,): at most MOST_IMAGES, drawn."""
    generator = torch.Generator().manual_seed(seed)
    pooled: list[Tensor] = []
    patches: list[Tensor] = []
    labels: list[int] = []
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources:
            continue
        with torch.inference_mode():
            found = feature_map(net.network, backbone.normalise(batch.crops)).float().flatten(2).cpu()
        place = torch.randint(found.shape[2], (len(found),), generator=generator)
        pooled.append(found.mean(dim=2))
        patches.append(found[torch.arange(len(found)), :, place])
        labels += [batch.class_index] * len(found)
    kept = torch.randperm(len(labels), generator=generator)[:MOST_IMAGES]
    return torch.cat(pooled)[kept], torch.cat(patches)[kept], torch.tensor(labels)[kept]


def _class_directions(pooled: Tensor, labels: Tensor, most: int) -> Tensor:
    """(k, D) weights of a logistic regression on standardised features, or their principal directions, k <= `most`."""
    mean, deviation = pooled.mean(dim=0), pooled.std(dim=0) + 1e-6
    standardised = (pooled - mean) / deviation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be the minimum
        fitted = LogisticRegression(C=REGULARISATION, max_iter=200).fit(standardised.numpy(), labels.numpy())
    weights = torch.from_numpy(fitted.coef_).to(pooled)
    if len(weights) > most:
        weights = torch.linalg.svd(weights, full_matrices=False).Vh[:most]
    return weights / deviation


REGULARISATION = 0.1
"""scikit-learn's C of the logistic regression."""


def start_prototypes(
    net: ProtoPNet, backbone: Backbone, batches: Iterable[ImageBatch], seed: int, progress: Progress = SILENT
) -> None:
    """Start the prototypes of each class at the centres of a k-means of its latent patches.

    A class with fewer patches than prototypes keeps the rest as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    for class_index, of_class in groupby(batches, key=lambda batch: batch.class_index):
        own = (net.owner == class_index).nonzero()[:, 0]
        parts = []
        for batch in of_class:
            progress.advance(len(batch.sources) + len(batch.skipped))
            if batch.sources:
                parts.append(backbone.read(batch.crops).rows.float().flatten(0, 1).cpu())
        if not parts or not len(own):
            continue
        rows = torch.cat(parts)
        rows = rows[torch.randperm(len(rows), generator=generator)[:MOST_PATCHES]]
        count = min(len(own), len(rows))
        centres = KMeans(count, n_init=1, random_state=seed).fit(rows.numpy()).cluster_centers_
        net.prototypes.data[own[:count]] = torch.from_numpy(centres).to(net.prototypes)
