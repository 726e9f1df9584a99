"""What a ProtoPNet's training, changes and analyses say of themselves; each fact has a name and a text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from protonmf_cli.models.wording import shortened_path
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.output.text.blocks import Block, Row, TextTable

if TYPE_CHECKING:
    from protonmf_cli.jobs.protopnet.analyses import ProtoPNetEvaluation
    from protonmf_cli.jobs.protopnet.edits import ProtoPNetCombination, ProtoPNetPruning, ProtoPNetPush
    from protonmf_cli.jobs.protopnet.training import ProtoPNetTraining
    from protonmf_cli.models.results import Contribution
    from protonmf_cli.pipelines.protopnet.analyses import LocalAnalysis

SMALL_RATE = 1e-3
"""Share of the starting rate below which an epoch changes next to nothing."""
MOST_SOURCE = 36
"""Last characters of a training image's path."""


def epoch_line(row: Mapping[str, Any], options: ProtoPNetOptions) -> str:
    """One line per epoch or push, in columns."""
    held = "" if row.get("held_out") is None else f"  held out {row['held_out']:6.1%}"
    head = f"epoch {row['epoch']:3d} {row['stage']:<5}"
    if row["stage"] == "push":
        last = row.get("last_layer")
        solved = f"  last layer {row['accuracy_last_layer']:6.1%} (KKT {last['kkt']:.0e})" if last else ""
        return (
            f"{head}  moved {row.get('moved', 0):.3f}  train {row.get('accuracy_before', 0):6.1%} -> "
            f"{row.get('accuracy_after', 0):6.1%}{solved}{held}  {row['seconds']:.0f} s"
        )
    rates = "/".join(f"{rate:.0e}" for rate in row["rates"].values())
    starts = {"backbone": options.backbone_rate, "addon": options.addon_rate, "head": options.head_rate}
    small = any(rate < SMALL_RATE * starts.get(name, rate) for name, rate in row["rates"].items())
    return (
        f"{head}  cross entropy {row['cross_entropy']:.3f}  cluster {row['cluster']:.3f}  separation "
        f"{row['separation']:.3f}  train {row['accuracy']:6.1%}{held}  rates {rates}"
        f"{' (next to nothing)' if small else ''}  {row['seconds']:.0f} s"
    )


def training_facts(training: "ProtoPNetTraining") -> dict[str, str]:
    """The summary of a training run."""
    images, model = training.images, training.loaded.model
    known = {name: value for name, value in training.accuracy.items() if value is not None}
    cycles = sum(row["stage"] == "push" for row in training.log)
    return {
        str(training.loaded.path): f"{training.bytes / 2**20:.1f} MiB, from {training.network}",
        "classes": f"{len(images.classes)}, {len(images.fit)} training images",
        "prototypes": f"{len(model.prototypes)}",
        "accuracy": ", ".join(f"{value:.1%} {name.replace('_', ' ')}" for name, value in known.items()),
        "best cycle": f"{training.best_cycle} of {cycles}, chosen by {images.selected_on}",
        **_push_facts(training.push),
        "time": f"{training.seconds:.0f} s",
    }


def push_facts(push: "ProtoPNetPush") -> dict[str, str]:
    """What projecting a file's prototypes did."""
    count = len(push.loaded.model.prototypes)
    return {str(push.loaded.path): f"{count} prototypes, pushed onto {push.images} images", **_push_facts(push.facts)}


def _push_facts(push: Mapping[str, Any]) -> dict[str, str]:
    """What a push and its last layer did."""
    theorem, last = push["theorem"], push.get("last_layer")
    lines = {"sources": f"patches of {push['images']} images, {push['duplicates']} duplicates"}
    if push["kept"]:
        lines["not projected"] = f"{push['kept']} prototypes of classes without images"
    if last:
        lines["last layer"] = _last_layer(last)
    if theorem:
        lines["push"] = (
            f"of {theorem['images']} images {theorem['changed']} changed class; certified {theorem['certified_by_theorem']} "
            f"by Theorem 2.1, {theorem['certified_by_bound']} by the bound on their similarities"
        )
    return lines


def pruning_facts(pruning: "ProtoPNetPruning") -> dict[str, str]:
    """How many prototypes went, and what that did."""
    gone, left, fitted = len(pruning.facts["removed"]), len(pruning.loaded.model.prototypes), pruning.last_layer
    return {
        str(pruning.loaded.path): f"{gone} of {gone + left} prototypes removed, {left} left",
        "accuracy": f"{pruning.before:.1%} before, {pruning.after:.1%} after (training images)",
        "last layer": _last_layer(fitted),
    }


def _last_layer(fitted: Mapping[str, Any]) -> str:
    """How the last layer was fitted: solved, or trained as the original code does."""
    weights = f"{fitted['other_class_weights']} weights to other classes"
    if "passes" in fitted:
        return f"{fitted['passes']} passes of the optimiser, {weights}"
    return f"KKT residual {fitted['kkt']:.1e} after {fitted['iterations']} iterations, {weights}"


def combination_facts(combination: "ProtoPNetCombination") -> dict[str, str]:
    """What one file adds up."""
    count, model = len(combination.files), combination.model
    return {
        str(combination.path): f"{combination.bytes / 2**20:.1f} MiB, logits of {count} networks added",
        "prototypes": f"{len(model.prototypes)} for {len(model.bias)} classes",
    }


def evaluation_facts(evaluation: "ProtoPNetEvaluation") -> dict[str, str]:
    """How good a ProtoPNet is."""
    found = evaluation.quality
    (low, high), sparsity, prototypes = found["accuracy_interval"], found["sparsity"], found["prototypes"]
    parts = {
        row["measure"]: f"{row['value']:.1%} over {row['over']}"
        for row in evaluation.part_quality
        if row["value"] is not None
    }
    return {
        "accuracy": f"{found['accuracy']:.1%} ({low:.1%}, {high:.1%}) of {found['images']} images",
        "sparsity": f"{sparsity['other_class_weights']} of {sparsity['other_class_connections']} weights to other classes "
        f"are not zero; {sparsity['weights_per_class']:.1f} weights per class",
        "prototypes": f"{prototypes['count']}, {prototypes['unique']} unique patches of "
        f"{prototypes['images']} images; fewest images of a class: {prototypes['fewest_images_of_a_class']}",
        "purity": f"{found['purity']:.1%} of the {evaluation.near} nearest images of a prototype are of its class",
        **parts,
    }


def path_lines(evaluation: "ProtoPNetEvaluation") -> list[str]:
    """One line per weight of the L1 term, where they were asked for."""
    return [
        f"  l1 {row['l1']:.0e}: {row['other_class_weights']} weights to other classes, "
        f"{row['accuracy_train']:.1%} train, {row['accuracy_test']:.1%} here"
        for row in evaluation.l1_path or ()
    ]


def local_blocks(found: "LocalAnalysis") -> Iterator[Block]:
    """The prediction, the prototypes most similar to an image, and those of its best classes."""
    best = found.predictions[0]
    yield ((f"{best.name} {best.probability:.1%}", "bold"),)
    yield _similar_table("most similar prototypes", found.similar)
    for prediction, contributions in zip(found.predictions, found.by_class, strict=True):
        yield _similar_table(f"{prediction.name}, logit {prediction.logit:.2f}", contributions)


def _similar_table(title: str, contributions: "Sequence[Contribution]") -> TextTable:
    rows = [
        Row(
            cells=(
                f"prototype {c.prototype} of {c.owner_name}",
                f"{c.evidence:.3f}",
                f"{c.weight:+.3f}",
                f"{c.contribution:+.2f}",
            ),
            last=shortened_path(c.examples[0].path, MOST_SOURCE) if c.examples else "",
        )
        for c in contributions
    ]
    return TextTable(headings=(title, "similarity", "weight", "logit"), rows=tuple(rows), last="its patch is in")
