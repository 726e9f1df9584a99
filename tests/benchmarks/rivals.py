"""Concepts against other methods' concepts, at equal numbers: how faithful to the logits are they alone?

    python tests/benchmarks/rivals.py MODEL... --data DATA [--methods NAME ...] [--seeds 0 1] [-p 3] [--json OUT]
        [--work DIR] [--again NAME ...] [--collages 200]

Every method gets the same rows of the training images, as the network's head reads them (logits = (sum of rows + rest
of the image) . V + b), makes -p concepts for each class with images (or as many in one dictionary), and is measured on
the validation images. What it rebuilds is its concepts with the bias and the usual value of rows without a place, never
what it leaves over. Figures:

  agreement   share of images where the concepts' best class is the network's, among the classes with images; and
              among all classes of the head, where a method has their logits
  KL          of the network's softmax || the concepts', in nats, likewise
  C-deletion, C-insertion   area under the predicted class's probability while the -p concepts that contribute most are
              taken from the network's own logits, or put in where nothing is (Fel et al. 2023), see `measures.curves`
  difference  largest one between the network's logits and the method's, what is left added; - where it adds nothing
  plausibility   mean over classes of the best cosine of a concept with the class's row of the head
  precision at 4, mAP   which classes is a collage of four images of different classes made of, by the concepts' logits;
              by one concept: mAP of the concept that tells a class best on collages of training images

Intervals are 95 % of a bootstrap over images, the same draws for all methods, so that differences are paired. Figures
of a method with seeds are the mean over them. Each finished method is kept in --work, so that a run goes on where it
stopped. Rows of "one dictionary" and of a "fitted head" are not published forms: they give a rival's concepts what ours
or others have. overcomplete comes with `pip install 'protonmf[rivals]'`; without it its rows say so.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rival_methods.autoencoders import autoencoder
from rival_methods.epic import epic
from rival_methods.face import face
from rival_methods.factorisations import craft, least_squares, overcomplete, united
from rival_methods.features import Network, first_of_each, load_network
from rival_methods.measures import (
    Coded,
    Explainer,
    among_classes,
    best_concepts,
    faithfulness,
    identified,
    levelled,
    plausibility,
    rebuilt,
)
from rival_methods.ours import control, converted
from rival_methods.tables import OURS, show

PARTS = "ours, --near-as parts --near 8"
Method = Callable[[Network, int, int], Explainer]


def _united(network: Network, prototypes: int, seed: int) -> Explainer:
    return united(network, craft(network, prototypes, seed))


METHODS: dict[str, Method] = {
    OURS: partial(converted, recipe="default"),
    PARTS: partial(converted, recipe="default", near=8, near_as="parts"),
    "ours, --near all": partial(converted, recipe="default", near=-1),
    "ours, --near 0": partial(converted, recipe="default", near=0),
    "ours, --recipe paper": partial(converted, recipe="paper"),
    "CRAFT / ICE": craft,
    "CRAFT / ICE, one dictionary": _united,
    "CRAFT / ICE, fitted head": lambda network, p, seed: least_squares(network, _united(network, p, seed)),
    "FACE": face,
    "FACE, one dictionary": lambda network, p, seed: united(network, face(network, p, seed)),
    "EPIC": epic,
    "EPIC, all channels": partial(epic, whole=True),
    "overcomplete NMF": partial(overcomplete, kind="NMF"),
    "overcomplete SemiNMF": partial(overcomplete, kind="SemiNMF"),
    "overcomplete TopK-SAE": partial(autoencoder, kind="TopKSAE"),
    "overcomplete RA-SAE": partial(autoencoder, kind="RATopKSAE"),
    "control: label-shuffled": partial(control, kind="shuffled"),
    "control: Gaussian": partial(control, kind="gaussian"),
}
WITHOUT_SEED = {name for name in METHODS if name.startswith(("CRAFT", "FACE"))} | {
    OURS,
    PARTS,
    "ours, --near all",
    "ours, --near 0",
}
"""Methods that start from what does not depend on a seed."""
PER_CLASS = 5
"""Training images of each class over which the mean of what concepts leave is taken."""


def measured(network: Network, explainer: Explainer, prototypes: int) -> dict[str, Any]:
    """All figures of a method on one network: (N,) by name, or one number."""
    val = Coded.of(explainer, network.val)
    few = Coded.of(explainer, network.train.of(first_of_each(network.train.labels, PER_CLASS)))
    level = levelled(explainer, few)
    collages = {
        name: Coded.of(explainer, each)
        for name, each in (("train", network.train_collages), ("val", network.val_collages))
    }
    wanted = among_classes(network.val_collages.labels, network.classes)
    return {
        "val": faithfulness(explainer, val, prototypes),
        "levelled": faithfulness(level, val, prototypes),
        "collages": identified(rebuilt(explainer, collages["val"]), wanted),
        "classes": {
            "plausibility": plausibility(explainer, network),
            "one_concept": best_concepts(explainer, collages["train"], collages["val"]),
        },
        "exactness": explainer.exactness,
        "said": explainer.said,
        "concepts": len(explainer.shown),
    }


def black_box(network: Network) -> dict[str, Any]:
    """What the network itself says of the same images."""
    among = torch.tensor(network.classes)
    right = (among[network.val.logits[:, among].argmax(dim=1)] == network.val.labels).float()
    wanted = among_classes(network.val_collages.labels, network.classes)
    return {"right": right, "collages": identified(network.val_collages.logits[:, among], wanted)}


def run(name: str, words: argparse.Namespace) -> dict[str, Any]:
    """Measure the methods on one network, or take what was kept of them."""
    short = Path(name).name
    folder = words.work / f"{short}-p{words.prototypes}"
    folder.mkdir(parents=True, exist_ok=True)
    network = load_network(name, words.data, words.work, words.collages)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for method in words.methods:
        for seed in words.seeds[:1] if method in WITHOUT_SEED else words.seeds:
            path = folder / f"{method.replace('/', '').replace(' ', '-')}-{seed}.pt"
            if not path.exists() or method in words.again:
                start = time.process_time()
                try:
                    explainer = METHODS[method](network, words.prototypes, seed)
                except ImportError as failure:
                    found[method] = {seed: {"missing": f"not installed ({failure.name})"}}
                    continue
                fitted = time.process_time() - start
                figures = measured(network, explainer, words.prototypes) | {"seconds": fitted}
                torch.save(figures, path)
                print(f"{short}: {method}, seed {seed}: {time.process_time() - start:.0f} s of CPU", flush=True)
            found.setdefault(method, {})[seed] = torch.load(path)
    return {"methods": found, "black_box": black_box(network), "classes": len(network.classes)}


def as_numbers(value: Any) -> Any:
    """The same with lists in place of tensors."""
    if isinstance(value, torch.Tensor):
        return [round(each, 6) for each in value.tolist()]
    if isinstance(value, dict):
        return {str(key): as_numbers(each) for key, each in value.items()}
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="as protonmf convert takes them")
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("-p", "--prototypes", type=int, default=3)
    parser.add_argument("--collages", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("rivals-work"), help="folder for rows and finished methods")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="methods that are measured once more")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args(arguments)
    torch.set_num_threads(words.threads)
    warnings.simplefilter("ignore")
    results = {}
    for name in words.models:
        results[Path(name).name] = run(name, words)
        show(Path(name).name, results[Path(name).name], words.prototypes)
        if words.json:
            words.json.write_text(json.dumps(as_numbers(results)))


if __name__ == "__main__":
    main()
