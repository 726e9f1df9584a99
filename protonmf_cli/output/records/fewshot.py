"""Few-shot models as JSON: what was fitted, what they say of images and of themselves, and how they compare."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from protonmf_cli.options import FewShotOptions
from protonmf_cli.output.records.explanation import prediction_json

if TYPE_CHECKING:
    from protonmf_cli.jobs.fewshot.benchmark import FewShotBenchmark
    from protonmf_cli.jobs.fewshot.fitting import FewShotFit
    from protonmf_cli.jobs.fewshot.interpretation import AttackedPictures, FewShotInterpretation
    from protonmf_cli.jobs.fewshot.prediction import FewShotPrediction
    from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, Meeting, PrototypeFacts


def fit_json(fit: "FewShotFit") -> dict[str, Any]:
    """`protonmf.fewshot_fit/1`: what was chosen, how well it answers, and its interpretation."""
    model = fit.loaded.model
    card = model.card
    measured, options = card.fewshot, card.options
    assert measured is not None
    assert isinstance(options, FewShotOptions)
    return {
        "schema": "protonmf.fewshot_fit/1",
        "classes": len(card.classes),
        "images": len(fit.interpretation.sources),
        "prototypes": len(model.prototypes),
        "norm": options.norm,
        "zero_weights": 1 - len(model.weights.value) / model.dense_weights.numel(),
        "chosen": measured.chosen,
        "held_out": measured.held_out,
        "folds": measured.folds,
        "objective": measured.objective,
        "accuracy": measured.accuracy,
        "finetuning": measured.finetuning,
        "skipped": [asdict(skip) for skip in card.data.skipped or ()],
        "interpretation": model_json(fit.interpretation),
        "model": fit.network,
        "output": str(fit.loaded.path),
        "seconds": fit.seconds,
    }


def fewshot_prediction_json(found: "FewShotPrediction") -> dict[str, Any]:
    """`protonmf.fewshot_prediction/1`: classes, matches and the nearest training images of one image."""
    model, position = found.loaded.model, found.position
    classes = model.card.classes
    order = position.matches.argsort(descending=True, stable=True).tolist()
    return {
        "schema": "protonmf.fewshot_prediction/1",
        "image": found.image,
        "model": str(found.loaded.path),
        "predictions": [prediction_json(p) for p in found.predictions],
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


def interpretation_json(interpretation: "FewShotInterpretation") -> dict[str, Any]:
    """`protonmf.fewshot_interpretation/1`: `model_json`, with what was looked for through the network."""
    record = {
        "schema": "protonmf.fewshot_interpretation/1",
        "model": str(interpretation.loaded.path),
        **model_json(interpretation.found),
    }
    if interpretation.virtual is not None:
        record["virtual"] = [
            {
                "prototype_id": v.prototype,
                "match": v.match,
                "agreement": v.agreement,
                "best_training_image": v.best_sample,
            }
            for v in interpretation.virtual
        ]
    if interpretation.attacked is not None:
        record["adversarial"] = _attack_json(interpretation.attacked, interpretation.found)
    return record


def model_json(found: "Interpretation") -> dict[str, Any]:
    """Prototypes, scattered classes, singletons and the images where classes meet."""
    classes = found.model.card.classes
    return {
        "prototypes": [_prototype_json(facts, found) for facts in found.prototypes],
        "ambiguous": found.of_kind("ambiguous"),
        "unused": found.of_kind("unused"),
        "singletons": found.singletons,
        "scattered": {classes[c].label: list(own) for c, own in found.scattered.items()},
        "meetings": [_meeting_json(meeting, found) for meeting in found.meetings],
    }


def _prototype_json(facts: "PrototypeFacts", found: "Interpretation") -> dict[str, Any]:
    model, sources = found.model, found.sources
    classes = model.card.classes
    owner = int(model.owner[facts.prototype])
    return {
        "prototype": model.number(facts.prototype),
        "prototype_id": facts.prototype,
        "owner_index": owner,
        "owner_label": classes[owner].label,
        "kind": facts.kind,
        "classes": [classes[c].label for c in facts.classes()],
        "probabilities": list(facts.probabilities),
        "entropy": facts.entropy,
        "singleton": facts.is_singleton,
        "members": [
            {"source": sources[n].path, "match": match} for n, match in zip(facts.members, facts.matches, strict=True)
        ],
        "variance": facts.spread.total,
        "directions": [
            {"share": d.share, "low": sources[d.low].path, "high": sources[d.high].path} for d in facts.directions
        ],
    }


def _meeting_json(meeting: "Meeting", found: "Interpretation") -> dict[str, Any]:
    classes = found.model.card.classes
    return {
        "source": found.sources[meeting.sample].path,
        "label": classes[meeting.label].label,
        "classes": [classes[c].label for c in meeting.classes],
        "probabilities": list(meeting.probabilities),
        "margin": meeting.margin,
    }


def _attack_json(attacked: "AttackedPictures", found: "Interpretation") -> dict[str, Any]:
    classes, check = found.model.card.classes, attacked.check
    return {
        "images": [
            {
                "source": attacked.names[n],
                "answer": classes[one.class_index].label,
                "margin": one.margin,
                "change": one.change,
                "becomes": None if one.other is None else classes[one.other].label,
            }
            for n, one in check.images
        ],
        "flipped": {f"{change:g}": check.flipped(change) for change in attacked.changes},
        "correlation": check.correlation,
    }


def benchmark_json(benchmark: "FewShotBenchmark") -> dict[str, Any]:
    """`protonmf.fewshot_benchmark/1`: accuracy of every method for every number of classes, and tests of the gain."""
    return {
        "schema": "protonmf.fewshot_benchmark/1",
        "model": benchmark.network,
        "data": str(benchmark.data),
        "classes": benchmark.classes,
        "images": benchmark.images,
        "input_size": list(benchmark.input_size),
        "layers": list(benchmark.layers),
        "seed": benchmark.options.seed,
        "options": asdict(benchmark.options),
        "rows": benchmark.rows,
        "seconds": dict(benchmark.seconds),
    }
