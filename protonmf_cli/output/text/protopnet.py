"""What a ProtoPNet's training, push or pruning says of itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.console import Shown
from protonmf_cli.options import ProtoPNetOptions

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel

SMALL_RATE = 1e-3
"""Share of the starting rate below which an epoch changes next to nothing."""


def epoch_line(row: dict[str, Any], options: ProtoPNetOptions) -> str:
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


def show_training(report: dict[str, Any], model: "PrototypeModel", output: Path, shown: Shown) -> None:
    """The summary of a training run."""
    known = {name: value for name, value in report["accuracy"].items() if value is not None}
    lines = {
        str(output): f"{output.stat().st_size / 2**20:.1f} MiB, from {report['model']}",
        "classes": f"{report['classes']}, {report['images']['train']} training images",
        "prototypes": f"{len(model.prototypes)}",
        "accuracy": ", ".join(f"{value:.1%} {name.replace('_', ' ')}" for name, value in known.items()),
        "best cycle": f"{report['best_cycle']} of {len(report['stages'])}, chosen by {report['selected_on']}",
        **push_lines(report["push"]),
        "time": f"{report['seconds']:.0f} s",
    }
    shown.lines(lines)


def push_lines(push: dict[str, Any]) -> dict[str, str]:
    """What a push and its last layer did."""
    theorem, last = push["theorem"], push.get("last_layer")
    lines = {"sources": f"patches of {push['images']} images, {push['duplicates']} duplicates"}
    if push["kept"]:
        lines["not projected"] = f"{push['kept']} prototypes of classes without images"
    if last:
        lines["last layer"] = (
            f"KKT residual {last['kkt']:.1e} after {last['iterations']} iterations, {last['other_class_weights']} weights "
            "to other classes"
        )
    if theorem:
        lines["push"] = (
            f"of {theorem['images']} images {theorem['changed']} changed class; certified {theorem['certified_by_theorem']} "
            f"by Theorem 2.1, {theorem['certified_by_bound']} by the bound on their similarities"
        )
    return lines
