"""protonmf fewshot predict: the class of images, how sure it is, and what is near."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.explain import PARTIAL, paths_of
from protonmf_cli.errors import InputError
from protonmf_cli.jobs.fewshot.data import DEFAULT_MODEL

if TYPE_CHECKING:
    from protonmf_cli.jobs.loaded import Loaded
    from protonmf_cli.pipelines.fewshot.interpretation import Position


def predict(
    images: Annotated[list[str], typer.Argument(help="Image files; - reads their paths from standard input.")],
    model: arguments.Model = DEFAULT_MODEL,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes, prototypes and neighbours shown.")] = 3,
    as_json: arguments.Json = False,
    json_lines: Annotated[bool, typer.Option("--jsonl", help="One JSON object per image and line.")] = False,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    offline: arguments.Offline = False,
    quiet: arguments.Quiet = False,
) -> None:
    """Say what images are: classes, matching prototypes, ambiguity, nearest training images."""
    shown = Shown(quiet=quiet)
    paths = paths_of(images)
    from protonmf_cli.cli.opened import open_model
    from protonmf_cli.pipelines.fewshot.interpretation import matching_of, position_of

    loaded = open_model(model, device=device, dtype="float32", threads=threads, offline=offline)
    matching_of(loaded.model)
    done, failed = [], 0
    for path in paths:
        try:
            rows = loaded.backbone.read(loaded.crop(path)[None]).rows[0].cpu()
        except InputError as failure:
            if len(paths) == 1:
                raise
            failed += 1
            print(f"error: {failure}", file=sys.stderr)
            continue
        found = prediction_json(loaded, path, position_of(loaded.model, rows, count=max(top, 5)))
        done.append(found)
        if json_lines:
            shown.json(found, indent=None)
        elif not as_json:
            _show(found, top, shown)
    if as_json and not json_lines and done:
        shown.json(done[0] if len(paths) == 1 else {"schema": "protonmf.fewshot_predictions/1", "predictions": done})
    if failed:
        if not done:
            raise InputError(f"none of the {len(paths)} images could be read.")
        print(f"error: {failed} of {len(paths)} images could not be read; the others were.", file=sys.stderr)
        raise SystemExit(PARTIAL)


def prediction_json(loaded: "Loaded", image: str, position: "Position") -> dict[str, Any]:
    """`protonmf.fewshot_prediction/1`."""
    import math

    from protonmf_cli.cli.ledger import prediction_json as of_class
    from protonmf_cli.pipelines.explaining.explanation import predictions

    model = loaded.model
    classes = model.card.classes
    order = position.matches.argsort(descending=True, stable=True).tolist()
    return {
        "schema": "protonmf.fewshot_prediction/1",
        "image": image,
        "model": str(loaded.path),
        "predictions": [of_class(p) for p in predictions(model, position.logits, len(classes))],
        "ambiguous": position.is_ambiguous,
        "entropy": position.entropy,
        "most_entropy": math.log(len(classes)),
        "typical": position.typical,
        "matches": [
            {
                "prototype": model.number(j),
                "prototype_id": j,
                "owner_index": int(model.owner[j]),
                "owner_label": classes[int(model.owner[j])].label,
                "owner_description": classes[int(model.owner[j])].shown,
                "match": float(position.matches[j]),
            }
            for j in order
        ],
        "neighbours": [
            {"source": n.source.path, "label": classes[n.label].label, "distance": n.distance}
            for n in position.neighbours
        ],
    }


def _show(found: dict[str, Any], top: int, shown: Shown) -> None:
    best = found["predictions"][0]
    others = ", ".join(f"{p['description']} {p['probability']:.1%}" for p in found["predictions"][1:top])
    flags = [
        *(["ambiguous"] if found["ambiguous"] else []),
        *(["unlike any training image"] if not found["typical"] else []),
    ]
    shown.out.print(
        Text.assemble(
            (best["description"], "bold"), f" {best['probability']:.1%}", (f"   then {others}", "dim"),
            f"   {found['image']}", (f"   {', '.join(flags)}" if flags else "", "yellow"),
        )
    )  # fmt: skip
    matches = ", ".join(f"{m['owner_description']} {m['prototype']} ({m['match']:.1%})" for m in found["matches"][:top])
    near = ", ".join(f"{n['source']} ({n['distance']:.2f})" for n in found["neighbours"][:top])
    shown.out.print(f"  matches prototypes {matches}", style="dim", markup=False)
    shown.out.print(f"  nearest training images {near}", style="dim", markup=False)
