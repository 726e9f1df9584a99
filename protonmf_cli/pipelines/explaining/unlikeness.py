"""How unlike the training images of its class an image is, in the model's own parts: 0 is usual, 1 is one in twenty.

An image is looked at as the sum of its rows with a place, at length one. Its deviation from the mean of a class has
two sides: amounts of the class's parts (its own prototypes and those of its nearest classes), weighed by how images of
one class vary, and what the parts leave. Each is 1 on average over training images:

    d_c^2 = (a' S_c^-1 a / s + w |rest|^2 / t_c) / (1 + w)

a are the s amounts of the deviation, S_c their covariance and t_c the mean of |rest|^2 over images around their own
class's mean, w `REST_WEIGHT`. Of the best classes each counts with its probability: an image between two classes is
unlike either. This is Mahalanobis' distance (Lee et al. 2018) whose covariance is told apart in the span of the parts
and one number outside of it.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.maths.amounts import dual
from protonmf_cli.models.amounts import UsualImages
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Unlike, UnusualAmount

REST_WEIGHT = 3.0
"""Of what the parts leave, beside their amounts: chosen on training images and classes that were held out."""
SHRINKAGE = 0.01
"""Part of the amounts' correlations that is given up, so that nearly dependent amounts weigh no more than they say."""
NOTHING_LEFT = 1e-6
"""Squared size of the rest of rows of length one below which the parts leave nothing."""
NO_VARIANCE = 1e-12
"""Variance, in the largest of a class's amounts, below which an amount is the same in all images: it says nothing."""
BEST = 5
"""Classes with training images that count."""
STANDS_OUT = 2.0
"""Standard deviations from which an amount is named."""
MOST_NAMED = 2


NEGLIGIBLE = 1e-6
"""Probability below which a class does not count beside the best ones."""
MOST_KEPT = 256
"""Classes of which what is needed stays in memory."""


@dataclass(frozen=True, kw_only=True)
class ClassParts:
    """What splits rows into amounts of a class's s parts and a rest, from projections on the parts alone."""

    basis: Tensor
    """(s, D)"""
    mixing: Tensor
    """(s, s) amounts of projections."""
    carried: Tensor
    """(s,) what one unit of each amount rebuilds is this times the part."""

    @classmethod
    def of(cls, model: PrototypeModel, class_index: int) -> "ClassParts":
        """Of a model that reads amounts, in float64 on the CPU."""
        assert model.amounts is not None
        basis = model.basis(class_index).cpu().double()
        found = dual(basis, model.amounts.ridge)
        return cls(basis=basis, mixing=found.mixing, carried=found.carried)

    def left(self, sizes: Tensor, projections: Tensor, amounts: Tensor) -> Tensor:
        """(B,) squared size of what the amounts (B, s) leave of rows, from the rows' squared sizes (B,) and
        projections (B, s)."""
        made = self.carried * amounts
        left = sizes - 2 * (made * projections).sum(dim=1) + ((made @ (self.basis @ self.basis.mT)) * made).sum(dim=1)
        return left.clamp_min(0)


def at_length_one(read: Tensor) -> Tensor:
    """(B, D) float64 on the CPU, rows of the same direction; zero stays zero."""
    return torch.nn.functional.normalize(read.cpu().double(), dim=1)


class UsualClass:
    """What is usual in one class."""

    def __init__(self, model: PrototypeModel, images: UsualImages, class_index: int) -> None:
        active = model.active_classes.cpu()
        place = int(torch.searchsorted(active, class_index))
        sizes = model.ledger[1].diff()[active[: place + 1]]
        start, size = int(sizes[:-1].square().sum()), int(sizes[-1])
        covariance = images.covariance[start : start + size * size].cpu().double().reshape(size, size)
        self.parts = ClassParts.of(model, class_index)
        self.mean = images.mean[place].cpu().double()
        self.rest = float(images.rest[place])
        variance = covariance.diagonal()
        varies = variance > NO_VARIANCE * variance.max()
        self.spread = torch.where(varies, variance, math.inf).sqrt()
        correlation = covariance / torch.outer(self.spread, self.spread)
        damped = (1 - SHRINKAGE) * correlation + SHRINKAGE * torch.eye(size, dtype=correlation.dtype)
        self.precision = torch.linalg.pinv(damped, hermitian=True)
        self.quantiles = images.distances[place].cpu().double()

    def standardised(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, s) how many standard deviations each amount of rows (B, D) of length one is off, and (B,) the squared
        size of the rest's deviation, in units of the usual one."""
        mean, parts = self.mean, self.parts
        beside = torch.cat([parts.basis, mean[None]])
        found, own = rows @ beside.mT, beside @ mean
        projections = found[:, :-1] - own[:-1]
        amounts = projections @ parts.mixing.mT
        sizes = torch.linalg.vector_norm(rows, dim=1).square() - 2 * found[:, -1] + own[-1]
        return amounts / self.spread, parts.left(sizes, projections, amounts) / max(self.rest, NOTHING_LEFT)

    def distance(self, rows: Tensor) -> Tensor:
        """(B,) d_c of rows (B, D) of length one."""
        amounts, rest = self.standardised(rows)
        size: Tensor = ((amounts @ self.precision) * amounts).mean(dim=1)
        return ((size + REST_WEIGHT * rest) / (1 + REST_WEIGHT)).sqrt()

    def amounts_of(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """(s,) amounts of the sum of an image's rows (D,), and of the usual image as large."""
        parts = self.parts
        found, usual = parts.basis @ read, parts.basis @ self.mean * torch.linalg.vector_norm(read)
        return parts.mixing @ found, parts.mixing @ usual

    def share_below(self, distance: float) -> float | None:
        """Share of the class's training images at a smaller distance; None where there was one image alone."""
        if not float(self.quantiles[-1]) > 0:
            return None
        levels = torch.linspace(0, 1, len(self.quantiles), dtype=torch.float64)
        above = int(torch.searchsorted(self.quantiles, distance))
        if above in (0, len(levels)):
            return 0.0 if above == 0 else 1.0
        low, high = self.quantiles[above - 1 : above + 1].tolist()
        inside = (distance - low) / (high - low)
        return float(levels[above - 1] + inside * (levels[above] - levels[above - 1]))


class Unlikeness:
    """How unlike images are, for one model; what is needed of each class is made once."""

    def __init__(self, model: PrototypeModel, images: UsualImages) -> None:
        self.model, self.images = model, images
        self.active = model.active_classes.cpu()
        self.known: OrderedDict[int, UsualClass] = OrderedDict()

    @classmethod
    def of(cls, model: PrototypeModel) -> "Unlikeness | None":
        """None of models that do not say what is usual: without amounts, or of files from before this was kept."""
        images = None if model.amounts is None else model.amounts.images
        return None if images is None else cls(model, images)

    def usual(self, class_index: int) -> UsualClass:
        """What is usual in a class that has prototypes."""
        if class_index not in self.known:
            self.known[class_index] = UsualClass(self.model, self.images, class_index)
        self.known.move_to_end(class_index)
        if len(self.known) > MOST_KEPT:
            self.known.popitem(last=False)
        return self.known[class_index]

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(B, b) the best classes that have training images, and their probabilities among them, on the CPU.

        Args:
            logits: (B, C)
        """
        found, place = logits[:, self.active.to(logits.device)].topk(min(BEST, len(self.active)), dim=1)
        return self.active[place.cpu()], found.cpu().double().softmax(dim=1)

    def distances(self, read: Tensor, logits: Tensor) -> Tensor:
        """(B,) the mean of d_c over the best classes that have training images, by probability.

        Args:
            read: (B, D) sums of the rows with a place.
            logits: (B, C)
        """
        return self.mean_distances(at_length_one(read), *self.best(logits))

    def mean_distances(
        self, rows: Tensor, classes: Tensor, probability: Tensor, left_out: tuple[int, float] | None = None
    ) -> Tensor:
        """(B,) the mean of d_c over some classes, by probability.

        Args:
            rows: (B, D) of length one.
            classes, probability: (B, b) of `best`.
            left_out: class whose mean the images are left out of, and the factor by which their distance from it grows.
        """
        found, counts = torch.zeros_like(probability), probability > NEGLIGIBLE
        for c in classes[counts].unique().tolist():
            image, rank = ((classes == c) & counts).nonzero(as_tuple=True)
            grows = left_out[1] if left_out is not None and left_out[0] == c else 1.0
            chosen = rows if len(image) == len(rows) else rows[image]
            found[image, rank] = grows * self.usual(c).distance(chosen)
        return (probability * found).sum(dim=1)

    def scores(self, read: Tensor, logits: Tensor) -> Tensor:
        """(B,) unlikeness; NaN where the predicted class has no training images."""
        known = torch.isin(logits.argmax(dim=1).cpu(), self.active)
        return torch.where(known, self.images.scaled(self.distances(read, logits)), math.nan)

    def of_image(self, read: Tensor, logits: Tensor) -> Unlike:
        """Of one image, with what stands out, see `Unlike`.

        Args:
            read: (D,) sum of its rows with a place.
            logits: (C,)
        """
        c = int(logits.argmax())
        name = self.model.card.classes[c].shown
        images = self.model.card.data.images_per_class.get(str(c))
        if not bool(torch.isin(c, self.active)):
            return Unlike(class_index=c, name=name, score=None, share=None, images=images, rest=None, amounts=())
        usual = self.usual(c)
        distance = self.distances(read[None], logits[None])
        off, rest = usual.standardised(at_length_one(read[None]))
        return Unlike(
            class_index=c,
            name=name,
            score=float(self.images.scaled(distance)),
            share=usual.share_below(float(distance)),
            images=images,
            rest=math.sqrt(float(rest)),
            amounts=self._standing_out(c, usual, read.cpu().double(), off[0]),
        )

    def _standing_out(
        self, class_index: int, usual: UsualClass, read: Tensor, off: Tensor
    ) -> tuple[UnusualAmount, ...]:
        """The amounts that are furthest off, as the ledger has them: the usual ones are those of an image as large."""
        found, usually = usual.amounts_of(read)
        entries = self.model.entries(class_index)
        named = []
        for k in off.abs().argsort(descending=True)[:MOST_NAMED].tolist():
            if float(off[k].abs()) < STANDS_OUT:
                break
            prototype = int(self.model.weights.prototype[entries[k]])
            owner = int(self.model.owner[prototype])
            named.append(
                UnusualAmount(
                    prototype=self.model.number(prototype), prototype_id=prototype, owner_index=owner,
                    owner_name=self.model.card.classes[owner].shown, amount=float(found[k]), usual=float(usually[k]),
                    deviations=float(off[k]),
                )
            )  # fmt: skip
        return tuple(named)
