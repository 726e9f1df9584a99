"""protonmf inspect: what is in a model file, or how a network would be read."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.options import RECIPES, RowsOption
from protonmf_cli.output.records.conversion import median_of

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel

ROWS = RECIPES["default"].rows


def inspect(
    context: typer.Context,
    what: Annotated[str | None, typer.Argument(help="Prototype model file (default: as --model), or a network, named as for convert.")] = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    class_name: Annotated[str | None, typer.Option("--class", help="List the prototypes of one class.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Picture of a class's prototypes (--class), or of the curves of -p auto.")] = None,
    rows: Annotated[RowsOption, typer.Option("--rows", help="Of a network: which rows the head is read through.")] = ROWS,
    weights: arguments.Weights = None,
    num_classes: arguments.NumClasses = None,
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="Of a network: its weights, or random ones, without a download.")] = True,
    model_arg: arguments.ModelArg = None,
    img_size: arguments.ImgSize = None,
    threads: arguments.Threads = None,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Show what a model file holds and how exact it is, or how a network's head would be read."""
    shown = Shown(quiet=quiet)
    of_network = {
        "--rows": rows != ROWS,
        "--weights": weights,
        "--num-classes": num_classes,
        "--no-pretrained": not pretrained,
        "--model-arg": model_arg,
        "--img-size": img_size,
    }
    if what is None or Path(what).is_file() or what.endswith(".safetensors"):
        _refuse(of_network, f"{what or model} is a model file, which keeps them")
        _inspect_file(Path(what) if what else model, class_name, png, force, as_json, shown)
        return
    source = context.get_parameter_source("model")  # of typer's own click or of the installed one
    named = source is not None and source.name == "COMMANDLINE"
    of_file = {"--model": named, "--class": class_name, "--png": png, "--force": force}
    _refuse(of_file, f"{what} is a network, not a model file")
    if weights is not None and not pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other.")
    from protonmf_cli.cli import machine
    from protonmf_cli.files.networks.loading import BackboneRequest
    from protonmf_cli.jobs.network_inspection import inspect_network

    extra = {"num_classes": num_classes} if num_classes else {}
    request = BackboneRequest(
        name=what, weights=weights, model_args=arguments.model_arguments(model_arg or []) | extra, rows=rows,
        img_size=img_size, offline=offline, pretrained=pretrained,
    )  # fmt: skip
    machine.set_threads(threads)
    inspect_network(request, as_json, shown)


def _refuse(options: Mapping[str, object], reason: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(f"{', '.join(given)} cannot be given here: {reason}.")


def _inspect_file(
    path: Path, class_name: str | None, png: Path | None, force: bool, as_json: bool, shown: Shown
) -> None:
    from protonmf_cli.files.store import load_model

    found, network = load_model(path)
    chosen = None if class_name is None else found.find_class(class_name)
    if png is not None and chosen is not None:
        _draw_prototypes(found, chosen, png, force, shown)
    elif png is not None:
        _draw_curves(found, path, png, force, shown)
    facts = inspection_json(path, found, embedded=network is not None, class_index=chosen)
    if as_json:
        shown.json(facts)
    else:
        _show(facts, found, shown)


def _draw_prototypes(model: "PrototypeModel", class_index: int, png: Path, force: bool, shown: Shown) -> None:
    from protonmf_cli.files.atomic import check_writable, write_atomically
    from protonmf_cli.output.figures.strips import gallery_png
    from protonmf_cli.pipelines.protopnet.analyses import global_strips

    name = model.card.classes[class_index].shown
    if not model.own(class_index):
        raise InputError(f"class {name} has no prototypes in this model, so there is nothing to draw.")
    check_writable(png, force)
    strips, headings = global_strips(model, class_index)
    write_atomically(png, gallery_png(f"the prototypes of {name}", strips, headings))
    shown.note(f"wrote {png}")


def _draw_curves(model: "PrototypeModel", path: Path, png: Path, force: bool, shown: Shown) -> None:
    from protonmf_cli.files.atomic import check_writable, write_atomically
    from protonmf_cli.output.figures.table import curves_png

    curves = model.card.measured.get("curves")
    if model.matching is not None:
        raise InputError(
            f"{path} has no curves. Give --class, or draw all prototypes: `protonmf fewshot interpret --figures DIR`."
        )
    if not curves:
        raise InputError(
            f"{path} has no curves: its numbers of prototypes were given. Convert with -p auto, or give --class."
        )
    check_writable(png, force)
    names = {c: model.card.classes[int(c)].shown for c in curves}
    chosen = {c: len(model.own(int(c))) for c in curves}
    write_atomically(png, curves_png(curves, names, chosen))
    shown.note(f"wrote {png}")


def inspection_json(path: Path, model: "PrototypeModel", *, embedded: bool, class_index: int | None) -> dict[str, Any]:
    """`protonmf.inspection/1`: the card, counts, and each class's prototypes."""
    listed = model.active_classes.tolist() if class_index is None else [class_index]
    facts = inspection_facts(path, model, embedded=embedded)
    return {**facts, "per_class": [_class_json(model, c) for c in listed]}


def inspection_facts(path: Path, model: "PrototypeModel", *, embedded: bool) -> dict[str, Any]:
    """`protonmf.inspection/1` without its list of classes."""
    from protonmf_cli.models.prototype import is_unstable

    card = model.card
    return {
        "schema": "protonmf.inspection/1",
        "file": str(path),
        "bytes": path.stat().st_size,
        "format": model.file_format,
        "method": card.method,
        "backbone_embedded": embedded,
        "classes": len(card.classes),
        "classes_with_prototypes": len(model.active_classes),
        "prototypes": len(model.prototypes),
        "examples": len(model.examples.prototype),
        "augmented": model.is_augmented,
        "unstable": sum(is_unstable(model.stability(j)) for j in range(len(model.prototypes))),
        "card": {key: value for key, value in card.as_json().items() if key != "classes"},
    }


def _class_json(model: "PrototypeModel", class_index: int) -> dict[str, Any]:
    from protonmf_cli.models.prototype import is_unstable

    name = model.card.classes[class_index]
    residual = float(model.residual[class_index].norm())
    rows = []
    for entry in model.entries(class_index):
        prototype = int(model.weights.prototype[entry])
        owner = int(model.owner[prototype])
        examples = model.examples.of(prototype)
        rows.append(
            {
                "prototype": model.number(prototype),
                "prototype_id": prototype,
                "owner_index": owner,
                "owner_label": model.card.classes[owner].label,
                "weight": float(model.weights.value[entry]),
                "residual_share": float(model.weights.residual_share[entry]),
                "usual": None if model.amounts is None else list(model.amounts.range_of(prototype)),
                "stability": model.stability(prototype),
                "unstable": is_unstable(model.stability(prototype)),
                "examples": [
                    {"source": model.examples.sources[e].path, "score": float(model.examples.score[e])}
                    for e in examples
                ],
            }
        )
    return {
        "class_index": class_index,
        "label": name.label,
        "description": name.description,
        "residual_norm": residual,
        "prototypes": rows,
    }


def _stability_words(facts: dict[str, Any]) -> str:
    measured = facts["card"]["measured"].get("stability", [])
    median = median_of(measured)
    if median is None:
        return "not measured"
    known = sum(value is not None for value in measured)
    return (
        f"median cosine {median:.2f} between halves of the images, {facts['unstable']} of {known} prototypes unstable"
    )


def _conversion_lines(facts: dict[str, Any]) -> dict[str, str]:
    """What was measured when a black box was converted."""
    from protonmf_cli.models.wording import rounded

    readout, measured = facts["card"]["readout"], facts["card"]["measured"]
    share = measured.get("residual_share")
    return {
        "exactness": f"max |logit difference| {readout['max_abs_logit_difference']:.1e} on {readout['images_checked']} images, "
        f"agreement {measured['agreement']:.2%}",
        "accuracy": f"{measured['accuracy_black_box']:.1%} black box, {measured['accuracy_prototype_model']:.1%} prototype model "
        "(on the images converted)",
        "stability": _stability_words(facts),
        "residual share": "not defined for one class" if share is None else f"{rounded(share)} of the logit (median)",
        "errors": f"features {measured['feature_relative_error']:.3f}, head {measured['head_relative_error']:.3f} (squared, relative)",
        **_amount_lines(facts),
    }


def _amount_lines(facts: dict[str, Any]) -> dict[str, str]:
    """How evidence is read, and how well it is defined."""
    from protonmf_cli.output.text.conversion import cancellation_words

    measured, below = facts["card"]["measured"], facts["card"]["readout"]["clipped_share"]
    if facts["card"]["similarity"] != "dual":
        return {"clipped": f"{below:.0%} of the squared rows lie below zero; the residual carries them"}
    ridge = f"ridge {measured['ridge']:g}" if measured["ridge"] else "no ridge"
    return {
        "evidence": f"amounts, {ridge}, condition at most {measured['condition']:.0f}, "
        f"{len(measured['alike'])} pairs of prototypes nearly the same",
        "cancellation": cancellation_words(measured["cancellation"]),
        **({"signed": f"{below:.0%} of the squared rows lie below zero; they were split by sign"} if below else {}),
    }


def _protopnet_lines(facts: dict[str, Any]) -> dict[str, str]:
    """What was measured when a ProtoPNet was trained, and how its evidence is made."""
    card = facts["card"]
    measured = card["measured"]
    known = {name: value for name, value in measured.get("accuracy", {}).items() if value is not None}
    lines = {"similarity": f"{card['similarity']}, of the most similar patch"}
    if card["members"]:
        lines["networks"] = ", ".join(member["source"]["name"] for member in card["members"])
    if known:
        lines["accuracy"] = ", ".join(f"{value:.1%} {name.replace('_', ' ')}" for name, value in known.items())
    if card["data"].get("boxes"):
        lines["images"] = "cut to bounding boxes: give --boxes to evaluate, push and prune"
    if push := measured.get("push"):
        lines["sources"] = f"{push['images']} training images, {push['duplicates']} duplicates"
    if (apart := measured.get("distance_from_own_patch")) is not None:
        lines["own patch"] = f"at most {apart:.1e} (squared distance) from the patch it was projected onto"
    return lines


def _fewshot_lines(facts: dict[str, Any], model: "PrototypeModel") -> dict[str, str]:
    """How a few-shot model was chosen, and what is remarkable about its prototypes."""
    from protonmf_cli.output.text.fewshot import chosen_words, interpretation_lines

    measured, readout = facts["card"]["measured"], facts["card"]["readout"]
    known = {name: value for name, value in measured["accuracy"].items() if value is not None}
    layers = ", ".join(map(str, readout["layers"]))
    lines = {
        "features": f"mean over the places of layers {layers}, normalisation {readout['normalisation']}",
        "chosen": chosen_words(measured["chosen"], measured["held_out"], measured["folds"]),
        "accuracy": ", ".join(f"{value:.1%} {name}" for name, value in known.items()),
        **interpretation_lines(model),
    }
    if tuned := measured.get("finetuning"):
        lines["fine-tuned"] = (
            f"{tuned['options']['stages']}, {len(tuned['epochs'])} epochs of {tuned['options']['mode']}"
        )
    return lines


def _lines_of_method(facts: dict[str, Any], model: "PrototypeModel") -> dict[str, str]:
    if model.matching is not None:
        return _fewshot_lines(facts, model)
    return _conversion_lines(facts) if facts["card"]["method"] == "protonmf" else _protopnet_lines(facts)


def lines_of(facts: dict[str, Any], model: "PrototypeModel") -> dict[str, str]:
    """What a model file holds, in words by topic; `facts` of `inspection_facts`."""
    card = facts["card"]
    readout, data = card["readout"], card["data"]
    grid = f"{readout['grid'][0]} x {readout['grid'][1]} places" if readout["grid"] else "no places (not spatial)"
    without = facts["classes"] - facts["classes_with_prototypes"]
    old = ", older than amounts: convert again for rows that do not cancel" if model.is_outdated else ""
    lines = {
        "method": f"{card['method']}, format {facts['format']}, {facts['bytes'] / 2**20:.1f} MiB{old}",
        "backbone": f"{card['source']['name']} ({card['source']['architecture']}), weights {card['source']['digest'][:12]}, "
        + ("inside the file" if facts["backbone_embedded"] else "not in the file"),
        "readout": f"{readout['kind']}, {grid}, {readout['rows_per_image']} row{'s' * (readout['rows_per_image'] > 1)} "
        f"of width {readout['width']}",
        "classes": f"{facts['classes_with_prototypes']} with prototypes, {without} without",
        "prototypes": f"{facts['prototypes']} with {facts['examples']} training patches from {data['images']} images",
        **_lines_of_method(facts, model),
        "made with": ", ".join(f"{k} {v}" for k, v in card["versions"].items() if k in {"protonmf", "torch", "timm"}),
    }
    if card["edits"]:
        lines["edits"] = f"{len(card['edits'])}"
    if data["skipped"]:
        lines["skipped"] = f"{len(data['skipped'])} images, e.g. {data['skipped'][0]['path']}"
    return lines


def _show(facts: dict[str, Any], model: "PrototypeModel", shown: Shown) -> None:
    shown.lines(lines_of(facts, model))
    if len(facts["per_class"]) == 1:
        for row in facts["per_class"][0]["prototypes"]:
            sources = ", ".join(example["source"] for example in row["examples"][:3])
            owner = "" if row["owner_label"] == facts["per_class"][0]["label"] else f" of {row['owner_label']}"
            flag = " (unstable)" if row["unstable"] else ""
            shown.out.print(
                f"  prototype {row['prototype']}{owner}{flag}: weight {row['weight']:+.3f}, seen most in {sources}",
                markup=False,
            )
