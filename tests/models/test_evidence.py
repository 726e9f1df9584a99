"""How a model makes evidence: what a card says of it, and what texts and pictures make of it."""

import numpy as np
import pytest

from protonmf_cli.models.evidence import Amounts, NearestPatch, Projections, SoftMatch
from protonmf_cli.models.evidence_kind import EvidenceKind

OF = {
    EvidenceKind.PROJECTIONS: (Projections, "sum", "dot"),
    EvidenceKind.AMOUNTS: (Amounts, "sum", "dual"),
    EvidenceKind.SIMILARITIES: (NearestPatch, "max", "log"),
    EvidenceKind.MATCHES: (SoftMatch, "soft", "soft"),
}


@pytest.mark.parametrize("kind", EvidenceKind)
def test_each_kind_is_what_its_card_says(kind):
    evidence, pooling, similarity = OF[kind]
    assert evidence.kind is kind
    assert EvidenceKind.of_card(pooling, similarity) is kind
    assert kind.pooling == pooling
    assert kind.adds_up == (pooling == "sum") == (not kind.said)


def test_a_card_of_no_kind_is_refused():
    with pytest.raises(ValueError, match="pooling is 'mean'"):
        EvidenceKind.of_card("mean", "dot")


@pytest.mark.parametrize("kind", EvidenceKind)
def test_only_similarities_are_drawn_from_their_least_value(kind):
    grid = np.array([[1.0, 3.0]])
    wanted = [[0.0, 2.0]] if kind is EvidenceKind.SIMILARITIES else [[1.0, 3.0]]
    assert kind.drawn(grid).tolist() == wanted
