"""What is in a model file, and how a network's head is read, in words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from protonmf_cli.models.wording import known, part_name, rounded
from protonmf_cli.output.records.conversion import median_of
from protonmf_cli.output.text.conversion import cancellation_words
from protonmf_cli.output.text.fewshot import chosen_words, interpretation_lines

if TYPE_CHECKING:
    from protonmf_cli.jobs.network_inspection import NetworkInspection
    from protonmf_cli.models.card import Card, ConversionFigures, FewShotFigures, ProtoPNetFigures, ReadoutFacts
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.pipelines.fewshot.interpretation import Interpretation


def inspection_lines(
    facts: Mapping[str, Any], model: "PrototypeModel", interpretation: "Interpretation | None"
) -> dict[str, str]:
    """What a model file holds, by topic.

    Args:
        facts: of `inspection_facts`.
        model: of the file.
        interpretation: of a few-shot model.
    """
    card = model.card
    readout, data = card.readout, card.data
    grid = f"{readout.grid[0]} x {readout.grid[1]} places" if readout.grid else "no places (not spatial)"
    without = facts["classes"] - facts["classes_with_prototypes"]
    old = ", older than amounts: convert again for rows that do not cancel" if model.is_outdated else ""
    lines = {
        "method": f"{card.method}, format {facts['format']}, {facts['bytes'] / 2**20:.1f} MiB{old}",
        "backbone": f"{card.source.name} ({card.source.architecture}), weights {card.source.digest[:12]}, "
        + ("inside the file" if facts["backbone_embedded"] else "not in the file"),
        "readout": f"{readout.kind}, {grid}, {readout.rows_per_image} row{'s' * (readout.rows_per_image > 1)} "
        f"of width {readout.width}",
        "classes": f"{facts['classes_with_prototypes']} with prototypes, {without} without"
        + (", of which an image may have several" if model.multi_label else ""),
        "prototypes": f"{facts['prototypes']} with {facts['examples']} training patches from {data.images} images",
        **_lines_of_method(facts, card, interpretation),
        "made with": ", ".join(f"{k} {v}" for k, v in card.versions.items() if k in {"protonmf", "torch", "timm"}),
    }
    if count := facts["classes_with_own_against"]:
        lines["against"] = (
            f"{count} class{'es have own prototypes' if count > 1 else ' has own prototypes'} with a negative weight "
            "for it (inspect --class NAME)"
        )
    if card.names is not None:
        lines["names"] = f"{len(card.names.prototypes)} of {facts['prototypes']} prototypes, {card.names.source}"
    if card.edits:
        lines["edits"] = f"{len(card.edits)}"
    if card.refits:
        lines["refit"] = "; ".join(
            f"last layer on {refit.images} images of {refit.classes} classes, ridge {known(refit.ridge, 'g')}, off "
            f"{len(refit.removed)} removed prototypes"
            for refit in card.refits
        )
    if data.skipped:
        lines["skipped"] = f"{len(data.skipped)} images, e.g. {data.skipped[0].path}"
    return lines


def prototype_lines(listed: Mapping[str, Any]) -> list[str]:
    """The prototypes of one class, each in a line; `listed` is an entry of `per_class` of `inspection_json`."""
    lines = []
    for row in listed["prototypes"]:
        sources = ", ".join(example["source"] for example in row["examples"][:3])
        owner = "" if row["owner_index"] == listed["class_index"] else row["owner_description"]
        flag = " (unstable)" if row["unstable"] else ""
        flag += " (against its own class)" if not owner and row["weight"] < 0 else ""
        caption = f" ({row['caption']})" if "caption" in row else ""
        name = part_name(row["prototype"], owner)
        lines.append(f"  {name}{caption}{flag}: weight {row['weight']:+.3f}, seen most in {sources}")
    return lines


def network_lines(inspection: "NetworkInspection") -> dict[str, str]:
    """How a network's head is read, by topic."""
    backbone, reading, pretrained = inspection.backbone, inspection.reading, inspection.pretrained
    readout, source = backbone.readout, backbone.source
    size = " x ".join(map(str, backbone.preprocessing.input_size[1:]))
    grid = f"{readout.grid[0]} x {readout.grid[1]} places" if readout.grid else "no places (not spatial)"
    count, classes = readout.count, len(backbone.classes)
    placed = "nothing: contributions are exact, but no position can be shown"
    if readout.spatial:
        placed = f"{readout.places} of {count} rows"
        if readout.unplaced:
            placed += f"; without a place: {', '.join(readout.unplaced)}"
        if reading.placed_share is not None:
            placed += (
                f"; places carry {rounded(reading.placed_share)} of the predicted class's logit against the mean class"
            )
    following = (
        {}
        if reading.quadrants is None
        else {"places": f"{reading.quadrants} of 4 quadrants of a photograph move the rows that lie there"}
    )
    return {
        "backbone": f"{source.name} ({source.architecture}), {inspection.weights / 1e6:.1f} million weights"
        + (f" {source.digest[:12]}" if pretrained else ", drawn at random"),
        "reads": f"images of {size}, {classes} class{'es' * (classes > 1)}",
        "readout": f"{readout.kind}, {grid}, {count} row{'s' * (count > 1)} of width {readout.width}",
        "placed": placed,
        **following,
        "exactness": f"{backbone.formula_difference:.0e} of the spread of the logits in float64, "
        f"{reading.relative_difference:.0e} in float32",
        "signed": f"{reading.clipped_share:.0%} of the squared rows lie below zero; a conversion splits them by sign",
        "measured on": "two photographs that come with scikit-learn"
        + ("" if pretrained else "; drawn weights say little of what trained ones place and clip"),
    }


def _stability_words(stability: Sequence[float | None], unstable: int) -> str:
    median = median_of(stability)
    if median is None:
        return "not measured"
    known = sum(value is not None for value in stability)
    return f"median cosine {median:.2f} between halves of the images, {unstable} of {known} prototypes unstable"


def _conversion_lines(card: "Card", measured: "ConversionFigures", unstable: int) -> dict[str, str]:
    """What was measured when a black box was converted."""
    readout, share = card.readout, measured.residual_share
    return {
        "exactness": f"logits differ by at most {known(readout.max_abs_logit_difference, '.1e')} on {readout.images_checked} images, "
        f"agreement {known(measured.agreement, '.2%')}",
        "accuracy": f"{known(measured.accuracy_black_box, '.1%')} black box, {known(measured.accuracy_prototype_model, '.1%')} prototype model "
        "(on the images converted)",
        "stability": _stability_words(measured.stability, unstable),
        "residual share": "not defined for one class" if share is None else f"{rounded(share)} of the logit (median)",
        "errors": f"features {known(measured.feature_relative_error, '.3f')}, head {known(measured.head_relative_error, '.3f')} (squared, relative)",
        **_amount_lines(card, measured),
    }


def _amount_lines(card: "Card", measured: "ConversionFigures") -> dict[str, str]:
    """How evidence is read, and how well it is defined."""
    below = card.readout.clipped_share
    if card.similarity != "dual":
        return {"clipped": f"{known(below, '.0%')} of the squared rows lie below zero; the residual carries them"}
    ridge = f"ridge {measured.ridge:g}" if measured.ridge else "no ridge"
    return {
        "evidence": f"amounts, {ridge}, condition at most {known(measured.condition, '.0f')}, "
        f"{len(measured.alike or ())} pairs of prototypes nearly the same",
        "cancellation": cancellation_words(measured.cancellation) if measured.cancellation else "not measured",
        **(
            {"signed": f"{known(below, '.0%')} of the squared rows lie below zero; they were split by sign"}
            if below
            else {}
        ),
    }


def _protopnet_lines(card: "Card", measured: "ProtoPNetFigures") -> dict[str, str]:
    """What was measured when a ProtoPNet was trained, and how its evidence is made."""
    accuracy = {name: value for name, value in measured.accuracy.items() if value is not None}
    lines = {"similarity": f"{card.similarity}, of the most similar patch"}
    if card.members:
        lines["networks"] = ", ".join(member.source.name for member in card.members)
    if accuracy:
        lines["accuracy"] = ", ".join(f"{value:.1%} {name.replace('_', ' ')}" for name, value in accuracy.items())
    if card.data.boxes:
        lines["images"] = "cut to bounding boxes: give --boxes to evaluate, push and prune"
    if push := measured.push:
        lines["sources"] = f"{push['images']} training images, {push['duplicates']} duplicates"
    if (apart := measured.distance_from_own_patch) is not None:
        lines["own patch"] = f"at most {apart:.1e} (squared distance) from the patch it was projected onto"
    return lines


def _fewshot_lines(
    readout: "ReadoutFacts", measured: "FewShotFigures", interpretation: "Interpretation"
) -> dict[str, str]:
    """How a few-shot model was chosen, and what is remarkable about its prototypes."""
    accuracy = {name: value for name, value in measured.accuracy.items() if value is not None}
    layers = ", ".join(map(str, readout.layers))
    lines = {
        "features": f"mean over the places of layers {layers}, normalisation {readout.normalisation}",
        "chosen": chosen_words(measured.chosen, measured.held_out, measured.folds) if measured.chosen else "unknown",
        "accuracy": ", ".join(f"{value:.1%} {name}" for name, value in accuracy.items()),
        **interpretation_lines(interpretation),
    }
    if tuned := measured.finetuning:
        lines["fine-tuned"] = (
            f"{tuned['options']['stages']}, {len(tuned['epochs'])} epochs of {tuned['options']['mode']}"
        )
    return lines


def _lines_of_method(facts: Mapping[str, Any], card: "Card", interpretation: "Interpretation | None") -> dict[str, str]:
    if card.conversion is not None:
        return _conversion_lines(card, card.conversion, facts["unstable"])
    if card.protopnet is not None:
        return _protopnet_lines(card, card.protopnet)
    if card.fewshot is not None and interpretation is not None:
        return _fewshot_lines(card.readout, card.fewshot, interpretation)
    return {}
