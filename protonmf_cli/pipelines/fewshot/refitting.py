"""Class weights that L1 left, fitted again without its pull (the relaxed lasso).

L1 does two things at once: it sets weights to zero, and it makes the others small. A norm strong enough to leave the
fewest connections makes the classes' probabilities far too even: 0.5 for answers of which 98 % are right.

Reference: Meinshausen, "Relaxed Lasso" (2007).
"""

from dataclasses import replace

import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from protonmf_cli.maths.soft_prototypes import SoftPrototypes, matches


def refitted(model: SoftPrototypes, rows: Tensor, labels: Tensor, alpha: float) -> SoftPrototypes:
    """The same prototypes and connections, with the weights that lower cross-entropy + alpha / 2 |W|^2 the most.

    Args:
        model: weights that are zero stay zero.
        rows: (N, D) float64.
        labels: (N,)
        alpha: weight of the L2 norm, > 0.
    """
    kept = model.weights != 0
    if not bool(kept.any()):
        return model
    matched = matches(rows, model.prototypes, model.scale)
    truth = functional.one_hot(labels, len(kept)).to(matched)

    def filled(values: "object") -> Tensor:
        weights = torch.zeros_like(model.weights)
        weights[kept] = torch.as_tensor(values)
        return weights

    def cost(values: "object") -> tuple[float, "object"]:
        weights = filled(values)
        logits = matched @ weights.mT
        value = functional.cross_entropy(logits, labels) + alpha / 2 * weights.square().sum()
        slope = (logits.softmax(dim=1) - truth).mT @ matched / len(rows) + alpha * weights
        return float(value), slope[kept].numpy()

    options = {"maxiter": 1000, "maxcor": 20, "gtol": 1e-9, "ftol": 1e-15}
    found = minimize(cost, model.weights[kept].numpy(), jac=True, method="L-BFGS-B", options=options)
    return replace(model, weights=filled(found.x))
