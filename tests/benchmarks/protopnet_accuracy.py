"""ProtoPNet against the black box: same network, images, augmentation, number of epochs and schedule of rates.

    python tests/benchmarks/protopnet_accuracy.py MODEL DATA [--epochs 12] [--seeds 3] [--similarity log] [--folds 4]

Accuracy on val over the images of all seeds together, with 95 % bootstrap intervals over the images, and the paired
difference; and the networks of all seeds combined (logits added) against the best single one. With --folds N the
tests are N folds of train, one seed each, for choosing options.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from protonmf_cli.files.images.datasets import ClassMapping, class_folders, find_images
from protonmf_cli.files.images.training_images import TrainingData, TrainingImages, folds
from protonmf_cli.files.networks.backbones import load_features
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.maths.metrics import bootstrap_interval
from protonmf_cli.models.protopnet.training_state import TrainingState
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.protopnet.activations import read_activations
from protonmf_cli.pipelines.protopnet.setup import new_protopnet
from protonmf_cli.pipelines.protopnet.start import start_from_data
from protonmf_cli.pipelines.protopnet.training import Trainer, plan


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--warm-epochs", type=int, default=6)
    parser.add_argument("--cycles", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--similarity", default="log")
    parser.add_argument("--folds", type=int, help="test on folds of train instead of val")
    parser.add_argument("--black-box-rate", type=float, default=1e-4)
    parser.add_argument("--backbone-rate", type=float, default=ProtoPNetOptions().backbone_rate)
    parser.add_argument("--rate", type=float, default=ProtoPNetOptions().addon_rate)
    parser.add_argument("--only", choices=("black-box", "protopnet"))
    return parser.parse_args()


def images_of(words, options, seed):
    """Training data, test files, reader, and how the network wants its images."""
    request = BackboneRequest(name=words.model)
    network, preprocessing, source, _ = load_features(request)
    classes = class_folders(words.data, "train")
    train = find_images(words.data, "train", classes, ClassMapping())
    if words.folds:
        fit, test = list(folds(train.of(train.files), words.folds, 7))[seed % words.folds]
    else:
        val = find_images(words.data, "val", classes, ClassMapping())
        fit, test = train.of(train.files), val.of(val.files)
    reader = image_reader(preprocessing, batch_size=words.batch_size, workers=2)
    images = TrainingImages(
        files=fit, reader=reader, augmentation=options.augmentation, batch_size=words.batch_size, seed=seed
    )
    return TrainingData(images=images), test, reader, (network, preprocessing, source, classes)


def protopnet(words, options):
    """Logits of every test image after push and last layer, their labels, and how the run went."""
    data, test, reader, (network, preprocessing, source, classes) = images_of(words, options, options.seed)
    counts = [options.prototypes] * len(classes)
    net, backbone = new_protopnet(network, preprocessing, source, classes, options, counts, torch.device("cpu"))
    start_from_data(net, backbone, data.push, data.counts()[0], options)
    state = Trainer(net, backbone, data, options).run(TrainingState(), lambda _: None)
    found = read_activations(net, backbone, reader.batches(test))
    return net.similarities(found.distance) @ net.head.mT, found.labels, state.pushes[-1]


def black_box(words, options):
    """The same network with its own head, fine-tuned: warm epochs for the head alone, then everything."""
    data, test, reader, (_, preprocessing, _, classes) = images_of(words, options, options.seed)
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = import_timm().create_model(words.model, pretrained=True)
        network.reset_classifier(len(classes))
        head = {id(p) for p in network.get_classifier().parameters()}
        groups = [
            {"params": [p for p in network.parameters() if id(p) not in head], "lr": words.black_box_rate},
            {"params": list(network.get_classifier().parameters()), "lr": 1e-3},
        ]
        optimiser = torch.optim.Adam(groups, weight_decay=options.backbone_decay)
        rates = [group["lr"] for group in optimiser.param_groups]
        for step in plan(options):
            if step.stage == "push":
                continue
            network.eval()
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * step.factor
            for p in groups[0]["params"]:
                p.requires_grad_(step.stage == "joint")
            for batch in data.epoch(step.epoch, 0, 1):
                loss = functional.cross_entropy(network((batch.crops / 255 - mean) / std), batch.labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    right = []
    with torch.inference_mode():
        for batch in reader.batches(test):
            right.append(network((batch.crops / 255 - mean) / std).argmax(dim=1) == batch.class_index)
    return torch.cat(right).double().numpy()


def main() -> None:
    words = read_arguments()
    base = ProtoPNetOptions(
        epochs=words.epochs, warm_epochs=words.warm_epochs, cycles=words.cycles, validation=0.0,
        batch_size=words.batch_size, similarity=words.similarity,
        backbone_rate=words.backbone_rate, addon_rate=words.rate, prototype_rate=words.rate,
    )  # fmt: skip
    right: dict[str, list[np.ndarray]] = {"black box": [], "ProtoPNet": []}
    logits = []
    for seed in range(words.first_seed, words.first_seed + (words.folds or words.seeds)):
        options = replace(base, seed=seed)
        for name, kind in (("black box", "black-box"), ("ProtoPNet", "protopnet")):
            if words.only not in (None, kind):
                continue
            began = time.monotonic()
            facts = ""
            if kind == "protopnet":
                answer, labels, push = protopnet(words, options)
                found = (answer.argmax(dim=1) == labels).double().numpy()
                logits.append(answer)
                facts = f"  patches of {push['images']} images, {push['duplicates']} duplicates, KKT {push['last_layer']['kkt']:.0e}"
            else:
                found = black_box(words, options)
            right[name].append(found)
            print(f"seed {seed}  {name:<10} {found.mean():.3f}  {time.monotonic() - began:.0f} s{facts}", flush=True)
    pooled = {name: np.concatenate(values) for name, values in right.items() if values}
    if len(pooled) == 2:
        pooled["difference"] = pooled["ProtoPNet"] - pooled["black box"]
    for name, values in pooled.items():
        low, high = bootstrap_interval(values, seed=0)
        print(f"{name:<10} {values.mean():.3f} ({low:.3f}, {high:.3f})  {len(values)} images")

    if len(logits) > 1 and not words.folds:
        combined = (sum(logits).argmax(dim=1) == labels).double().numpy()
        best = max(values.mean() for values in right["ProtoPNet"])
        print(f"combined   {combined.mean():.3f}, best single ProtoPNet {best:.3f}")


if __name__ == "__main__":
    main()
