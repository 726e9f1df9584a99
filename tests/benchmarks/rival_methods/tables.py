"""Markdown tables of what was measured, with intervals, and what they say of first places."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .measures import interval, resampled

OURS = "ours"
GOAL = {"agreement": 1, "kl": -1, "deletion": -1, "insertion": 1}
"""The four measures by which a method is first or not, and which way is better."""
FAITHFUL = {
    "agreement": "agreement", "agreement_all": "agreement, all classes", "right": "accuracy", "kl": "KL",
    "kl_all": "KL, all classes", "deletion": "C-deletion (low is good)", "insertion": "C-insertion",
}  # fmt: skip
BESIDE = {
    "agreement": "agreement, level", "kl": "KL, level", "alone": "C-deletion among concepts only",
    "deletion_longer": "C-deletion, 12 concepts", "insertion_longer": "C-insertion, 12 concepts",
}  # fmt: skip
UNEQUAL = "EPIC, all channels"
"""Has more concepts than the others, so it takes no place."""
Found = Mapping[str, Mapping[int, Mapping[str, Any]]]


def mean_over_seeds(runs: Mapping[int, Mapping[str, Any]], part: str, name: str) -> Tensor | None:
    """(N,) figure of images, the mean over seeds; None where the method has none."""
    values = [figures[part][name] for figures in runs.values() if part in figures and name in figures[part]]
    return torch.stack(values).mean(dim=0) if values else None


def cell(values: Tensor | None, weights: Any) -> str:
    """A mean with its interval."""
    if values is None:
        return "-"
    mean, low, high = interval(values, weights)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def table(heads: list[str], rows: list[list[str]]) -> None:
    """Print one."""
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def missing(runs: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Why there are no figures; None where there are."""
    return next((figures["missing"] for figures in runs.values() if "missing" in figures), None)


def show(network: str, results: Mapping[str, Any], prototypes: int) -> None:
    """Print all tables of one network."""
    found: Found = results["methods"]
    right = results["black_box"]["right"]
    weights = resampled(len(right))
    print(
        f"\n### {network}: {results['classes']} classes x {prototypes} concepts, {len(right)} validation images; "
        f"the network's own accuracy {cell(right, weights)}"
    )
    faithful(found, weights)
    differences(found, weights)
    beside(found, weights)
    named(found, results["black_box"]["collages"])
    seeds(found)
    verdict(found, weights)


def faithful(found: Found, weights: Any) -> None:
    """The first table."""
    rows = []
    for method, runs in found.items():
        if why := missing(runs):
            rows.append([method, why, *["-"] * len(FAITHFUL), "-"])
            continue
        first = next(iter(runs.values()))
        exact = max((run["exactness"] for run in runs.values() if run["exactness"] is not None), default=None)
        rows.append(
            [
                method,
                f"{first['concepts']}",
                *(cell(mean_over_seeds(runs, "val", name), weights) for name in FAITHFUL),
                "-" if exact is None else f"{exact:.0e}",
            ]
        )
    table(["concepts only", "concepts", *FAITHFUL.values(), "difference"], rows)
    for method, runs in found.items():
        said = dict.fromkeys(run["said"] for run in runs.values() if run.get("said"))
        if said:
            print(f"\n{method}: {' | '.join(said)}.", end="")
    print()


def differences(found: Found, weights: Any) -> None:
    """Ours less each other method, paired."""
    if OURS not in found:
        return
    rows = []
    for method, runs in found.items():
        if method == OURS or missing(runs):
            continue
        cells = []
        for name, way in GOAL.items():
            ours, theirs = (mean_over_seeds(each, "val", name) for each in (found[OURS], runs))
            assert ours is not None and theirs is not None
            mean, low, high = interval(ours - theirs, weights)
            word = "same" if low <= 0 <= high else "better" if mean * way > 0 else "worse"
            cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f}) {word}")
        rows.append([method, *cells])
    table(["ours less", *(FAITHFUL[name] for name in GOAL)], rows)


def beside(found: Found, weights: Any) -> None:
    """With the mean of what concepts leave in the offset, and other curves."""
    rows = []
    for method, runs in found.items():
        if not missing(runs):
            parts = ("levelled",) * 2 + ("val",) * 3
            cells = [cell(mean_over_seeds(runs, part, name), weights) for part, name in zip(parts, BESIDE, strict=True)]
            rows.append([method, *cells])
    table(["level: the mean of what is left is in the bias", *BESIDE.values()], rows)


def named(found: Found, own: Mapping[str, Tensor]) -> None:
    """Plausibility and identifiability."""
    weights = resampled(len(own["precision_at_4"]))
    rows = [["the network itself", "-", *(cell(each, weights) for each in own.values()), "-"]]
    for method, runs in found.items():
        if missing(runs):
            continue
        by_class = {name: mean_over_seeds(runs, "classes", name) for name in ("plausibility", "one_concept")}
        some = by_class["plausibility"]
        assert some is not None
        of_classes = resampled(len(some))
        rows.append(
            [
                method,
                cell(some, of_classes),
                *(cell(mean_over_seeds(runs, "collages", name), weights) for name in own),
                cell(by_class["one_concept"], of_classes),
            ]
        )
    table(["collages", "plausibility", "precision at 4", "mAP", "mAP of one concept"], rows)


def seeds(found: Found) -> None:
    """The mean of each seed, where there are several."""
    rows = []
    for method, runs in found.items():
        if len(runs) > 1 and not missing(runs):
            cells = ["; ".join(f"{float(run['val'][name].mean()):.3f}" for run in runs.values()) for name in GOAL]
            rows.append([method, ", ".join(map(str, runs)), *cells])
    if rows:
        table(["each seed", "seeds", *(FAITHFUL[name] for name in GOAL)], rows)


def rivals_of(found: Found, *, published: bool) -> list[str]:
    """Methods that ours stands beside: no controls, and none with more concepts.

    Args:
        found: what was measured.
        published: only forms that are published.
    """
    changed = ("one dictionary", "fitted head") if published else ()
    return [
        method
        for method, runs in found.items()
        if not missing(runs)
        and method != UNEQUAL
        and not method.startswith(("control", OURS))
        and not method.endswith(changed or ("\0",))
    ]


def verdict(found: Found, weights: Any) -> None:
    """Of each measure who is first, whether ours is told from it, and whether a seed changes that."""
    for mine in [method for method in found if method.startswith(OURS) and not method.endswith("paper")]:
        for which, published in (("all rows", False), ("published forms", True)):
            others = rivals_of(found, published=published)
            lines = [_first(found, mine, others, name, way, weights) for name, way in GOAL.items()]
            print(f"\n{mine}, against {which}: first, or not told from it, on {sum(good for good, _ in lines)} of 4.\n")
            for _, line in lines:
                print(line, flush=True)
            places = mean_places(found, [mine, *others])
            print(
                "- mean place over the four: " + ", ".join(f"{method} {place:.2f}" for method, place in places.items())
            )


def mean_places(found: Found, methods: list[str]) -> dict[str, float]:
    """Of each method the mean of its places on the four measures, with the mean over seeds; the best first."""
    total = dict.fromkeys(methods, 0.0)
    for name, way in GOAL.items():
        values = {method: mean_over_seeds(found[method], "val", name) for method in methods}
        means = {method: way * float(each.mean()) for method, each in values.items() if each is not None}
        for method in methods:
            total[method] += 1 + sum(other > means[method] + 1e-6 for other in means.values())
    return {method: total[method] / len(GOAL) for method in sorted(methods, key=lambda method: total[method])}


def _first(found: Found, mine: str, others: list[str], name: str, way: int, weights: Any) -> tuple[bool, str]:
    """Whether ours is first or not told from the first, in words; of several first ones, from any."""
    values = {method: mean_over_seeds(found[method], "val", name) for method in (mine, *others)}
    means = {method: float(each.mean()) for method, each in values.items() if each is not None}
    best = max(way * mean for mean in means.values())
    firsts = [method for method, mean in means.items() if way * mean > best - 1e-6]
    apart = {method: interval(values[mine] - values[method], weights) for method in firsts}
    within = mine in firsts or any(low <= 0 <= high for _, low, high in apart.values())
    told = "; ".join(f"{m} {mean:+.3f} ({low:+.3f} to {high:+.3f})" for m, (mean, low, high) in apart.items())
    places, leaders = [], []
    for seed in dict.fromkeys(seed for runs in found.values() for seed in runs):
        order = ranking(found, [mine, *others], name, way, seed)
        places.append(str(order.index(mine) + 1))
        leaders.append(order[0])
    word = "first" if mine in firsts else f"not told from the first: less {told}" if within else f"behind: less {told}"
    return within, (
        f"- {FAITHFUL[name]}: {word}; place of {len(others) + 1} by seed: {', '.join(dict.fromkeys(places))}; "
        f"first by seed: {', '.join(dict.fromkeys(leaders))}."
    )


def ranking(found: Found, methods: list[str], name: str, way: int, seed: int) -> list[str]:
    """Methods, the best first, with one seed."""
    runs = {method: found[method].get(seed, next(iter(found[method].values()))) for method in methods}
    return sorted(methods, key=lambda method: -way * float(runs[method]["val"][name].mean()))
