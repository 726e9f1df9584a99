"""How faithful concepts are to a network's logits, image by image, and what they name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .features import Images, Network

DRAWS = 1000
"""Of the bootstrap."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dictionary:
    """K concepts: logits = codes . weights + offset."""

    atoms: Tensor
    """(K, D) what one unit of each concept is among rows."""
    weights: Tensor
    """(C, K) what it adds to the logits: V . atom where nothing is fitted."""
    offset: Tensor
    """(C,)"""
    encode: Callable[[Images], Tensor]
    """(N, K) amounts of the concepts in images, each the sum over places."""
    shown: Tensor | None = None
    """(K, D) directions that a person is shown as the concepts; None: the atoms."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explainer:
    """What a method makes of a network."""

    by_class: Mapping[int, Dictionary]
    """Class -> what its explanations are made of; one dictionary for all where the method has one."""
    everywhere: Callable[[Images], Tensor] | None = None
    """(N, C) logits of all classes from concepts only; None: classes without concepts have none, or one dictionary
    gives them."""
    exactness: float | None = None
    """Largest difference to the network's own logits when what is left is added; None: the method adds nothing."""
    said: str = ""
    """What it did that a reader must know."""

    @property
    def joint(self) -> bool:
        """Whether one dictionary explains all classes."""
        return len({id(each) for each in self.by_class.values()}) == 1

    @property
    def atoms(self) -> Tensor:
        """(K, D) those of all dictionaries."""
        return torch.cat(list({id(each): each.atoms for each in self.by_class.values()}.values()))

    @property
    def shown(self) -> Tensor:
        """(K, D) directions of all concepts, each once."""
        found = [each.atoms if each.shown is None else each.shown for each in self.by_class.values()]
        return torch.cat(found).unique(dim=0)


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Images as a method sees them."""

    images: Images
    codes: Mapping[int, Tensor]
    """Class -> (N, K) codes in its dictionary."""

    @classmethod
    def of(cls, explainer: Explainer, images: Images) -> "Coded":
        """Encode images once with each dictionary."""
        kept: dict[int, Tensor] = {}
        for each in explainer.by_class.values():
            if id(each) not in kept:
                kept[id(each)] = each.encode(images).float()
        return cls(images=images, codes={c: kept[id(each)] for c, each in explainer.by_class.items()})


def rebuilt(explainer: Explainer, coded: Coded) -> Tensor:
    """(N, A) logits of the classes with concepts, from these alone: each class's from its own dictionary."""
    return torch.stack(
        [coded.codes[c] @ each.weights[c] + each.offset[c] for c, each in explainer.by_class.items()], dim=1
    )


def rebuilt_everywhere(explainer: Explainer, coded: Coded) -> Tensor | None:
    """(N, C) logits of all classes from concepts alone; None where most classes have none."""
    if explainer.everywhere is not None:
        return explainer.everywhere(coded.images)
    if not explainer.joint:
        return None
    c, each = next(iter(explainer.by_class.items()))
    return coded.codes[c] @ each.weights.mT + each.offset


def levelled(explainer: Explainer, few: Coded) -> Explainer:
    """The same with the mean of what concepts leave, over some training images, in the offset."""
    among = list(explainer.by_class)
    left = (few.images.logits[:, among] - rebuilt(explainer, few)).mean(dim=0)
    whole = None
    if explainer.joint:
        everywhere = rebuilt_everywhere(explainer, few)
        assert everywhere is not None
        whole = (few.images.logits - everywhere).mean(dim=0)
    changed: dict[int, Dictionary] = {}
    same: Dictionary | None = None
    for n, (c, each) in enumerate(explainer.by_class.items()):
        if whole is not None:
            same = same or replace(each, offset=each.offset + whole)
            changed[c] = same
        else:
            offset = each.offset.clone()
            offset[c] += left[n]
            changed[c] = replace(each, offset=offset)
    return replace(explainer, by_class=changed, everywhere=None)


# Faithfulness


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """(N,) KL(softmax(logits) || softmax(others)) in nats."""
    p, q = logits.double().log_softmax(dim=1), others.double().log_softmax(dim=1)
    return (p.exp() * (p - q)).sum(dim=1).float()


def area(curve: Tensor) -> Tensor:
    """(N,) area under curves (N, M + 1) over M steps of equal width, the whole width being 1 (trapezium rule)."""
    return (curve[:, 1:] + curve[:, :-1]).sum(dim=1) / 2 / (curve.shape[1] - 1)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Probability of the predicted class, (N, M + 1), as concepts go or come, the most important first."""

    deletion: Tensor
    """The network's own logits less the concepts' share: what is left of the image is kept."""
    insertion: Tensor
    """From the offset, concepts only."""
    alone: Tensor
    """Deletion among concepts only, as Fel et al. 2023 have it for one dictionary."""


def curves(explainer: Explainer, coded: Coded, steps: int) -> Curves:
    """Concept deletion and insertion (Fel et al. 2023), for the class that the network itself predicts.

    A concept's importance is its contribution, code x weight: gradient x input, which they show to be the best order
    where the logit is linear. A concept that goes takes its share of every class's logit with it. After the last
    concept of a class curves go on level. Probabilities are among the classes with concepts.

    Args:
        explainer: of the network.
        coded: images.
        steps: M.
    """
    among = list(explainer.by_class)
    logits = coded.images.logits[:, among]
    top = logits.argmax(dim=1)
    found = torch.empty(3, len(logits), steps + 1)
    for n, (c, each) in enumerate(explainer.by_class.items()):
        hit = (top == n).nonzero()[:, 0]
        codes = coded.codes[c][hit]
        order = (codes * each.weights[c]).argsort(dim=1, descending=True)[:, :steps]
        taken = codes.gather(1, order)[..., None] * each.weights[among].mT[order]
        gone = torch.zeros(len(hit), steps + 1, len(among))
        gone[:, 1 : order.shape[1] + 1] = taken.cumsum(dim=1)
        gone[:, order.shape[1] + 1 :] = gone[:, order.shape[1] : order.shape[1] + 1]
        alone = codes @ each.weights[among].mT + each.offset[among]
        starts = (logits[hit][:, None] - gone, each.offset[among] + gone, alone[:, None] - gone)
        for kind, changed in enumerate(starts):
            found[kind, hit] = changed.softmax(dim=2)[..., n]
    return Curves(deletion=found[0], insertion=found[1], alone=found[2])


def faithfulness(explainer: Explainer, coded: Coded, prototypes: int, longer: int = 12) -> dict[str, Tensor]:
    """(N,) figures of images by name; a name is missing where a method has no such logits.

    Args:
        explainer: of the network.
        coded: labelled images.
        prototypes: steps of deletion and insertion: as many concepts as a class has prototypes.
        longer: steps of the longer curves.
    """
    among = torch.tensor(list(explainer.by_class))
    own, found = coded.images.logits[:, among], rebuilt(explainer, coded)
    top = found.argmax(dim=1)
    figures = {
        "agreement": (top == own.argmax(dim=1)).float(),
        "right": (among[top] == coded.images.labels).float(),
        "kl": divergence(own, found),
    }
    everywhere = rebuilt_everywhere(explainer, coded)
    if everywhere is not None:
        whole = coded.images.logits
        figures["agreement_all"] = (everywhere.argmax(dim=1) == whole.argmax(dim=1)).float()
        figures["kl_all"] = divergence(whole, everywhere)
    drawn = curves(explainer, coded, longer)
    for name, end in (("", prototypes), ("_longer", longer)):
        figures[f"deletion{name}"] = area(drawn.deletion[:, : end + 1])
        figures[f"insertion{name}"] = area(drawn.insertion[:, : end + 1])
        figures[f"alone{name}"] = area(drawn.alone[:, : end + 1])
    return figures


# What concepts name


def plausibility(explainer: Explainer, network: Network) -> Tensor:
    """(A,) for each class the best cosine of any concept with the class's row of the head (Fel et al. 2025)."""
    heads = normalize(network.vectors[list(explainer.by_class)], dim=1)
    return (heads @ normalize(explainer.shown, dim=1).mT).amax(dim=1)


def average_precision(scores: Tensor, wanted: Tensor) -> Tensor:
    """(N,) mean, over the wanted entries of each row, of the share of wanted ones among those that score as high."""
    order = scores.argsort(dim=1, descending=True)
    hits = wanted.gather(1, order).float()
    precision = hits.cumsum(dim=1) / torch.arange(1, scores.shape[1] + 1)
    return (precision * hits).sum(dim=1) / hits.sum(dim=1)


def among_classes(made_of: Tensor, classes: Sequence[int]) -> Tensor:
    """(N, A) bool, which classes collages (N, 4) are made of."""
    return (made_of[:, :, None] == torch.tensor(list(classes))).any(dim=1)


def identified(logits: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """(N,) share of the four best classes that a collage is made of, and the average precision of its ranking."""
    four = logits.topk(4, dim=1).indices
    return {
        "precision_at_4": wanted.gather(1, four).float().mean(dim=1),
        "mean_average_precision": average_precision(logits, wanted),
    }


def best_concepts(explainer: Explainer, train: Coded, val: Coded) -> Tensor:
    """(A,) average precision with which one concept tells the collages with a class from those without.

    The concept is chosen for each class, from those of its explanations, on collages of training images. Fel et al.
    2025 take the best concept and threshold on the same collages, and accuracy.
    """
    classes = list(explainer.by_class)
    found = []
    for n, c in enumerate(classes):
        with_it = [among_classes(each.images.labels, classes)[:, n] for each in (train, val)]
        on_train = average_precision(train.codes[c].mT, with_it[0].expand(train.codes[c].shape[1], -1))
        best = int(on_train.argmax())
        found.append(average_precision(val.codes[c][None, :, best], with_it[1][None])[0])
    return torch.stack(found)


# Intervals


def resampled(count: int, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """(draws, count) weights of a bootstrap over images, each row adds up to 1; the same for all that is compared."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws) / count


def interval(values: Tensor, weights: np.ndarray) -> tuple[float, float, float]:
    """Mean of (N,) values, and its 95 % interval."""
    found = weights @ values.double().numpy()
    low, high = np.quantile(found, [0.025, 0.975])
    return float(values.double().mean()), float(low), float(high)
