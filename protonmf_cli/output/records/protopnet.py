"""ProtoPNet's training, changes and analyses as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from protonmf_cli.output.records.explanation import contribution_json, prediction_json

if TYPE_CHECKING:
    from protonmf_cli.jobs.protopnet.analyses import NearestPatches, ProtoPNetEvaluation
    from protonmf_cli.jobs.protopnet.edits import ProtoPNetCombination, ProtoPNetPruning, ProtoPNetPush
    from protonmf_cli.jobs.protopnet.training import ProtoPNetTraining
    from protonmf_cli.models.results import ExampleView
    from protonmf_cli.pipelines.protopnet.analyses import LocalAnalysis


def training_json(training: "ProtoPNetTraining") -> dict[str, Any]:
    """`protonmf.protopnet_training/1`: every epoch and push, and how right the trained network is."""
    images, model = training.images, training.loaded.model
    return {
        "schema": "protonmf.protopnet_training/1",
        "model": training.network,
        "output": str(training.loaded.path),
        "classes": len(images.classes),
        "prototypes": len(model.prototypes),
        "images": {"train": len(images.fit), "held_out": len(images.apart), "test": images.tested},
        "skipped": [asdict(skip) for skip in images.skipped],
        "epochs": [dict(row) for row in training.log if row["stage"] != "push"],
        "stages": [dict(row) for row in training.log if row["stage"] == "push"],
        "accuracy": dict(training.accuracy),
        "best_cycle": training.best_cycle,
        "selected_on": images.selected_on,
        "push": dict(training.push),
        "theorem": training.push["theorem"],
        "options": asdict(training.options),
        "seconds": training.seconds,
    }


def push_json(push: "ProtoPNetPush") -> dict[str, Any]:
    """`protonmf.protopnet_push/1`: what projecting the prototypes did."""
    return {
        "schema": "protonmf.protopnet_push/1",
        "model": str(push.file),
        "output": str(push.loaded.path),
        "prototypes": len(push.loaded.model.prototypes),
        "push": dict(push.facts),
    }


def pruning_json(pruning: "ProtoPNetPruning") -> dict[str, Any]:
    """`protonmf.protopnet_pruning/1`: which prototypes went, and what that did."""
    return {
        "schema": "protonmf.protopnet_pruning/1",
        "model": str(pruning.file),
        "output": str(pruning.loaded.path),
        "prototypes": len(pruning.loaded.model.prototypes),
        **pruning.facts,
        "last_layer": dict(pruning.last_layer),
        "accuracy": {"before": pruning.before, "after": pruning.after},
    }


def combination_json(combination: "ProtoPNetCombination") -> dict[str, Any]:
    """`protonmf.protopnet_combination/1`: which networks one file adds up."""
    return {
        "schema": "protonmf.protopnet_combination/1",
        "output": str(combination.path),
        "models": [str(file) for file in combination.files],
        "prototypes": len(combination.model.prototypes),
        "networks": [card.source.name for card in combination.model.card.members],
    }


def evaluation_json(evaluation: "ProtoPNetEvaluation") -> dict[str, Any]:
    """`protonmf.protopnet_evaluation/1`: how good a ProtoPNet is, and the nearest patches of each prototype."""
    path = evaluation.l1_path
    return {
        "schema": "protonmf.protopnet_evaluation/1",
        "model": str(evaluation.file),
        **evaluation.quality,
        "part_quality": [dict(row) for row in evaluation.part_quality],
        "l1_path": None if path is None else [dict(row) for row in path],
        "nearest": [_nearest_json(patches) for patches in evaluation.nearest],
    }


def _nearest_json(patches: "NearestPatches") -> dict[str, Any]:
    return {
        "prototype": patches.number,
        "prototype_id": patches.prototype,
        "owner_label": patches.owner_label,
        "train": _views_json(patches.train),
        "here": _views_json(patches.here),
    }


def _views_json(views: "Sequence[ExampleView]") -> list[dict[str, Any]]:
    return [{"source": v.path, "sha256": v.sha256, "score": v.score, "box": list(v.box)} for v in views]


def local_json(image: str, found: "LocalAnalysis") -> dict[str, Any]:
    """`protonmf.protopnet_local/1`: the prototypes that one image is like, and its evidence class by class."""
    return {
        "schema": "protonmf.protopnet_local/1",
        "image": image,
        "most_similar": [contribution_json(c) for c in found.similar],
        "classes": [
            {**prediction_json(p), "prototypes": [contribution_json(c) for c in contributions]}
            for p, contributions in zip(found.predictions, found.by_class, strict=True)
        ],
    }
