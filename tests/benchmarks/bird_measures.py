"""FunnyBirds' measures (Hesse, Schaub-Meyer and Roth, ICCV 2023, section 4) on plain arrays: what a network answers
when parts are left out, and how important an explainer finds each part.

All are given image by image, from 0 to 1 and more is better; NaN where a measure says nothing of an image. N images of
C classes with K parts, and at most M objects in the background.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from bird_pictures import Shapes, smallest_sufficient
from scipy.stats import spearmanr

THRESHOLDS = np.linspace(0.01, 0.50, 80)
"""Shares of an explanation above which a part counts as important, as there."""
RELEVANT = 0.05
"""Share of the logit by which what is relevant lowers it, as there."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits of images as parts and objects are left out."""

    targets: np.ndarray
    """(N,) classes"""
    parts: np.ndarray
    """(N, 2^K, C): bit k of the number says that part k is left out."""
    objects: np.ndarray
    """(N, M, C): with one object left out; NaN where there is none."""

    @property
    def logits(self) -> np.ndarray:
        """(N, C) with everything in place."""
        return self.parts[:, 0]

    @property
    def predicted(self) -> np.ndarray:
        """(N,)"""
        return self.logits.argmax(axis=1)

    def without(self, n: int, left_out: Sequence[int]) -> np.ndarray:
        """(C,) logits of one image without some parts."""
        return self.parts[n, sum(1 << k for k in left_out)]

    @property
    def drops(self) -> np.ndarray:
        """(N, K) how far the true class's logit falls as each part alone is left out."""
        each = np.arange(len(self.targets))
        single = self.parts[:, [1 << k for k in range(self.count)], :][each, :, self.targets]
        return self.logits[each, self.targets][:, None] - single

    @property
    def object_drops(self) -> np.ndarray:
        """(N, M) the same of objects."""
        each = np.arange(len(self.targets))
        return self.logits[each, self.targets][:, None] - self.objects[each, :, self.targets]

    @property
    def count(self) -> int:
        """K"""
        return int(self.parts.shape[1]).bit_length() - 1

    def relevant(self, drops: np.ndarray) -> np.ndarray:
        """Which drops are relevant: at least 5 % of the logit, downwards. A missing object is not."""
        logit = self.logits[np.arange(len(self.targets)), self.targets][:, None]
        return np.nan_to_num(drops, nan=-1.0) >= np.maximum(RELEVANT * np.abs(logit), 1e-12)


@dataclass(frozen=True, eq=False)
class Importance:
    """What an explainer says of one class in one image."""

    parts: np.ndarray
    """(K,) sizes, which are ranked and compared."""
    part_scores: np.ndarray
    """(K,) those above a threshold count as important: a part's share of the whole attribution, or the share of the
    part that is covered."""
    object_scores: np.ndarray
    """(M,) the same of objects."""

    def important(self, threshold: float) -> frozenset[int]:
        """Parts above a threshold."""
        return frozenset(np.flatnonzero(self.part_scores > threshold).tolist())


def shared_out(parts: np.ndarray, objects: np.ndarray, whole: float) -> Importance:
    """Of attributions inside parts (K,) and objects (M,), and in the whole picture: v is important at a threshold t if
    v > t whole."""

    def scores(values: np.ndarray) -> np.ndarray:
        return values / whole if whole > 0 else np.where(values > 0, np.inf, -np.inf)

    return Importance(parts, scores(parts), scores(objects))


Explain = Callable[[int, int], Importance]
"""Of an image, by its number, and a class."""


# Of a network


def accuracy(answers: Answers) -> np.ndarray:
    """(N,) whether the predicted class is the true one."""
    return (answers.predicted == answers.targets).astype(float)


def background_independence(answers: Answers) -> np.ndarray:
    """(N,) share of an image's objects that are not relevant."""
    there = np.isfinite(answers.objects[:, :, 0])
    relevant = answers.relevant(answers.object_drops) & there
    with np.errstate(invalid="ignore"):
        return 1 - relevant.sum(axis=1) / there.sum(axis=1)


def alone(answers: Answers) -> np.ndarray:
    """(N, K) share of the logit that goes with each part, for those who want to know what a network looks at."""
    return answers.drops / answers.logits[np.arange(len(answers.targets)), answers.targets][:, None]


# Of an explainer


def single_deletion(answers: Answers, explain: Explain) -> np.ndarray:
    """(N,) Spearman's rank correlation of the parts' importance for the true class with the fall of its logit as each
    is left out, from 0 (opposite) over 0.5 (unrelated) to 1; NaN where either is the same for all parts."""
    found = np.full(len(answers.targets), np.nan)
    for n, c in enumerate(answers.targets.tolist()):
        said, fell = explain(n, c).parts, answers.drops[n]
        if np.ptp(said) > 0 and np.ptp(fell) > 0:
            found[n] = spearmanr(said, fell).statistic / 2 + 0.5
    return found


def synthetic_data_check(answers: Answers, explain: Explain, all_classes: Shapes, threshold: float) -> np.ndarray:
    """(N,) of the smallest sets of parts that only the true class has, the most that is found important of one; NaN
    where the true class is not predicted."""
    sets = {c: smallest_sufficient(all_classes, c) for c in set(answers.targets.tolist())}
    found = np.full(len(answers.targets), np.nan)
    for n, c in enumerate(answers.targets.tolist()):
        if answers.predicted[n] == c:
            important = explain(n, c).important(threshold)
            found[n] = max(len(each & important) / len(each) for each in sets[c])
    return found


def preservation_check(answers: Answers, explain: Explain, threshold: float) -> np.ndarray:
    """(N,) whether the prediction stays with the important parts alone, those that are important for it."""
    found = []
    for n, c in enumerate(answers.predicted.tolist()):
        others = set(range(answers.count)) - explain(n, c).important(threshold)
        found.append(answers.without(n, sorted(others)).argmax() == c)
    return np.array(found, dtype=float)


def deletion_check(answers: Answers, explain: Explain, threshold: float) -> np.ndarray:
    """(N,) whether the prediction goes as the important parts are left out."""
    found = []
    for n, c in enumerate(answers.predicted.tolist()):
        found.append(answers.without(n, sorted(explain(n, c).important(threshold))).argmax() != c)
    return np.array(found, dtype=float)


def distractibility(answers: Answers, explain: Explain, threshold: float) -> np.ndarray:
    """(N,) share of the irrelevant parts and objects that are not found important, for the true class; NaN where
    nothing is irrelevant."""
    found = np.full(len(answers.targets), np.nan)
    parts, objects = (~answers.relevant(drops) for drops in (answers.drops, answers.object_drops))
    objects &= np.isfinite(answers.objects[:, :, 0])
    for n, c in enumerate(answers.targets.tolist()):
        said = explain(n, c)
        count = parts[n].sum() + objects[n].sum()
        if count:
            wrong = (said.part_scores > threshold)[parts[n]].sum() + (said.object_scores > threshold)[objects[n]].sum()
            found[n] = 1 - wrong / count
    return found


def target_pairs(all_classes: Shapes, c: int) -> tuple[int, int] | None:
    """The first two classes that share two parts each with class c, not the same ones; None where there are none."""
    table = np.array(all_classes)
    alike = [set(np.flatnonzero(row == table[c]).tolist()) for row in table]
    sharing = [n for n, each in enumerate(alike) if len(each) == 2]
    return next(((a, b) for a, b in combinations(sharing, 2) if not alike[a] & alike[b]), None)


def target_sensitivity(answers: Answers, explain: Explain, all_classes: Shapes) -> np.ndarray:
    """(N,) of two classes that share two other parts each with the image's: how often the shared parts are more
    important for the class that shares them than for the other one. NaN where the network itself does not take it so:
    without a class's shared parts, its logit must fall further than without the other's."""
    table, found = np.array(all_classes), np.full(len(answers.targets), np.nan)
    for n, c in enumerate(answers.targets.tolist()):
        pair = target_pairs(all_classes, c)
        if pair is None:
            continue
        shared = [np.flatnonzero(table[other] == table[c]).tolist() for other in pair]
        falls = [[answers.logits[n, other] - answers.without(n, each)[other] for each in shared] for other in pair]
        if not (falls[0][0] > falls[0][1] and falls[1][1] > falls[1][0]):
            continue
        said = [explain(n, other).parts for other in pair]
        found[n] = np.mean([said[i][shared[i]].sum() > said[1 - i][shared[i]].sum() for i in (0, 1)])
    return found


def measured(answers: Answers, explain: Explain, all_classes: Shapes, threshold: float) -> dict[str, np.ndarray]:
    """Every measure of an explainer, (N,) by its short name there."""
    return {
        "SD": single_deletion(answers, explain),
        "D": distractibility(answers, explain, threshold),
        "TS": target_sensitivity(answers, explain, all_classes),
        "CSDC": synthetic_data_check(answers, explain, all_classes, threshold),
        "PC": preservation_check(answers, explain, threshold),
        "DC": deletion_check(answers, explain, threshold),
    }


def best_threshold(answers: Answers, explain: Explain, all_classes: Shapes) -> float:
    """The threshold with the largest completeness, ((CSDC + PC + DC) / 3 + D) / 2; of images that are not measured."""

    def score(threshold: float) -> float:
        checks = [
            np.nanmean(synthetic_data_check(answers, explain, all_classes, threshold)),
            preservation_check(answers, explain, threshold).mean(),
            deletion_check(answers, explain, threshold).mean(),
        ]
        return float(np.mean(checks) + np.nanmean(distractibility(answers, explain, threshold)))

    return float(max(THRESHOLDS, key=score))


def remembered(explain: Explain) -> Explain:
    """The same, each image and class asked once."""
    kept: dict[tuple[int, int], Importance] = {}

    def found(n: int, c: int) -> Importance:
        if (n, c) not in kept:
            kept[n, c] = explain(n, c)
        return kept[n, c]

    return found
