"""Plain training of a small classifier, for the demonstration."""

import torch
from torch import Tensor, nn

from protonmf_cli.pipelines.progress import SILENT, Progress


def train_classifier(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    progress: Progress = SILENT,
    batch_size: int = 64,
    peak_rate: float = 3e-3,
) -> None:
    """Cross-entropy with AdamW and a one-cycle schedule; leaves the network in evaluation mode.

    Args:
        network: trained in place, on its device.
        pixels: (n, 3, height, width) normalised images.
        labels: (n,) classes.
        epochs: passes over the images.
        seed: of the order of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=peak_rate, weight_decay=0.05)
    steps = -(-len(pixels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=peak_rate, total_steps=epochs * steps)
    network.train()
    progress.stage("training", epochs * steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pixels), generator=generator).split(batch_size):
            loss = nn.functional.cross_entropy(network(pixels[chosen]), labels[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            progress.advance()
    network.eval()


def accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Share of images whose top class is the label."""
    with torch.inference_mode():
        top = torch.cat([network(block).argmax(dim=1) for block in pixels.split(256)])
    return float((top == labels).double().mean())
