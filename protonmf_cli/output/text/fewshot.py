"""What a few-shot model says of itself, in words and as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.console import Shown

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel

LISTED = 8
"""Names in a line before "and N more"."""


def title_of(model: "PrototypeModel", prototype: int) -> str:
    """ "prototype 2 of cat" """
    owner = model.card.classes[int(model.owner[prototype])].shown
    return f"prototype {model.number(prototype)} of {owner}"


def interpretation_json(model: "PrototypeModel") -> dict[str, Any]:
    """Prototypes, scattered classes, singletons and the images where classes meet."""
    from protonmf_cli.pipelines.fewshot.interpretation import interpret, matching_of

    found, classes, sources = interpret(model), model.card.classes, matching_of(model).samples.sources
    return {
        "prototypes": [
            {
                "prototype": model.number(f.prototype),
                "prototype_id": f.prototype,
                "owner_index": int(model.owner[f.prototype]),
                "owner_label": classes[int(model.owner[f.prototype])].label,
                "kind": f.kind,
                "classes": [classes[c].label for c in f.classes()],
                "probabilities": list(f.probabilities),
                "entropy": f.entropy,
                "singleton": f.is_singleton,
                "members": [
                    {"source": sources[n].path, "match": match} for n, match in zip(f.members, f.matches, strict=True)
                ],
                "variance": f.spread.total,
                "directions": [
                    {"share": d.share, "low": sources[d.low].path, "high": sources[d.high].path} for d in f.directions
                ],
            }
            for f in found.prototypes
        ],
        "ambiguous": found.of_kind("ambiguous"),
        "unused": found.of_kind("unused"),
        "singletons": found.singletons,
        "scattered": {classes[c].label: list(own) for c, own in found.scattered.items()},
        "meetings": [
            {
                "source": sources[m.sample].path,
                "label": classes[m.label].label,
                "classes": [classes[c].label for c in m.classes],
                "probabilities": list(m.probabilities),
                "margin": m.margin,
            }
            for m in found.meetings
        ],
    }


def show_fit(report: dict[str, Any], model: "PrototypeModel", output: Path, shown: Shown) -> None:
    """The summary of a fit."""
    accuracy = {name: value for name, value in report["accuracy"].items() if value is not None}
    lines = {
        str(output): f"{output.stat().st_size / 2**20:.1f} MiB, from {report['model']}",
        "classes": f"{report['classes']}, {report['images']} training images",
        "prototypes": f"{report['prototypes']}, {report['norm'].upper()} weights, {report['zero_weights']:.0%} of them zero",
        "chosen": chosen_words(report["chosen"], report["held_out"], report["folds"]),
        "accuracy": ", ".join(f"{value:.1%} {name}" for name, value in accuracy.items()),
        **interpretation_lines(model),
        "time": f"{report['seconds']:.1f} s",
    }
    shown.lines(lines)


def chosen_words(chosen: dict[str, float | None], held: dict[str, float] | None, folds: int) -> str:
    """Hyper-parameters and what the cross-validation said of them."""
    said = f"scale {chosen['scale']:g}, alpha {chosen['alpha']:g}, anchor {chosen['anchor']:g}"
    if chosen.get("refit") is not None:
        said += f", weights fitted again with L2 norm {chosen['refit']:g}"
    return said + (f"; {folds} folds: accuracy {held['accuracy']:.1%}, loss {held['loss']:.3f}" if held else "")


def interpretation_lines(model: "PrototypeModel") -> dict[str, str]:
    """Scattered classes, ambiguous and unused prototypes, singletons, the image where classes meet most."""
    from protonmf_cli.pipelines.fewshot.interpretation import interpret, matching_of

    found, classes = interpret(model), model.card.classes
    of = {f.prototype: f for f in found.prototypes}
    lines = {}
    if found.scattered:
        said = [f"{classes[c].shown} ({len(own)} prototypes)" for c, own in found.scattered.items()]
        lines["scattered"] = _listed(said)
    for kind in ("ambiguous", "unused"):
        chosen = found.of_kind(kind)
        said = [
            title_of(model, j)
            + (f" ({' or '.join(classes[c].shown for c in of[j].classes())})" if kind == "ambiguous" else "")
            for j in chosen
        ]
        if said:
            lines[kind] = _listed(said)
    if found.singletons:
        lines["singletons"] = _listed([title_of(model, j) for j in found.singletons])
    meeting = found.meetings[0]
    source = matching_of(model).samples.sources[meeting.sample].path
    first, second = (classes[c].shown for c in meeting.classes)
    lines["classes meet"] = (
        f"most at {source}: {first} {meeting.probabilities[0]:.0%}, {second} {meeting.probabilities[1]:.0%}"
    )
    return lines


def _listed(said: list[str]) -> str:
    return ", ".join(said[:LISTED]) + (f" and {len(said) - LISTED} more" if len(said) > LISTED else "")
