"""Tables of shortcuts.py in Markdown: what was found, and what was left after it was taken out."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
"""Of one network."""
NEEDS = {
    "network": "",
    "removed (clean)": "validation images without marks",
    "removed, refit (clean)": "the same",
    "removed (biased)": "validation images as the training images are",
    "removed, refit (biased)": "the same",
    "other parts removed, refit": "control: parts of classes without a mark",
    "DFR": "training images without marks, which nobody has for a mark on all of them",
    "P-ClArC": "training images with and without each mark",
    "CRAFT, most important": "training images of the marked classes",
    "CRAFT, by the marks' labels": "training images with and without each mark",
}
"""What each way of removing has to be given."""
FIRST = 3
"""Rank up to which a mark counts as found."""


def mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" if values else "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marks_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(mark for found in results for mark in found["targets"]))


def finding(results: Sequence[Result]) -> str:
    """One line per mark: ranks and verdicts of every seed with both kinds of validation images, and what maps show."""
    rows, kinds = [], ("clean", "biased")
    for mark in marks_of(results):
        mine = [found for found in results if mark in found["targets"]]
        cells = [mark]
        for kind in kinds:
            ranked = [found["found"][kind][mark] for found in mine]
            cells += [", ".join(str(each["rank"]) for each in ranked)]
            cells += [f"{sum(each['said'] for each in ranked)} of {len(ranked)}"]
        seen = [found["pointing"][mark] for found in mine if found["pointing"][mark]]
        cells += [mean([each[name] for each in seen]) for name in ("Grad-CAM", "prototype", "chance")]
        rows.append(cells)
    total = ["**all**"]
    for kind in kinds:
        ranked = [each for found in results if found["targets"] for each in found["found"][kind].values()]
        total += [f"first {FIRST}: {sum(each['rank'] <= FIRST for each in ranked)} of {len(ranked)}"]
        total += [f"{sum(each['said'] for each in ranked)} of {len(ranked)}"]
    seen = [each for found in results for each in found["pointing"].values() if each]
    total += [mean([each[name] for each in seen]) for name in ("Grad-CAM", "prototype", "chance")]
    head = ["mark", "rank, clean images", "said", "rank, biased images", "said", "Grad-CAM", "prototype", "by chance"]
    return table(head, [*rows, total])


def named(results: Sequence[Result]) -> str:
    """How often what the audit ranks first of a mark's class is the mark's: that is what is taken out."""
    told = []
    for kind in ("clean", "biased"):
        first = [each["first of its class"] for r in results if r["targets"] for each in r["found"][kind].values()]
        told.append(f"{sum(first)} of {len(first)} ({kind} images)")
    return f"What is ranked first of the mark's class is the mark's: {', '.join(told)}."


def false_alarms(results: Sequence[Result]) -> str:
    """Of ten classes without a mark, how many are said to have a shortcut."""
    rows = []
    for name, kind, planted in (
        ("in networks with marks, clean images", "clean", True),
        ("in networks with marks, biased images", "biased", True),
        ("in networks without marks", "clean", False),
    ):
        counts = [found["alarms"][kind] for found in results if bool(found["targets"]) == planted]
        called, of = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        if of:
            rows.append([name, f"{called} of {of}", f"{10 * called / of:.1f}"])
    return table(["classes without a mark", "said to have one", "in ten"], rows)


def removing(results: Sequence[Result]) -> str:
    """One line per way of removing: means over marks and seeds."""
    planted, rows = [found for found in results if found["targets"]], []
    for way, needs in NEEDS.items():
        mine = [found["removed"][way] for found in planted]
        figures = [mean([value for each in mine for value in each[key].values()]) for key in ("flips", "own")]
        everything = f"{statistics.mean(each['all'] for each in mine):.3f}"
        rows.append([way, *figures, everything, needs])
    return table(["", "flips", "own, clean", "all, clean", "needs"], rows)


def by_mark(results: Sequence[Result]) -> str:
    """Flips / own of every mark under every way of removing, means over seeds."""
    rows = []
    for mark in marks_of(results):
        mine = [found["removed"] for found in results if mark in found["targets"]]
        rows.append(
            [mark]
            + [" / ".join(mean([each[way][key][mark] for each in mine]) for key in ("flips", "own")) for way in NEEDS]
        )
    return table(["flips / own", *NEEDS], rows)


def show(network: str, results: Sequence[Result]) -> None:
    """Print the tables of one network's runs."""
    print(f"\n### {network}\n")
    if any(found["targets"] for found in results):
        print(finding(results) + "\n\n" + named(results) + "\n")
    print(false_alarms(results) + "\n", flush=True)
    if any(found["targets"] for found in results):
        print(removing(results) + "\n\n" + by_mark(results) + "\n", flush=True)
