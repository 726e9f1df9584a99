"""What a model of all classes of ImageNet-21k costs: its file, opening it, explaining, inspecting, editing, a page.

    python tests/benchmarks/many_classes.py make FILE [ARCHITECTURE] [CLASSES] [PROTOTYPES]
    python tests/benchmarks/many_classes.py measure FILE IMAGE

The network is timm's with drawn weights, the prototypes are drawn (see assembly_cost.py) and go through a conversion's
own assembly. Every step is measured in a process of its own, beside one that only runs the network: CPU seconds, and
peak memory beyond that of the network.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")


def make(file: str, architecture: str = "mobilenetv3_large_100", classes: str = "21843", prototypes: str = "3") -> None:
    """Write a model file."""
    from assembly_cost import DrawnClasses

    from protonmf_cli.files.networks.backbones import load_backbone
    from protonmf_cli.files.networks.request import BackboneRequest
    from protonmf_cli.files.store import save_model
    from protonmf_cli.models.card import DataFacts
    from protonmf_cli.options import ConversionOptions
    from protonmf_cli.pipelines.conversion.assembly import assemble_model

    request = BackboneRequest(name=architecture, pretrained=False, model_args={"num_classes": int(classes)})
    backbone, _ = load_backbone(request)
    readout = backbone.readout
    finished = DrawnClasses(
        readout.vectors, 4, int(prototypes), sums=1 + bool(readout.places and readout.unplaced), side=readout.grid[0]
    )
    start = time.process_time()
    model = assemble_model(backbone, finished, ConversionOptions(stability=False), data=DataFacts())
    print(f"assembly {time.process_time() - start - finished.seconds:.0f} CPU s")
    size = save_model(Path(file), model, backbone.weights())
    print(f"{size / 1e6:.0f} MB, {len(model.prototypes)} prototypes, {len(model.weights.value)} connections")
    print(f"peak {peak():.2f} GB")


def peak() -> float:
    """GB that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def network_alone(file: str, image: str) -> dict[str, float]:
    """The network of the file, built and run as timm does it, on one crop."""
    import safetensors
    import torch

    from protonmf_cli.files.networks.timm_networks import rebuilt_network

    with safetensors.safe_open(file, framework="pt") as opened:
        card = json.loads(opened.metadata()["protonmf"])["card"]
        network = rebuilt_network(card["source"]["architecture"], card["source"]["model_args"])
        names = [name for name in opened.keys() if name.startswith("backbone.")]  # noqa: SIM118
        network.load_state_dict({name.removeprefix("backbone."): opened.get_tensor(name) for name in names})
    pixels = torch.zeros(1, *card["preprocessing"]["input_size"])
    with torch.inference_mode():
        network(pixels)
        return {"seconds": timed(lambda: network(pixels))}


def timed(work: object, turns: int = 5) -> float:
    """CPU seconds of one call, the least of several."""
    found = []
    for _ in range(turns):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def explaining(file: str, image: str) -> dict[str, float]:
    """Opening, the first image and further ones, beyond the network's pass."""
    import torch

    from protonmf_cli import load

    start = time.process_time()
    loaded = load(file)
    opening = time.process_time() - start
    opened = peak()
    crop = loaded.crop(image)[None]
    with torch.inference_mode():
        loaded.backbone.read(crop)
    network = timed(lambda: loaded.backbone.read(crop))
    start = time.process_time()
    found = loaded.explain(image)
    first = time.process_time() - start
    again = timed(lambda: loaded.explain(image))
    decoding = timed(lambda: loaded.crop(image))
    return {
        "opening": opening, "network": network, "decoding": decoding, "first": first - network - decoding,
        "again": again - network - decoding, "ledger_error": found.ledger_error, "peak_opened": opened,
    }  # fmt: skip


def command(*words: str) -> dict[str, float]:
    """One command of the program, in this process."""
    from protonmf_cli.cli.app import main

    start = time.process_time()
    code = main(list(words))
    return {"exit": code, "seconds": time.process_time() - start}


def step(name: str, *words: str) -> dict[str, float]:
    """One step in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "step", name, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(file: str, image: str) -> None:
    """Print every step."""
    alone = step("network", file, image)
    print(f"network alone: {1000 * alone['seconds']:.1f} CPU ms, peak {alone['peak']:.2f} GB")
    folder, page = Path(file).parent, f"{file}.html"
    data = str(folder / "many_classes_data")
    steps = {
        "explain from Python": ("explain", file, image),
        "explain": ("command", "explain", image, "-m", file),
        "explain --json": ("command", "explain", image, "-m", file, "--json"),
        "inspect": ("command", "inspect", file),
        "inspect --class": ("command", "inspect", file, "--class", "17"),
        "intervene": ("command", "intervene", image, "-m", file, "--class", "17", "--zero", "1"),
        "intervene --everywhere": (
            "command", "intervene", image, "-m", file, "--class", "17", "--zero", "17:1", "--everywhere",
        ),
        "explain --html": ("command", "explain", image, "-m", file, "--html", page, "--force"),
        "report": ("command", "report", "-m", file, "--images", image, "-o", page, "--force"),
        "evaluate": ("command", "evaluate", "-m", file, "--data", data),
    }  # fmt: skip
    for name, words in steps.items():
        if words[1] == "evaluate" and not Path(data).is_dir():
            continue
        found = step(*words)
        if "peak" in found:
            found["beyond_network"] = found["peak"] - alone["peak"]
        page_size = f", page {Path(page).stat().st_size / 1e6:.1f} MB" if page in words and Path(page).is_file() else ""
        print(
            f"{name}: {', '.join(f'{key} {value:.4g}' if isinstance(value, float | int) else f'{key} {value}' for key, value in found.items())}{page_size}"
        )


STEPS = {"network": network_alone, "explain": explaining, "command": command}


def main(words: Sequence[str]) -> None:
    match words:
        case ["make", *rest]:
            make(*rest)
        case ["measure", file, image]:
            measure(file, image)
        case ["step", name, *rest]:
            found = STEPS[name](*rest)
            print(json.dumps(found | {"peak": peak()}))


if __name__ == "__main__":
    main(sys.argv[1:])
