"""Sparse autoencoders of overcomplete: TopK (Gao et al. 2024) and relaxed archetypal (Fel et al. 2025)."""

import contextlib
import io
from functools import partial

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from .factorisations import MOST_ROWS, import_overcomplete, linear, shared, summed
from .features import Network, drawn_rows, held_out
from .measures import Coded, Explainer, divergence, rebuilt

EPOCHS, BATCH, RATE = 20, 512, 3e-3
"""The library's page has a rate of 5e-4, for far more rows; at these few 3e-3 rebuilt them better."""
CHOICES = (8, 16, 32)
"""Concepts of a row; the library's own choice is a tenth of all."""


def trained(rows: Tensor, concepts: int, kind: str, most: int, seed: int) -> nn.Module:
    """An autoencoder as the library's page trains one: Adam, 20 passes, squared error.

    Args:
        rows: (n, D) with a mean squared length of 1, which RA-SAE's relaxation of at most 1 counts on.
        concepts: K.
        kind: "TopKSAE" or "RATopKSAE", whose concepts lie near the hull of as many k-means centres of the rows.
        most: concepts of a row.
        seed: of everything.
    """
    sae = import_overcomplete("sae")
    torch.manual_seed(seed)
    words = {}
    if kind == "RATopKSAE":
        centres = MiniBatchKMeans(concepts, random_state=seed, n_init=1).fit(rows.numpy())
        words["points"] = torch.from_numpy(centres.cluster_centers_).float()
    model = getattr(sae, kind)(rows.shape[1], nb_concepts=concepts, top_k=most, **words)

    def criterion(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
        return (x - x_hat).square().mean()

    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(rows), batch_size=BATCH, shuffle=True, drop_last=len(rows) > BATCH
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    with contextlib.redirect_stdout(io.StringIO()):
        sae.train_sae(model, batches, criterion, optimiser, nb_epochs=EPOCHS, monitoring=0)
    return model.eval()


def autoencoder(network: Network, prototypes: int, seed: int, kind: str) -> Explainer:
    """As many concepts as all classes have prototypes; of `CHOICES` the one whose rebuilt logits diverge least from the
    network's on a fifth of the training images. Rows are scaled by one number."""
    out = held_out(network.train.labels, seed=seed)
    fit_on, judged = network.train.of(~out), network.train.of(out)
    own, losses = judged.logits[:, network.classes], {}
    for most in CHOICES:
        found = _explainer(network, drawn_rows(fit_on, MOST_ROWS, seed), prototypes, seed, kind, most)
        losses[most] = float(divergence(own, rebuilt(found, Coded.of(found, judged))).mean())
    best = min(losses, key=lambda most: losses[most])
    return _explainer(network, drawn_rows(network.train, MOST_ROWS, seed), prototypes, seed, kind, best)


def _explainer(network: Network, rows: Tensor, prototypes: int, seed: int, kind: str, most: int) -> Explainer:
    size = rows.square().sum(dim=1).mean().sqrt()
    model = trained(rows / size, prototypes * len(network.classes), kind, most, seed)
    atoms = model.get_dictionary().detach().float() * size
    encode = partial(_codes, model, float(size))
    return shared(network, linear(network, atoms, partial(summed, encode)), f"{most} concepts of a row")


@torch.no_grad()
def _codes(model: nn.Module, size: float, rows: Tensor) -> Tensor:
    return model.encode(rows / size)[1]
