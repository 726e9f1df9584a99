"""What a report shows of an audit: which prototypes with pictures, and what was pasted of these."""

from collections.abc import Sequence

import numpy as np
import torch

from protonmf_cli.models.audit import Audit
from protonmf_cli.models.page import AuditPart, Gallery
from protonmf_cli.pipelines.explaining.pasting import strongest_region

PICTURED = 24
"""Prototypes shown with pictures, the most suspicious first; and every one that looks like a shortcut."""


def audit_part(audit: Audit, data: Sequence[str], gallery: Gallery) -> AuditPart:
    """An audit as a report shows it.

    Args:
        audit: of the model.
        data: words of a command that name the images of the audit.
        gallery: with the training patches of the prototypes.
    """
    chosen = [c for rank, c in enumerate(audit.candidates) if rank < PICTURED or c.is_shortcut]
    views = {c.prototype_id: gallery.prototypes[c.prototype_id].examples for c in chosen}
    return AuditPart(
        audit=audit,
        data=tuple(data),
        regions={j: tuple(places_of(view.map) for view in found) for j, found in views.items()},
    )


def places_of(grid: np.ndarray | None) -> tuple[int, ...]:
    """Places of a map (h, w) that are pasted, numbered row by row.

    >>> places_of(np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]]))
    (3,)
    """
    if grid is None:
        return ()
    places = strongest_region(torch.from_numpy(grid), (grid.shape[0], grid.shape[1]))
    return tuple(places.flatten().nonzero()[:, 0].tolist())
