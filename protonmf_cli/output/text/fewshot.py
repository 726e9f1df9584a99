"""What a few-shot model says of itself, of images and of its rivals, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from protonmf_cli.models.wording import shortened, shortened_path
from protonmf_cli.output.text.blocks import Block, Line, Piece, Row, TextTable

if TYPE_CHECKING:
    from protonmf_cli.jobs.fewshot.fitting import FewShotFit
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, PrototypeFacts

LISTED = 8
"""Names in a line before "and N more"."""
MOST_NAME = 20
"""Characters of a class's name in a table."""
MOST_SOURCE = 36
"""Last characters of a training image's path in a table."""

METHODS = {
    "prototypes-l2": "prototypes, L2 weights",
    "prototypes-l1": "prototypes, L1 weights",
    "single-prototype": "one prototype per class (mean)",
    "softmax-l2": "linear softmax, L2",
    "knn": "nearest neighbours",
}
"""Of the benchmark, as tables name them."""


# -- a fit ---------------------------------------------------------------------------------------------------------


def fit_lines(fit: "FewShotFit", record: Mapping[str, Any]) -> dict[str, str]:
    """The summary of a fit; `record` of `fit_json`."""
    accuracy = {name: value for name, value in record["accuracy"].items() if value is not None}
    return {
        record["output"]: f"{fit.bytes / 2**20:.1f} MiB, from {record['model']}",
        "classes": f"{record['classes']}, {record['images']} training images",
        "prototypes": f"{record['prototypes']}, {record['norm'].upper()} weights, {record['zero_weights']:.0%} of them zero",
        "chosen": chosen_words(record["chosen"], record["held_out"], record["folds"]),
        "accuracy": ", ".join(f"{value:.1%} {name}" for name, value in accuracy.items()),
        **interpretation_lines(fit.interpretation),
        "time": f"{record['seconds']:.1f} s",
    }


def chosen_words(chosen: Mapping[str, float | None], held: Mapping[str, float] | None, folds: int) -> str:
    """Hyper-parameters and what the cross-validation said of them."""
    said = f"scale {chosen['scale']:g}, alpha {chosen['alpha']:g}, anchor {chosen['anchor']:g}"
    if chosen.get("refit") is not None:
        said += f", weights fitted again with L2 norm {chosen['refit']:g}"
    return said + (f"; {folds} folds: accuracy {held['accuracy']:.1%}, loss {held['loss']:.3f}" if held else "")


# -- an interpretation ---------------------------------------------------------------------------------------------


def title_of(model: "PrototypeModel", prototype: int) -> str:
    """ "prototype 2 of cat" """
    owner = model.card.classes[int(model.owner[prototype])].shown
    return f"prototype {model.number(prototype)} of {owner}"


def interpretation_lines(found: "Interpretation") -> dict[str, str]:
    """Scattered classes, ambiguous and unused prototypes, singletons, the image where classes meet most."""
    model, classes = found.model, found.model.card.classes
    of = {facts.prototype: facts for facts in found.prototypes}
    lines = {
        "scattered": [f"{classes[c].shown} ({len(own)} prototypes)" for c, own in found.scattered.items()],
        "ambiguous": [
            f"{title_of(model, j)} ({' or '.join(classes[c].shown for c in of[j].classes())})"
            for j in found.of_kind("ambiguous")
        ],
        "unused": [title_of(model, j) for j in found.of_kind("unused")],
        "singletons": [title_of(model, j) for j in found.singletons],
    }
    meeting = found.meetings[0]
    first, second = (classes[c].shown for c in meeting.classes)
    return {name: _listed(said) for name, said in lines.items() if said} | {
        "classes meet": f"most at {found.sources[meeting.sample].path}: {first} {meeting.probabilities[0]:.0%}, "
        f"{second} {meeting.probabilities[1]:.0%}"
    }


def _listed(said: Sequence[str]) -> str:
    return ", ".join(said[:LISTED]) + (f" and {len(said) - LISTED} more" if len(said) > LISTED else "")


def prototype_table(found: "Interpretation") -> TextTable:
    """One row for each prototype."""
    return TextTable(
        headings=("prototype", "kind", "speaks for", "images", "variance", "entropy", "matched most by"),
        rows=tuple(Row(cells=_prototype_row(facts, found)) for facts in found.prototypes),
        left=frozenset({0, 1, 2, 6}),
    )


def _prototype_row(facts: "PrototypeFacts", found: "Interpretation") -> tuple[str, ...]:
    model, classes = found.model, found.model.card.classes
    owner = classes[int(model.owner[facts.prototype])].shown
    return (
        f"{shortened(owner, MOST_NAME)} {model.number(facts.prototype)}",
        facts.kind,
        shortened(" or ".join(classes[c].shown for c in facts.classes()[:3]), MOST_NAME) or "-",
        str(len(facts.members)),
        f"{facts.spread.total:.3f}",
        f"{facts.entropy:.2f}",
        shortened_path(found.sources[facts.members[0]].path, MOST_SOURCE) if facts.members else "-",
    )


def virtual_note(record: Mapping[str, Any]) -> str | None:
    """What to do where virtual examples did not get far; `record` of `interpretation_json`."""
    every = record.get("virtual", [])
    behind = [row for row in every if row["agreement"] < row["best_training_image"]]
    if not behind:
        return None
    return (
        f"{len(behind)} of {len(every)} virtual examples lie less in the direction of their prototype than "
        "a training image does: more --steps may help"
    )


def attack_lines(record: Mapping[str, Any]) -> dict[str, str]:
    """How small a change of the pixels changes the class, where that was asked for; `record` as for `virtual_note`."""
    found = record.get("adversarial")
    if not found:
        return {}
    said = ", ".join(f"{share:.0%} by {change}/255" for change, share in found["flipped"].items())
    rank = "" if found["correlation"] is None else f"; rank correlation with the margin {found['correlation']:.2f}"
    return {"fast gradient": f"changes the class of {said}, of {len(found['images'])} pictures{rank}"}


# -- a prediction --------------------------------------------------------------------------------------------------


def prediction_lines(record: Mapping[str, Any], top: int) -> Iterator[Line]:
    """One image in three lines; `record` of `fewshot_prediction_json`."""
    best = record["predictions"][0]
    others = ", ".join(f"{p['description']} {p['probability']:.1%}" for p in record["predictions"][1:top])
    flags = [
        *(["ambiguous"] if record["ambiguous"] else []),
        *(["unlike any training image"] if not record["typical"] else []),
    ]
    yield (
        (best["description"], "bold"), f" {best['probability']:.1%}", (f"   then {others}", "dim"),
        f"   {record['image']}", (f"   {', '.join(flags)}" if flags else "", "yellow"),
    )  # fmt: skip
    matches = (f"{m['owner_description']} {m['prototype']} ({m['match']:.1%})" for m in record["matches"][:top])
    yield ((f"  matches prototypes {', '.join(matches)}", "dim"),)
    near = (f"{n['source']} ({n['distance']:.2f})" for n in record["neighbours"][:top])
    yield ((f"  nearest training images {', '.join(near)}", "dim"),)


# -- a benchmark ---------------------------------------------------------------------------------------------------


def benchmark_blocks(record: Mapping[str, Any]) -> Iterator[Block]:
    """A table like the paper's Table 1, and what is said of it; `record` of `benchmark_json`."""
    yield _benchmark_table(record)
    yield from _benchmark_lines(record)


def _benchmark_table(record: Mapping[str, Any]) -> TextTable:
    """Mean and deviation of every method; the best of each column in bold."""
    rows, ways, first = _rows(record), _ways(record), record["rows"][0]
    best = {n: max(rows[method, n]["mean"] for method in METHODS) for n in ways}

    def cell(row: Mapping[str, Any], n: int) -> Piece:
        return f"{row['mean']:.3f} ({row['std']:.3f})", "bold" if row["mean"] == best[n] else ""

    return TextTable(
        headings=(f"{first['shots']} shots, {first['subsets']} subsets", *(f"{n}-way" for n in ways)),
        rows=tuple(Row(cells=(name, *(cell(rows[method, n], n) for n in ways))) for method, name in METHODS.items()),
    )


def _benchmark_lines(record: Mapping[str, Any]) -> Iterator[Line]:
    """How probable the differences are by chance, how sparse the weights are, and how long it took."""
    rows, ways = _rows(record), _ways(record)
    for method in ("prototypes-l2", "prototypes-l1"):
        for other in rows[method, ways[0]]["p_ttest"]:
            of_ways = {n: rows[method, n] for n in ways}
            yield ((f"{METHODS[method]} against {METHODS[other]}: {_tests(of_ways, other)}", "dim"),)
    zeros = ", ".join(f"{rows['prototypes-l1', n]['zero_weights']:.0%} of {n}-way" for n in ways)
    yield ((f"L1 weights that are zero: {zeros}", "dim"),)
    seconds = record["seconds"]
    took = f"features {seconds['features']:.0f} s, fitting {seconds['fitting']:.0f} s"
    yield ((f"{record['images']} images, {took}", "dim"),)


def _rows(record: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["method"], row["ways"]): row for row in record["rows"]}


def _ways(record: Mapping[str, Any]) -> list[int]:
    return sorted({row["ways"] for row in record["rows"]})


def _tests(of_ways: Mapping[int, Mapping[str, Any]], other: str) -> str:
    """p of both tests for every number of classes, and why one is left out."""
    pairs = [f"{_p(row['p_ttest'][other])} / {_p(row['p_wilcoxon'][other])}" for row in of_ways.values()]
    missing: dict[str, list[str]] = {}
    for n, row in of_ways.items():
        if reason := row["no_ttest"].get(other):
            missing.setdefault(reason, []).append(f"{n}-way")
    why = [f"; no t-test of {', '.join(without)}: {reason}" for reason, without in missing.items()]
    return f"p = {', '.join(pairs)} (t-test / Wilcoxon){''.join(why)}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.0005 else f"{value:.3f}"
