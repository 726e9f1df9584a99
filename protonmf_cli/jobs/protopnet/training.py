"""One training run of a ProtoPNet: begun or gone on with, measured and saved."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import InputError, ProtonmfError
from protonmf_cli.jobs.protopnet.images import TrainingSet
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.versions import installed_versions

if TYPE_CHECKING:
    from protonmf_cli.files.images.reader import ImageFile
    from protonmf_cli.files.images.training_images import TrainingData
    from protonmf_cli.files.networks.loading import BackboneRequest
    from protonmf_cli.files.work.training_folder import TrainingFolder
    from protonmf_cli.models.backbone import Backbone, Source
    from protonmf_cli.models.protopnet import ProtoPNet
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.readouts.readout import Network
    from protonmf_cli.models.training_state import TrainingState
    from protonmf_cli.pipelines.protopnet.processes import Cluster

FOLDS = 3
"""Of the cross-validation of the width."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training needs once its words are understood."""

    request: "BackboneRequest"
    network: "Network"
    """As it was loaded; every training gets its own copy."""
    source: "Source"
    output: Path
    options: ProtoPNetOptions
    per_class: tuple[int, ...]
    images: TrainingSet
    boxes: bool
    """Whether the images are cut to bounding boxes."""
    device: Any
    cluster: "Cluster"
    shown: Shown
    bars: Bars


@dataclass(kw_only=True)
class _Net:
    """The network being trained, and what it is trained with."""

    net: "ProtoPNet"
    backbone: "Backbone"
    options: ProtoPNetOptions
    source: "TrainingData"


def run_training(run: Run, keep_cycles: Path | None, force: bool) -> "tuple[PrototypeModel | None, dict[str, Any]]":
    """Train or go on, then write the model; None in a process that only helps.

    Args:
        run: what to do.
        keep_cycles: folder for the model after each push.
        force: begin anew although an unfinished run with this output was asked for something else.

    Raises:
        InputError: an unfinished run was asked for something else, a class has too few patches, or a loss is not finite.
        NotExactError: a last layer could not be solved.
    """
    from protonmf_cli.files.store import save_model
    from protonmf_cli.files.work.folder import digest_of_facts
    from protonmf_cli.files.work.training_folder import TrainingFolder

    facts = _facts(run)
    digest = digest_of_facts(facts)
    if not run.cluster.leads:
        run.cluster.wait()
        folder = TrainingFolder(run.output, digest)
        _fit(run, folder, folder.load(), lambda _: None, None)
        return None, {}
    with TrainingFolder(run.output, digest) as folder:
        _refuse_other_run(folder, facts, force)
        folder.describe(facts)
        state = folder.load()
        run.cluster.wait()
        if state.done:
            run.shown.note(f"goes on after epoch {state.log[-1]['epoch']} ({state.log[-1]['stage']})")

        try:
            trained = _fit(run, folder, state, folder.save, keep_cycles)
        except ProtonmfError:
            if not state.done:  # nothing to go on with
                folder.discard()
            raise
        model, report = _finish(run, trained, state)
        save_model(run.output, model, trained.backbone.weights())
        folder.discard()
    return model, report


def _facts(run: Run) -> dict[str, Any]:
    """What decides the result of a run."""
    listed = "\n".join(f"{f.class_index} {f.name} {f.box} {run.images.digests[f]}" for f in run.images.fit)
    return {
        "model": run.request.name,
        "weights": str(run.request.weights),
        "model arguments": dict(run.request.model_args),
        "image size": run.request.img_size,
        "pretrained": run.request.pretrained,
        "training images": f"{len(run.images.fit)} ({hashlib.sha256(listed.encode()).hexdigest()[:8]})",
        "prototypes per class": list(run.per_class),
        "device": run.device.type,
        "processes": run.cluster.world,
        "versions": installed_versions(("protonmf", "torch", "timm")),
        **json.loads(json.dumps(asdict(run.options))),
    }


def _refuse_other_run(folder: "TrainingFolder", facts: dict[str, Any], force: bool) -> None:
    """An unfinished run with this output and other options is neither continued nor lost by accident."""
    others = folder.differences(facts)
    if others and not force and not (folder.folder / "state.safetensors").is_file():
        path, differences = next(iter(others.items()))
        folder.discard()
        raise InputError(
            f"an unfinished training with this output was asked for something else ({'; '.join(differences[:4])}). "
            f"Give the same options to go on, another -o, or --force to begin anew and keep it in {path}."
        )


def _fit(run: Run, folder: "TrainingFolder", state: "TrainingState", keep: Any, cycles: Path | None) -> _Net:
    """Choose the width if asked for, then go through the schedule."""
    from protonmf_cli.output.text.protopnet import epoch_line
    from protonmf_cli.pipelines.protopnet.setup import check_patches
    from protonmf_cli.pipelines.protopnet.training import ends_cycle, plan

    width = run.options.width or _choose_width(run, folder)
    trained = _new(run, width, run.images.fit, run.images.apart)
    options = trained.options
    for warning in check_patches(run.images.counts, run.per_class, trained.backbone, distinct=options.distinct):
        run.shown.warn(warning)
    steps = plan(options)

    def after_step(now: "TrainingState") -> None:
        keep(now)
        if cycles is not None and ends_cycle(steps, now.done - 1):
            _write_cycle(cycles, run, trained, now)

    _go(run, trained, state, after_step, lambda row: run.shown.log(epoch_line(row, options)))
    return trained


def _go(run: Run, trained: _Net, state: "TrainingState", keep: Any, told: Any) -> None:
    from protonmf_cli.pipelines.protopnet.start import start_from_data
    from protonmf_cli.pipelines.protopnet.training import Trainer

    net, backbone, options, source = trained.net, trained.backbone, trained.options, trained.source
    if not state.done:
        start_from_data(net, backbone, source.push, source.counts()[0], options, run.bars)
    trainer = Trainer(net, backbone, source, options, progress=run.bars, cluster=run.cluster, told=told)
    trainer.run(state, keep)


def _new(run: Run, width: int, fit: "Sequence[ImageFile]", apart: "Sequence[ImageFile]") -> _Net:
    from protonmf_cli.files.images.training_images import TrainingData, TrainingImages
    from protonmf_cli.pipelines.protopnet.setup import new_protopnet

    options = replace(run.options, width=width)
    net, backbone = new_protopnet(
        copy.deepcopy(run.network),
        run.images.preprocessing,
        run.source,
        run.images.classes,
        options,
        run.per_class,
        run.device,
    )
    images = TrainingImages(
        files=list(fit),
        reader=run.images.reader,
        augmentation=options.augmentation,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    return _Net(net=net, backbone=backbone, options=options, source=TrainingData(images=images, apart=list(apart)))


def _choose_width(run: Run, folder: "TrainingFolder") -> int:
    """The width whose networks are right most often on folds of the training images."""
    from protonmf_cli.files.images.training_images import folds
    from protonmf_cli.models.training_state import TrainingState

    for width in run.options.widths:
        for number, (fit, apart) in enumerate(folds(run.images.fit, FOLDS, run.options.seed)):
            if f"{width}/{number}" in folder.widths():
                continue
            state = TrainingState()
            _go(run, _new(run, width, fit, apart), state, lambda _: None, told=lambda _: None)
            found = (state.best or {})["accuracy"]
            run.shown.note(f"width {width}, fold {number + 1} of {FOLDS}: {found:.1%}")
            if run.cluster.leads:
                folder.note_width(width, number, found)
            run.cluster.wait()
    known = folder.widths()
    means = {w: sum(known[f"{w}/{n}"] for n in range(FOLDS)) / FOLDS for w in run.options.widths}
    best = max(means, key=lambda w: (means[w], -w))
    run.shown.note(f"width {best} is taken: {', '.join(f'{w} {m:.1%}' for w, m in means.items())} on folds")
    return best


def _write_cycle(target: Path, run: Run, trained: _Net, state: "TrainingState") -> None:
    """The model after a push, for tables over training cycles."""
    from protonmf_cli.files.store import save_model
    from protonmf_cli.jobs.protopnet.finished import finished_model

    model, _ = finished_model(
        trained.net, trained.backbone, trained.options, run.images.fit, run.images.reader, state.sources,
        {"split": "train"}, run.bars,
    )  # fmt: skip
    path = target / f"cycle-{len(state.pushes)}.safetensors"
    save_model(path, model, trained.backbone.weights())
    run.shown.note(f"wrote {path}")


def _finish(run: Run, trained: _Net, state: "TrainingState") -> "tuple[PrototypeModel, dict[str, Any]]":
    """Measure the trained network, find its patches, and make the model file's content."""
    from protonmf_cli.jobs.protopnet.finished import finished_model
    from protonmf_cli.pipelines.protopnet.activations import accuracy, read_activations

    net, images, best = trained.net, run.images, state.best or {}
    skipped = [asdict(skip) for skip in images.skipped]
    data = {"split": "train", "boxes": run.boxes, "skipped": skipped}
    model, activations = finished_model(
        net, trained.backbone, trained.options, images.fit, images.reader, best.get("sources") or [], data, run.bars
    )
    figures: dict[str, Any] = {"train": accuracy(net, activations), "held_out": best.get("accuracy"), "test": None}
    if images.val is not None:
        run.bars.stage("test images", sum(images.val.counts.values()))
        batches = images.reader.batches(images.val.of(images.val.files))
        figures["test"] = accuracy(net, read_activations(net, trained.backbone, batches, progress=run.bars))
    push = state.pushes[max(0, best.get("cycle", len(state.pushes)) - 1)]
    model = model.measured_as(accuracy=figures, push={**push, "cycle": best.get("cycle")})
    report = {
        "schema": "protonmf.protopnet_training/1",
        "model": run.request.name,
        "output": str(run.output),
        "classes": len(images.classes),
        "prototypes": len(model.prototypes),
        "images": {
            "train": len(images.fit),
            "held_out": len(images.apart),
            "test": 0 if images.val is None else sum(images.val.counts.values()),
        },
        "skipped": skipped,
        "epochs": [row for row in state.log if row["stage"] != "push"],
        "stages": [row for row in state.log if row["stage"] == "push"],
        "accuracy": figures,
        "best_cycle": best.get("cycle"),
        "selected_on": images.selected_on,
        "push": push,
        "theorem": push["theorem"],
        "options": asdict(trained.options),
    }
    return model, report
