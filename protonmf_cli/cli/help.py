"""The help of a command: its options by topic, no name cut in any terminal, and an example."""

import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from protonmf_cli.cli.console import say
from protonmf_cli.errors import UsageError

TOPICS = {
    "Model": ("model", "models", "form"),
    "Network": (
        "weights", "num_classes", "model_arg", "img_size", "exif_transpose", "pretrained", "network", "function",
        "features", "labels", "multi_label", "rows", "layers", "embed_backbone", "embed",
    ),
    "Images": (
        "data", "images", "per_class", "refit", "split", "class_map", "class_order", "boxes", "parts", "masks",
        "groups", "sample", "shots", "max_skipped",
    ),
    "Class": ("class_name", "among", "against"),
    "Edits": ("zero", "scale", "everywhere", "audit", "remove_suspicious", "drop"),
    "Prototypes": (
        "prototypes", "max_prototypes", "recipe", "reconstruction", "near", "near_as", "augment", "stability", "init",
        "solver",
        "examples", "width", "patch", "similarity", "addon", "distinct", "nearest", "least", "last_layer",
        "l1", "norm", "normalisation", "anchor", "vocabulary", "tower", "template", "min_margin",
    ),
    "Training": (
        "epochs", "warm_epochs", "cycles", "backbone_rate", "rate", "cluster", "separation", "validation", "precision",
        "finetune", "mode", "pull",
    ),
    "Measures": (
        "table", "counts", "limit", "protopnet", "evaluation", "hosts", "l1_path", "ways", "subsets", "most", "folds",
        "virtual", "steps", "fgsm",
    ),
    "Thresholds": ("min_accuracy", "min_agreement", "max_residual_share", "max_unlike", "max_shortcuts"),
    "Output": (
        "path", "output", "written_as", "figure", "figures", "html", "folder", "max_size", "map_kind", "top",
        "classes", "log", "keep_cycles", "junit_xml", "private", "force", "as_json", "json_lines", "quiet", "verbose",
        "dry_run",
    ),
    "Machine": (
        "device", "dtype", "threads", "batch_size", "workers", "memory", "cache_features", "cache", "offline", "seed",
    ),
    "Several processes": ("processes", "ray", "ray_cpus", "share"),
}  # fmt: skip
"""Heading -> parameters of commands, in the order in which they are shown; `--help` stands below what is in none."""
OTHERS = "Others"
EXAMPLE = "\n\nExample: "
"""In a command's docstring, before a line that is shown as it is."""


class HelpfulCommand(TyperCommand):
    """A command whose help is grouped; plain text, because tables of rich cut long names at 80 columns."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As usual; refused where a value is empty, as of a shell's variable that is not set: "" is no folder."""
        if "" in args or any(word.startswith("--") and word.endswith("=") for word in args):
            given, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for parameter in order:
                values = given.get(parameter.name)
                if "" in (values if isinstance(values, list | tuple) else [values]):
                    name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
                    say(f"error: {name} is empty: give a value, or leave it out.")
                    ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Without rich."""
        super(TyperCommand, self).format_help(ctx, formatter)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The docstring, then its example as it is."""
        text, _, example = inspect.cleandoc(self.help or "").partition(EXAMPLE)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)
        if example:
            formatter.write(f"\nExample:\n  $ {example}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options by topic."""
        records: dict[str, dict[str, tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                topic = "Arguments" if parameter.param_type_name == "argument" else topic_of(str(parameter.name))
                records.setdefault(topic, {})[str(parameter.name)] = record
        for topic in ("Arguments", *TOPICS, OTHERS):
            found = records.get(topic, {})
            names = sorted(found, key=TOPICS[topic].index) if topic in TOPICS else list(found)
            if names:
                with formatter.section(topic):
                    _write_list(formatter, [found[name] for name in names])


MOST_NAME = 30
"""Characters of a name that has its text beside it; below longer ones it begins on a line of its own."""


def _write_list(formatter: Any, rows: Sequence[tuple[str, str]]) -> None:
    """Names and what is said of them in two columns; click's own breaks `--num-classes` at its hyphens."""
    first = min(max(len(name) for name, _ in rows), MOST_NAME)
    left, room = " " * formatter.current_indent, formatter.width - formatter.current_indent - first - 2
    for name, text in rows:
        lines = textwrap.wrap(text, max(room, 10), break_on_hyphens=False, break_long_words=False)
        if len(name) > first:
            lines = ["", *lines]
        formatter.write(f"{left}{name:<{first}}  {lines[0] if lines else ''}".rstrip() + "\n")
        formatter.write("".join(f"{left}{'':<{first}}  {line}\n" for line in lines[1:]))


def topic_of(parameter: str) -> str:
    """The heading under which an option is shown."""
    return next((topic for topic, names in TOPICS.items() if parameter in names), OTHERS)
