"""Figures of a trained ProtoPNet on labelled images: accuracy, sparsity, unique prototypes."""

from collections import defaultdict
from typing import Any

from protonmf_cli.maths.losses import other_class_mask
from protonmf_cli.maths.metrics import bootstrap_interval
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.pipelines.protopnet.activations import Activations, right_answers

NEAREST = 5
"""Nearest images of a prototype that are looked at."""


def quality(net: ProtoPNet, model: PrototypeModel, found: Activations, seed: int) -> dict[str, Any]:
    """What `protopnet evaluate` reports of labelled images.

    Purity: share of the 5 images nearest to a prototype that are of its class, over all prototypes.

    Args:
        net, model: the trained network, twice.
        found: activations of the images.
        seed: of the interval.
    """
    head, owner = net.head.detach().cpu(), net.owner.cpu()
    right = right_answers(net, found)
    other = other_class_mask(owner, len(head))
    close = found.distance.argsort(dim=0, stable=True)[:NEAREST]
    return {
        "images": len(found.labels),
        "accuracy": float(right.mean()),
        "accuracy_interval": list(bootstrap_interval(right.numpy(), seed=seed)),
        "sparsity": {
            "other_class_connections": int(other.sum()),
            "other_class_weights": int((head[other] != 0).sum()),
            "weights_per_class": float((head != 0).double().sum() / len(head)),
        },
        "prototypes": unique_prototypes(model),
        "purity": float((found.labels[close] == owner).double().mean()),
    }


def unique_prototypes(model: PrototypeModel) -> dict[str, int]:
    """How many prototypes differ as vectors, and from how many images they come."""
    of_class: dict[int, set[str]] = defaultdict(set)
    for j in range(len(model.prototypes)):
        examples = model.examples.of(j)
        if examples:
            of_class[int(model.owner[j])].add(model.examples.sources[examples[0]].sha256)
    return {
        "count": len(model.prototypes),
        "unique": len(model.prototypes.unique(dim=0)),
        "images": len(set().union(*of_class.values())) if of_class else 0,
        "fewest_images_of_a_class": min((len(images) for images in of_class.values()), default=0),
    }
