"""What others find and take out of a network that relies on marks: Grad-CAM, a refitted last layer, P-ClArC, CRAFT."""

from collections.abc import Iterator, Sequence

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import interpolate

from protonmf_cli.maths.amounts import dual
from protonmf_cli.maths.nmf import factorise
from protonmf_cli.maths.nnls import nonnegative_codes
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.options import NmfOptions
from protonmf_cli.pipelines.conversion.reconstruction import EDIT_RIDGE

Head = tuple[Tensor, Tensor]
"""V (C, D) and b (C,), float64, of the sum of an image's rows."""
BATCH = 64


def read_sums(backbone: Backbone, crops: Tensor) -> Tensor:
    """(N, D) sums of the rows of images, float64, on the CPU."""
    if not len(crops):
        return torch.zeros(0, backbone.readout.width, dtype=torch.float64)
    return torch.cat([backbone.read(batch).rows.sum(dim=1).cpu() for batch in crops.split(BATCH)]).double()


# Grad-CAM


def grad_cam(backbone: Backbone, crops: Tensor) -> Tensor:
    """(N, h, w) maps >= 0 of the predicted classes (Selvaraju et al. 2017).

    On the last feature map; of a ViT on what its last block reads, as its later patch tokens have no gradient.
    """
    network, found = backbone.network.requires_grad_(False), []
    is_vit = hasattr(network, "patch_embed")
    seen: list[Tensor] = []

    def cut(module: object, args: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hook = (network.blocks[-1].norm1 if is_vit else network.bn2).register_forward_hook(cut)
    for batch in crops.split(BATCH):
        seen.clear()
        network(backbone.normalise(batch)).amax(dim=1).sum().backward()
        (features,), gradient = seen, seen[0].grad
        assert gradient is not None
        if is_vit:
            height, width = backbone.readout.grid
            features, gradient = (
                each[:, -height * width :].mT.unflatten(2, (height, width)) for each in (features, gradient)
            )
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        found.append((weights * features).sum(dim=1).clamp_min(0).detach().cpu())
    hook.remove()
    return torch.cat(found)


# Last layers


def refitted_head(sums: Tensor, labels: Tensor) -> Head:
    """Last layer fitted on images without marks, as DFR does (Kirichenko et al. 2023): logistic regression of
    standardised features, its decay by cross-validation."""
    scaler = StandardScaler()
    x = scaler.fit_transform(sums.numpy())
    search = GridSearchCV(LogisticRegression(max_iter=200), {"C": [1e-4, 1e-3, 1e-2, 1e-1]}, cv=3)
    found = search.fit(x, labels.numpy()).best_estimator_
    head = torch.from_numpy(found.coef_ / scaler.scale_)
    return head, torch.from_numpy(found.intercept_) - head @ torch.from_numpy(scaler.mean_)


def projected_head(head: Head, marked: Sequence[Tensor], unmarked: Sequence[Tensor], usual: Tensor) -> Head:
    """Head behind a projection that leaves nothing of the marks' directions but their usual value (P-ClArC, Anders et
    al. 2022).

    Args:
        head: of the network.
        marked, unmarked: (n, D) for each mark, images with and without it; their means differ by its direction.
        usual: (D,) mean of images without marks.
    """
    vectors, bias = head
    directions = torch.stack([(a - b).mean(dim=0) for a, b in zip(marked, unmarked, strict=True)])
    frame = torch.linalg.svd(directions, full_matrices=False).Vh
    along = vectors @ frame.mT @ frame
    return vectors - along, bias + along @ usual


# CRAFT


CONCEPTS, CROP, STRIDE = 10, 64, 53
"""Concepts of a class; side of the crops, and pixels from one to the next (4 x 4 of a picture)."""


def _crops(pictures: Tensor) -> Iterator[Tensor]:
    """Crops of uint8 pictures, as large as the pictures."""
    size = pictures.shape[2:]
    for top in range(0, size[0] - CROP + 1, STRIDE):
        for left in range(0, size[1] - CROP + 1, STRIDE):
            part = pictures[:, :, top : top + CROP, left : left + CROP].float()
            yield interpolate(part, size=size, mode="bilinear").round().clamp(0, 255).to(torch.uint8)


def _split(sums: Tensor) -> Tensor:
    """(N, 2 D) >= 0 of signed ones, whose negative halves stand beside the positive ones."""
    return torch.cat([sums.clamp_min(0), (-sums).clamp_min(0)], dim=1)


def concepts(backbone: Backbone, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Concepts of a class from its training pictures, as CRAFT finds them (Fel et al. 2023): NMF of what the network
    makes of their crops. Signed features are split and the concepts' halves joined, as for prototypes.

    Returns:
        (k, 2 D) concepts of the split features, and (n, k) their codes in the crops.
    """
    device = backbone.device
    activations = torch.cat([read_sums(backbone, crops.to(device)) for crops in _crops(pictures)])
    options = NmfOptions(balance=0.0)
    found = factorise(_split(activations).to(device, torch.float32), CONCEPTS, options=options, seed=0)
    return found.basis.cpu().double(), found.codes.cpu().double()


def joined(basis: Tensor) -> Tensor:
    """(k, D) directions of concepts of split features."""
    positive, negative = basis.chunk(2, dim=1)
    return positive - negative


def most_important(basis: Tensor, codes: Tensor, vector: Tensor) -> int:
    """The concept with the largest total Sobol index of a class's logit when concepts are masked at random.

    The logit is linear in the masks, so the index of concept k is (u_k V . c_k)^2 over the sum of all; mean over crops.
    """
    effects = (codes * (joined(basis) @ vector)).square()
    shares = effects / effects.sum(dim=1, keepdim=True).clamp_min(torch.finfo(effects.dtype).tiny)
    return int(shares.mean(dim=0).argmax())


def best_separating(basis: Tensor, marked: Tensor, unmarked: Tensor) -> int:
    """The concept whose code tells marked from unmarked images (n, D) best: largest AUROC."""
    codes = nonnegative_codes(_split(torch.cat([marked, unmarked])), basis)
    truth = [1] * len(marked) + [0] * len(unmarked)
    return int(torch.tensor([roc_auc_score(truth, code) for code in codes.mT.numpy()]).argmax())


def without_concepts(head: Head, chosen: Sequence[tuple[Tensor, int]], within: Tensor, unplaced: Tensor) -> Head:
    """Head after protonmf's edit of every class with concepts in place of prototypes: V - (V c) e, one by one.

    Args:
        head: of the network.
        chosen: concepts (k, 2 D) of a class, and which of them is taken out.
        within: (D, D) covariance of images within classes, for e as for prototypes.
        unplaced: (D,) mean sum of the rows without a place, whose logits stay.
    """
    vectors, bias = head
    damped = within + EDIT_RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    for basis, number in chosen:
        directions = joined(basis)
        reader = torch.linalg.solve(damped, within @ dual(directions, 0.0).readers[number])
        reader = reader / (reader @ directions[number])
        vectors = vectors - torch.outer(vectors @ directions[number], reader)
    return vectors, bias + (head[0] - vectors) @ unplaced


def within_classes(sums: Tensor, labels: Tensor) -> Tensor:
    """(D, D) covariance of images within their classes."""
    centred = torch.cat([sums[labels == c] - sums[labels == c].mean(dim=0) for c in labels.unique().tolist()])
    return centred.mT @ centred / len(centred)
