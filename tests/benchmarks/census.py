"""How every architecture of a library is read: kind, exactness, places, and what is refused.

    python tests/benchmarks/census.py RESULTS.jsonl [--only 'vit_*'] [--again single-row ...] [--memory 14]
    python tests/benchmarks/census.py RESULTS.jsonl --library torchvision|transformers
    python tests/benchmarks/census.py RESULTS.jsonl --table

Of torchvision every classifier is an architecture, of transformers every type of model that classifies images, as its
configuration is by default. Nothing is downloaded: weights are drawn. One forked process per architecture, one at a
time, with a limit on its memory and time. Every result is a line of RESULTS.jsonl, and architectures that are in it are
not run again.
"""

import argparse
import fnmatch
import json
import multiprocessing
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.files.networks import torchvision_networks
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.models.backbone import probe_readout
from protonmf_cli.models.networks.splitting import split_network
from protonmf_cli.pipelines.conversion.network_figures import quadrants_followed

timm: Any = import_timm()

SIDES = (112, 128)
"""Image sizes to try before the architecture's own, so that a forward pass is cheap."""
MOST_PIXELS, LARGE, FEW_PIXELS = 224, 500_000_000, 112
"""Widest image of a torchvision classifier; from how many weights it is large, and how wide its images are then."""
BYTES_PER_WEIGHT = 8
"""Networks are built in float64, which the readouts are proved in."""
SPACE_FOR_ACTIVATIONS = 2**31
THROUGH_ATTENTION = ("token-writes", "token-writes and votes", "token-writes and mean", "attention-pool")
"""Kinds whose rows are not positions of a feature map: there an image is changed to see whether the places are right."""
NO_MEMORY = "allocate memory"
NO_CLASSIFIER, TOO_LARGE, REFUSED, EXACT, FAILED = "no classifier", "too large", "refused", "exact", "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--library", default="timm", choices=[*NAMES])
    parser.add_argument("--only", default="*", help="architectures whose names fit this pattern")
    parser.add_argument("--again", nargs="*", default=[], help="kinds or outcomes to run again")
    parser.add_argument("--memory", type=float, default=14, help="GiB for one architecture")
    parser.add_argument("--minutes", type=float, default=15, help="for one architecture")
    parser.add_argument("--table", action="store_true", help="print the summary alone")
    options = parser.parse_args()
    library = options.library
    found = read(options.results, library)
    names = fnmatch.filter(NAMES[library](), options.only)
    if not options.table:
        wanted = [n for n in names if n not in found or {found[n]["outcome"], found[n]["kind"]} & {*options.again}]
        for done, name in enumerate(wanted, start=1):
            found[name] = examine_apart(library, name, options.memory, options.minutes)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[name]) + "\n")
            print(f"[{done}/{len(wanted)}] {in_words(found[name])}", flush=True)
    print(table([found[name] for name in names if name in found], library, missing=sum(n not in found for n in names)))


def of_transformers() -> list[str]:
    """Types of models that classify images."""
    return list(import_module("transformers.models.auto.modeling_auto").MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def of_torchvision() -> list[str]:
    """Classifiers."""
    models = import_module("torchvision.models")
    return models.list_models(module=models)


NAMES: dict[str, Callable[[], list[str]]] = {
    "timm": timm.list_models, "torchvision": of_torchvision, "transformers": of_transformers,
}  # fmt: skip
"""What each library has."""


def read(results: Path, library: str) -> dict[str, dict[str, Any]]:
    """The newest result of every architecture that this version of a library knows, by name."""
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: line for line in lines if line.get(library) == version(library)}


def examine_apart(library: str, name: str, memory: float, minutes: float) -> dict[str, Any]:
    """The result of one architecture, from a process of its own that may fail without harm."""
    started = time.perf_counter()
    here, there = multiprocessing.Pipe(duplex=False)
    # forked from a process that has imported timm but not computed anything
    process = multiprocessing.get_context("fork").Process(target=examine_within, args=(library, name, memory, there))
    process.start()
    there.close()
    try:
        seen = here.recv() if here.poll(minutes * 60) else {"outcome": FAILED, "said": f"longer than {minutes} minutes"}
    except EOFError:
        seen = {"outcome": TOO_LARGE, "said": "the process was stopped"}
    process.kill()
    process.join()
    blank = {
        "kind": None,
        "grid": None,
        "difference": None,
        "weights": None,
        "side": None,
        "quadrants": None,
        "said": None,
    }
    common = {"name": name, library: version(library), "seconds": round(time.perf_counter() - started, 1)}
    return common | blank | seen


def examine_within(library: str, name: str, memory: float, answer: Any) -> None:
    """Examine one architecture with at most this many GiB."""
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        answer.send(examine(name, limit) if library == "timm" else examine_split(library, name, limit))
    except MemoryError:
        answer.send({"outcome": TOO_LARGE, "said": f"more than {memory} GiB"})
    except Exception as failure:  # whatever an architecture of timm raises is a result
        outcome = TOO_LARGE if NO_MEMORY in str(failure) else FAILED
        answer.send({"outcome": outcome, "said": f"{type(failure).__name__}: {failure}"[:300]})


def examine(name: str, limit: int) -> dict[str, Any]:
    """Build an architecture at the smallest size that it takes, and find how its head is read."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    with torch.device("meta"):
        plan = timm.create_model(name)
    weights = sum(tensor.numel() for tensor in plan.parameters())
    seen: dict[str, Any] = {"outcome": FAILED, "weights": weights}
    if not plan.num_classes or not hasattr(plan, "forward_head"):
        return seen | {"outcome": NO_CLASSIFIER}
    if BYTES_PER_WEIGHT * weights + SPACE_FOR_ACTIVATIONS > limit:
        return seen | {"outcome": TOO_LARGE}
    skip_initialisation()
    for network, side in built(name):
        draw_weights(network)
        channels = network.pretrained_cfg.get("input_size", (3,))[0]
        try:
            readout, difference = probe_readout(network, (channels, side, side), "auto", name)
        except NotExactError as failure:
            return seen | {"outcome": REFUSED, "side": side, "said": str(failure)}
        except InputError as failure:  # not at this size
            if NO_MEMORY in str(failure):
                return seen | {"outcome": TOO_LARGE, "side": side}
            seen.setdefault("said", str(failure))
            continue
        seen |= {"outcome": EXACT, "kind": readout.kind, "grid": readout.grid, "difference": difference}
        seen |= {"side": side, "said": None}
        if readout.kind in THROUGH_ATTENTION:
            pixels = coloured_squares(channels, side, side)
            return seen | {"quadrants": quadrants_followed(network, readout, pixels)}
        if readout.spatial:  # otherwise a larger image may leave more than one position
            return seen
    return seen


def examine_split(library: str, name: str, limit: int) -> dict[str, Any]:
    """Build an architecture of another library, and find where it is split and how its head is read."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    network, size, classes = in_library(library, name)
    weights = sum(tensor.numel() for tensor in network.parameters())
    seen: dict[str, Any] = {"outcome": FAILED, "weights": weights}
    if BYTES_PER_WEIGHT * weights + SPACE_FOR_ACTIVATIONS > limit:
        return seen | {"outcome": TOO_LARGE}
    draw_weights(network)
    seen |= {"side": size[1]}
    try:
        found = split_network(network, {"num_classes": classes}, size, name, library=library)
        readout, difference = probe_readout(found, size, "auto", name)
    except NotExactError as failure:
        return seen | {"outcome": REFUSED, "said": str(failure)[:300]}
    seen |= {"outcome": EXACT, "kind": readout.kind, "grid": readout.grid, "difference": difference}
    if readout.kind in THROUGH_ATTENTION:
        seen["quadrants"] = quadrants_followed(found, readout, coloured_squares(*size))
    return seen


def in_library(library: str, name: str) -> tuple[Any, tuple[int, int, int], int]:
    """An architecture, the size (channels, height, width) of its images, and its number of classes."""
    if library == "torchvision":
        models = import_module("torchvision.models")
        trained = models.get_model_weights(name).DEFAULT
        most = FEW_PIXELS if trained.meta["num_params"] > LARGE else MOST_PIXELS
        side = min(most, trained.transforms().crop_size[0])
        fixed = name.startswith(torchvision_networks.OF_ONE_SIZE)
        network = torchvision_networks.rebuild(name, {"image_size": side} if fixed else {})
        return network.to(torch.get_default_dtype()), (3, side, side), 1000
    transformers = import_module("transformers")
    config = transformers.AutoConfig.for_model(name, num_labels=10)
    config.architectures = []
    seen = getattr(config, "vision_config", config)
    side = getattr(seen, "image_size", 224)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    network = transformers.AutoModelForImageClassification.from_config(config)
    return network.to(torch.get_default_dtype()).eval(), (int(getattr(seen, "num_channels", 3)), height, width), 10


def built(name: str) -> Iterator[tuple[Any, int]]:
    """The architecture at growing image sizes, with the size."""
    config = timm.get_pretrained_cfg(name)
    own = int(config.input_size[-1]) if config else 224
    fixed = bool(config and config.fixed_input_size)
    for side in (*(side for side in SIDES if side < own), own):
        try:
            yield timm.create_model(name, **({"img_size": side} if fixed and side != own else {})).eval(), side
        except (RuntimeError, AssertionError, ValueError, TypeError, ZeroDivisionError):
            if side == own:
                raise


def coloured_squares(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Two images (2, channels, height, width) of squares and noise, whose quadrants differ also behind a coarse stem."""
    generator = torch.Generator().manual_seed(seed)
    squares = torch.randn(2, channels, 8, 8, generator=generator)
    noise = torch.randn(2, channels, height, width, generator=generator)
    return 2 * torch.nn.functional.interpolate(squares, size=(height, width)) + noise


def skip_initialisation() -> None:
    """Make timm's random starts free; `draw_weights` follows."""
    for name in ("uniform_", "normal_", "erfinv_"):
        setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor)
    torch.nn.init._no_grad_trunc_normal_ = lambda tensor, *_, **__: tensor  # which draws until all numbers fit
    timm.layers.weight_init._trunc_normal_ = lambda tensor, *_, **__: tensor


def draw_weights(network: Any) -> None:
    """Fill every weight with numbers of variance 1 / fan in, and move all norms, statistics and layer scales."""
    numbers = (
        2 * torch.rand(1_048_573, generator=torch.Generator().manual_seed(1)) - 1
    )  # a prime: no two rows are alike
    start = 0
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        is_weight = isinstance(tensor, torch.nn.Parameter) and tensor.ndim > 1
        if not tensor.is_floating_point() or not (isinstance(tensor, torch.nn.Parameter) or "running" in name):
            continue
        flat, done = tensor.data.view(-1), 0
        while done < len(flat):  # piece by piece, because whole tensors of noise would cost as much as the network
            noise = numbers[start : start + len(flat) - done].to(flat)
            piece = flat[done : done + len(noise)]
            if is_weight:
                torch.mul(noise, (3 / max(1, tensor[0].numel())) ** 0.5, out=piece)
            else:
                piece.nan_to_num_(0, 0, 0).clamp_(-1, 1).add_(0.15 * (noise + 1))
            done, start = done + len(noise), (start + len(noise)) % len(numbers)


def in_words(seen: dict[str, Any]) -> str:
    """A line on one architecture."""
    size = f"{seen['weights'] / 1e6:.0f} M" if seen["weights"] else ""
    place = "x".join(map(str, seen["grid"])) if seen["grid"] else "no places" if seen["kind"] else ""
    followed = "" if seen["quadrants"] is None else f"{seen['quadrants']} of 4 quadrants"
    off = "" if seen["difference"] is None else f"{seen['difference']:.0e}"
    words = (seen["name"], size, seen["outcome"], seen["kind"] or "", place, followed, off, f"{seen['seconds']:.1f} s")
    return "  ".join([*filter(None, words), *([seen["said"]] if seen["said"] else [])])


def table(found: list[dict[str, Any]], library: str = "timm", *, missing: int) -> str:
    """The summary in Markdown."""
    outcomes = Counter(seen["outcome"] for seen in found)
    exact = [seen for seen in found if seen["outcome"] == EXACT]
    rows = []
    for kind in dict.fromkeys(k for k, _ in Counter(seen["kind"] for seen in exact).most_common()):
        of_kind = [seen for seen in exact if seen["kind"] == kind]
        worst = max(seen["difference"] for seen in of_kind)
        maps = sum(seen["grid"] is not None for seen in of_kind)
        rows.append(f"| `{kind}` | {len(of_kind)} | {maps} | {worst:.0e} | {families(of_kind)} |")
    attended = [seen["quadrants"] for seen in exact if seen["kind"] in THROUGH_ATTENTION]
    seconds = sum(seen["seconds"] for seen in found)
    number = found[0][library] if found else version(library)
    maps = sum(seen["grid"] is not None for seen in exact)
    return "\n".join(
        [
            f"{library} {number}: {len(found)} architectures in {seconds / 3600:.1f} hours"
            + (f", {missing} still missing" if missing else ""),
            f"with a classifier: {len(found) - outcomes[NO_CLASSIFIER]}; "
            f"exact {len(exact)}, with maps {maps}, by image row {sum(s['kind'] == 'image-row' for s in exact)}, "
            + ", ".join(f"{outcome} {outcomes[outcome]}" for outcome in (REFUSED, FAILED, TOO_LARGE)),
            f"of {len(attended)} whose places are found through attention, {attended.count(4)} follow all four changed "
            f"quadrants of an image, {attended.count(3)} three",
            "",
            "| kind of readout | architectures | with maps | worst difference | most of them |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def families(found: list[dict[str, Any]], most: int = 4) -> str:
    """The words that most names begin with."""
    counts = Counter(re.sub(r"(?<=[a-z])(v?\d|_).*", "", seen["name"].removeprefix("tf_")) for seen in found)
    return ", ".join(f"{family} {count}" for family, count in counts.most_common(most))


if __name__ == "__main__":
    main()
