"""protonmf fewshot interpret: what the prototypes of a few-shot model are, in words and pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import UsageError
from protonmf_cli.jobs.fewshot.data import DEFAULT_MODEL
from protonmf_cli.jobs.tables import make_folder
from protonmf_cli.output.text.fewshot import interpretation_json, interpretation_lines

if TYPE_CHECKING:
    from torch import Tensor

    from protonmf_cli.jobs.loaded import Loaded
    from protonmf_cli.models.prototype import PrototypeModel


def interpret(
    file: Annotated[Path | None, typer.Argument(help="Few-shot model file. Default: as --model.")] = None,
    model: arguments.Model = DEFAULT_MODEL,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for a card of every prototype and the plane of samples and prototypes.")] = None,
    virtual: Annotated[bool, typer.Option("--virtual", help="Also a picture that each prototype would like best, found through the network.")] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the search for it.")] = 96,
    fgsm: Annotated[bool, typer.Option("--fgsm", help="How small a change of the pixels changes the class of the pictures inside the file.")] = False,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    seed: arguments.Seed = 0,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Pure, ambiguous and unused prototypes, scattered classes, singletons, and the images where classes meet."""
    shown = Shown(quiet=quiet)
    if virtual and figures is None:
        raise UsageError("--virtual makes pictures: give a folder with --figures.")
    if figures is not None:
        from protonmf_cli.files.atomic import check_writable
        from protonmf_cli.jobs.loaded import check_there

        check_there(file or model)
        make_folder(figures)
        for name in ("cards.png", "plane.png", *(["virtual.png"] if virtual else [])):
            check_writable(figures / name, force)
    from protonmf_cli.cli.opened import open_model
    from protonmf_cli.pipelines.fewshot.interpretation import matching_of

    loaded = open_model(file or model, device=device, dtype="float32", threads=threads, offline=offline)
    matching_of(loaded.model)
    report: dict[str, Any] = {"schema": "protonmf.fewshot_interpretation/1", "model": str(file or model)}
    report |= interpretation_json(loaded.model)
    with shown.progress() as bars:
        if figures is not None:
            _draw(loaded, figures, shown)
        if virtual and figures is not None:
            report["virtual"] = _virtual(loaded, figures / "virtual.png", steps, seed, shown, bars)
        if fgsm:
            report["adversarial"] = _fgsm(loaded, bars)
    if as_json:
        shown.json(report)
    else:
        _show(loaded.model, report, shown)


def _draw(loaded: "Loaded", figures: Path, shown: Shown) -> None:
    from protonmf_cli.cli.fewshot.fit import draw_plane
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.output.figures.strips import gallery_png
    from protonmf_cli.pipelines.fewshot.prototype_cards import CARD_HEADINGS, card_strips

    write_atomically(figures / "cards.png", gallery_png("prototypes", card_strips(loaded.model), CARD_HEADINGS))
    shown.note(f"wrote {figures / 'cards.png'}")
    draw_plane(loaded.model, figures / "plane.png", shown)


def _virtual(loaded: "Loaded", target: Path, steps: int, seed: int, shown: Shown, bars: Bars) -> list[dict[str, Any]]:
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.output.figures.strips import gallery_png
    from protonmf_cli.pipelines.fewshot.prototype_cards import VIRTUAL_HEADINGS, virtual_strips
    from protonmf_cli.pipelines.fewshot.virtual_examples import virtual_examples

    model = loaded.model
    found = virtual_examples(
        loaded.backbone,
        model,
        range(len(model.prototypes)),
        list(_pictures(loaded).values()),
        steps=steps,
        seed=seed,
        progress=bars,
    )
    write_atomically(target, gallery_png("virtual examples", virtual_strips(model, found), VIRTUAL_HEADINGS))
    shown.note(f"wrote {target}")
    return [
        {"prototype_id": v.prototype, "match": v.match, "agreement": v.agreement, "best_training_image": v.best_sample}
        for v in found
    ]


def _pictures(loaded: "Loaded") -> "dict[str, Tensor]":
    """The training images inside the file, by name."""
    from protonmf_cli.files.images.reader import crop_of_jpeg

    examples = loaded.model.examples
    first = {source.path: number for number, source in reversed(list(enumerate(examples.sources)))}
    return {name: crop_of_jpeg(examples.picture(first[name]), loaded.reader.channels) for name in sorted(first)}


def _fgsm(loaded: "Loaded", bars: Bars) -> dict[str, Any]:
    from protonmf_cli.pipelines.fewshot.adversarial import CHANGES, adversarial_check

    classes, pictures = loaded.model.card.classes, _pictures(loaded)
    names = list(pictures)
    found = adversarial_check(loaded.backbone, loaded.model, list(pictures.values()), progress=bars)
    return {
        "images": [
            {
                "source": names[n],
                "answer": classes[one.class_index].label,
                "margin": one.margin,
                "change": one.change,
                "becomes": None if one.other is None else classes[one.other].label,
            }
            for n, one in found.images
        ],
        "flipped": {f"{change:g}": found.flipped(change) for change in CHANGES},
        "correlation": found.correlation,
    }


def _show(model: "PrototypeModel", report: dict[str, Any], shown: Shown) -> None:
    from protonmf_cli.cli.ledger import MOST_NAME, MOST_SOURCE
    from protonmf_cli.models.wording import shortened, shortened_path

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("prototype", "kind", "speaks for", "images", "variance", "entropy", "matched most by"):
        table.add_column(name, no_wrap=True, justify="right" if name in {"images", "variance", "entropy"} else "left")
    names = {c.label: c.shown for c in model.card.classes}
    for row in report["prototypes"]:
        cells = (
            f"{shortened(names[row['owner_label']], MOST_NAME)} {row['prototype']}",
            row["kind"],
            shortened(" or ".join(names[label] for label in row["classes"][:3]), MOST_NAME) or "-",
            str(len(row["members"])),
            f"{row['variance']:.3f}",
            f"{row['entropy']:.2f}",
            shortened_path(row["members"][0]["source"], MOST_SOURCE) if row["members"] else "-",
        )
        table.add_row(*map(Text, cells))  # names are no markup
    shown.out.print(table)
    shown.lines(interpretation_lines(model))
    behind = [row for row in report.get("virtual", []) if row["agreement"] < row["best_training_image"]]
    if behind:
        shown.note(
            f"{len(behind)} of {len(report['virtual'])} virtual examples lie less in the direction of their prototype than "
            "a training image does: more --steps may help"
        )
    if found := report.get("adversarial"):
        said = ", ".join(f"{share:.0%} by {change}/255" for change, share in found["flipped"].items())
        rank = "" if found["correlation"] is None else f"; rank correlation with the margin {found['correlation']:.2f}"
        shown.lines({"fast gradient": f"changes the class of {said}, of {len(found['images'])} pictures{rank}"})
