"""Which prototypes look like shortcuts: ranked, shown, and as a threshold for batch jobs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

from protonmf_cli.errors import InputError, UsageError, printable
from protonmf_cli.files.audits import AuditRanking, Ranked
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.datasets import LabelledImages, read_pairs
from protonmf_cli.files.images.object_masks import Objects, boxed_objects, masked_objects, read_groups
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.files.store import decision_digest
from protonmf_cli.jobs.gates import Gate, write_junit
from protonmf_cli.jobs.images import SkipWatch, images_of_model
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.jobs.page import check_page, decoded, drawn_page, write_page
from protonmf_cli.models.audit import Audit
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.class_names import words_for
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.wording import owned_name
from protonmf_cli.options import AuditOptions, ImageWords, Machine, Output, PageOptions
from protonmf_cli.pipelines.auditing.audit import AuditImages, audit_model
from protonmf_cli.pipelines.fewshot.interpretation import interpretation_of
from protonmf_cli.pipelines.page.content import report_of
from protonmf_cli.pipelines.progress import LOGGED, Progress

HOSTS = 512
"""Images, at most, that patches are pasted into; as many of each class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Audited:
    """What was found, and where it was written."""

    loaded: Loaded
    data: ImageWords
    found: Audit
    gates: tuple[Gate, ...]
    """The threshold that was given, if any; `check_gates` stops where it is not met."""
    path: Path | None
    """Of the page."""

    @property
    def model_digest(self) -> str:
        """Of what the model decides by."""
        return decision_digest(self.loaded.model)

    @property
    def class_words(self) -> list[str]:
        """How a command line calls each class."""
        return words_for(self.loaded.model.card.classes)

    @property
    def ranking(self) -> AuditRanking:
        """As it is kept in a file."""
        classes = self.loaded.model.card.classes
        ranked = [
            Ranked(
                class_index=one.class_index, class_name=classes[one.class_index].shown, prototype=one.number,
                prototype_id=one.prototype_id, shortcut=one.is_shortcut,
            )
            for one in self.found.candidates
        ]  # fmt: skip
        return AuditRanking(name="the audit", model_digest=self.model_digest, ranked=tuple(ranked))


def audit(
    model: Loaded | str | PathLike[str],
    data: ImageWords | str | PathLike[str],
    options: AuditOptions | None = None,
    *,
    output: Output | str | PathLike[str] | None = None,
    junit: Output | str | PathLike[str] | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Audited:
    """Rank all prototypes by how much they look like shortcuts.

    Each prototype's training patches are pasted into images of other classes, which should not follow them, and its
    class is looked at without it.

    Args:
        model: a file, or a model that is loaded.
        data: labelled images of two classes at least (the split val where there are two), best such that were not
            trained on.
        options: where objects are, groups, how many trials, and the threshold.
        output: HTML page to write; none if None.
        junit: file to write the threshold to, as CI servers read it.
        machine: where and how to compute.
        progress: is told stages, notes and warnings.

    Raises:
        InputError: the data, masks, boxes or groups cannot be used, or the model is combined of several networks.
        UsageError: masks and boxes are given, or `junit` without a threshold.
        GateError: too many images could not be read.
    """
    started, options, words = time.monotonic(), options or AuditOptions(), ImageWords.of(data, split="val")
    page = None if output is None else Output.of(output)
    report = None if junit is None else Output.of(junit, "--junit-xml")
    _check_outputs(options, page, report)
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        _check_model(loaded.model)
        images = images_of_model(words, loaded.model.card)
        for note in images.notes:
            progress.note(note)
        watch = SkipWatch()
        found = _found(loaded, images, words, watch, options, progress)
        watch.check(words.max_skipped, found.images, progress)
        gates = _gates(options, found, loaded.model.card.classes)
        if report is not None:
            write_junit(report.path, gates, time.monotonic() - started, "audit")
            progress.note(f"wrote {report.path}")
        if page is not None:
            _write_page(loaded, found, words, page, progress)
    return Audited(
        loaded=loaded, data=words, found=found, gates=gates, path=None if page is None else page.path
    )  # fmt: skip


def _check_outputs(options: AuditOptions, page: Output | None, report: Output | None) -> None:
    if options.masks is not None and options.boxes is not None:
        raise UsageError("give --masks or --boxes, not both.")
    if report is not None and options.max_shortcuts is None:
        raise UsageError("--junit-xml writes the threshold: give --max-shortcuts N too.")
    if page is not None:
        if page.path.suffix.lower() == ".json":
            raise UsageError(f"-o writes a page, and {page.path} is named as JSON: give --json and send it there.")
        check_page(page, folder=False)
    if report is not None:
        check_writable(report.path, report.force, report.option)


def _check_model(model: PrototypeModel) -> None:
    if model.card.members:
        raise InputError("this model is combined of several networks, and an audit reads one. Audit them one by one.")
    if model.multi_label:
        raise InputError(
            "an audit pastes parts of a class into images of others, and images of this model have several labels."
        )


def _found(
    loaded: Loaded,
    images: LabelledImages,
    words: ImageWords,
    watch: SkipWatch,
    options: AuditOptions,
    progress: Progress,
) -> Audit:
    files = images.of(images.files)
    hosts = images.limited(max(1, HOSTS // len(images.files)), options.seed)
    groups = (
        {} if options.groups is None
        else read_groups(options.groups, [file.name for file in files], read_pairs(options.groups))
    )  # fmt: skip
    if groups and len(groups) < len(files):
        progress.note(f"{len(files) - len(groups)} of {len(files)} images are in no group of {options.groups}.")
    objects = _objects(loaded, images, options)
    progress.stage("reading images", len(files))
    return audit_model(
        loaded.backbone,
        loaded.model,
        AuditImages(
            batches=watch.over(loaded.reader.batches(files)),
            hosts=frozenset(file.name for file in hosts.of(hosts.files)),
            groups=groups,
            objects=objects,
        ),
        decode=partial(crop_of_jpeg, channels=loaded.reader.channels),
        options=options,
        batch_size=loaded.reader.batch_size,
        progress=progress,
    )


def _objects(loaded: Loaded, images: LabelledImages, options: AuditOptions) -> Objects | None:
    files, reader = images.of(images.files), loaded.reader
    if options.masks is not None:
        return masked_objects(options.masks, files, reader.crop, reader.channels)
    if options.boxes is not None:
        return boxed_objects(options.boxes, files, reader.crop, reader.channels)
    return None


def _gates(options: AuditOptions, found: Audit, classes: Sequence[ClassName]) -> tuple[Gate, ...]:
    if options.max_shortcuts is None:
        return ()
    names = tuple(owned_name(classes[one.class_index].shown, one.number) for one in found.shortcuts)
    return (Gate(name="max-shortcuts", limit=options.max_shortcuts, value=len(names), counted=names),)


def _write_page(loaded: Loaded, found: Audit, words: ImageWords, page: Output, progress: Progress) -> None:
    interpretation = interpretation_of(loaded.model)
    content = report_of(
        loaded.backbone, loaded.model, (), file=loaded.named, decode=decoded, audit=found,
        audit_data=tuple(map(printable, words.named)), interpretation=interpretation,
    )  # fmt: skip
    write_page(page.path, drawn_page(loaded, content, interpretation, PageOptions()), progress)
