"""What a report shows of an audit: which prototypes with pictures, and what was pasted of these."""

from collections.abc import Sequence

import numpy as np

from protonmf_cli.models.audit import Audit
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.page import AuditPart, Gallery
from protonmf_cli.pipelines.explaining.pasting import pasted_places


def audit_part(audit: Audit, data: Sequence[str], gallery: Gallery, kind: EvidenceKind) -> AuditPart:
    """An audit as a report shows it.

    Args:
        audit: of the model.
        data: words of a command that name the images of the audit.
        gallery: with the training patches of the prototypes.
        kind: of the model's evidence.
    """
    known = {each.prototype_id: each.examples for each in gallery.prototypes}
    views = {c.prototype_id: known[c.prototype_id] for c in audit.pictured}
    return AuditPart(
        audit=audit,
        data=tuple(data),
        regions={j: tuple(places_of(kind, view.map) for view in found) for j, found in views.items()},
    )


def places_of(kind: EvidenceKind, grid: np.ndarray | None) -> tuple[int, ...]:
    """Places of a map (h, w) that are pasted, numbered row by row.

    >>> places_of(EvidenceKind.AMOUNTS, np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]]))
    (3,)
    """
    if grid is None:
        return ()
    return tuple(pasted_places(kind, grid).flatten().nonzero()[:, 0].tolist())
