"""What logits say: which classes, and how probable each of them is."""

from torch import Tensor
from torch.nn.functional import one_hot


def probabilities(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Of logits (..., C): shares that add up to 1 where an image is of one class (softmax), else one for each label by
    itself (sigmoid)."""
    return logits.sigmoid() if multi_label else logits.softmax(dim=-1)


def said(logits: Tensor, *, multi_label: bool) -> Tensor:
    """(..., C) bool of logits (..., C): the class with the largest one, or all labels above 50 %."""
    if multi_label:
        return logits > 0
    return one_hot(logits.argmax(dim=-1), logits.shape[-1]).bool()


def answers(logits: Tensor, asked: Tensor | int, *, multi_label: bool) -> Tensor:
    """(...) int64 of logits (..., C): the class with the largest one; of labels the one that is asked for where it is
    above 50 %, else -1.

    Args:
        logits: (..., C)
        asked: class, or (...) classes.
        multi_label: whether an image may have several labels.
    """
    if not multi_label:
        return logits.argmax(dim=-1)
    wanted = logits.new_full(logits.shape[:-1], 0).long() + asked
    return wanted.where(logits.gather(-1, wanted[..., None])[..., 0] > 0, -1)


def jaccard(found: Tensor, expected: Tensor) -> Tensor:
    """(B,) float64 classes in both of those in either, of (B, C) bool; 1 where neither holds any.

    Of one class each it is 1 where they are equal, else 0; of several, accuracy as of Godbole and Sarawagi (2004).
    """
    either = (found | expected).sum(dim=-1).double()
    return ((found & expected).sum(dim=-1) / either).where(either > 0, 1.0)
