"""Names of prototypes as JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from protonmf_cli.errors import printable

if TYPE_CHECKING:
    from protonmf_cli.jobs.naming import Naming
    from protonmf_cli.models.card.names import NameFacts
    from protonmf_cli.pipelines.naming import Fit


def naming_json(naming: "Naming") -> dict[str, Any]:
    """`protonmf.names/1`: the best word of every prototype, and which of them are names."""
    return {
        "schema": "protonmf.names/1",
        "model": printable(str(naming.file)),
        "output": None if naming.path is None else printable(str(naming.path)),
        "dropped": naming.dropped,
        "source": None if naming.facts is None else source_json(naming.facts),
        "prototypes": [_fit_json(naming, fit) for fit in naming.fits],
    }


def source_json(facts: "NameFacts") -> dict[str, Any]:
    """Where names are from."""
    return {
        "tower": facts.tower,
        "weights_sha256": facts.weights,
        "template": facts.template,
        "vocabulary_sha256": facts.vocabulary,
        "words": facts.words,
        "min_margin": facts.min_margin,
        "named": len(facts.prototypes),
    }


def _fit_json(naming: "Naming", fit: "Fit") -> dict[str, Any]:
    model, near = naming.model, fit.nearest
    owner = int(model.owner[fit.prototype_id])
    return {
        "prototype": model.number(fit.prototype_id),
        "prototype_id": fit.prototype_id,
        "owner_index": owner,
        "owner_label": model.card.classes[owner].label,
        "name": near.word if fit.named and near is not None else None,
        "nearest": None if near is None else asdict(near),
    }
