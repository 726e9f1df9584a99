"""Which class of an image is explained, and which one it is compared with."""

from torch import Tensor

from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import Among


def chosen_among(model: PrototypeModel, among: Among | None) -> Among:
    """The classes that are asked for; else those with prototypes where most have none, and all where most have some."""
    some = len(model.active_classes)
    return among or ("prototypes" if 0 < 2 * some < len(model.bias) else "all")


def best_class(model: PrototypeModel, logits: Tensor, among: Among) -> int:
    """The class that is explained where none is named: the best of all, or of those with prototypes.

    Args:
        model: of the classes.
        logits: (C,) of one image.
        among: which classes; of a model without any prototype all.
    """
    classes = model.active_classes
    if among == "all" or not len(classes):
        return int(logits.argmax())
    return int(classes[logits[classes].argmax()])


def next_class(model: PrototypeModel, logits: Tensor, class_index: int) -> int | None:
    """The best other class with prototypes, to compare a class with; None where there is none.

    Args:
        model: of the classes.
        logits: (C,) of one image.
        class_index: the class that is explained.
    """
    others = model.active_classes[model.active_classes != class_index]
    return int(others[logits[others].argmax()]) if len(others) else None
