from dataclasses import replace

import pytest
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.store import load_model
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.card import Card, RefitFacts
from protonmf_cli.models.class_names import find_class, nearest_names
from protonmf_cli.models.response import logit_parts, parts_of_class, parts_of_rows, pooled_rows

CLASSES = (
    ClassName(label="n01704323", description="triceratops"),
    ClassName(label="n02007558", description="flamingo"),
    ClassName(label="n02012849", description="crane"),
    ClassName(label="n03126707", description="crane"),
    ClassName(label="n04147183", description="schooner, tall ship"),
    ClassName(label="n03452741_grand_piano", description="grand piano, grand"),
)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("n02007558", 1),
        ("Flamingo", 1),
        ("n02007558_flamingo", 1),
        ("n02007558_whatever", 1),
        ("1", 1),
        ("tall ship", 4),
        ("tall_ship", 4),
        ("n04147183_schooner", 4),
        ("n03452741_grand_piano", 5),
        ("grand_piano", 5),
        ("n03452741", 5),
        ("grand", 5),
    ],
)
def test_a_class_has_many_names(words, index):
    assert find_class(CLASSES, words) == index


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("crane", r"several classes are called 'crane': 2 \(n02012849\), 3 \(n03126707\)"),
        ("flamingoo", "no class of the model is called 'flamingoo'.*Did you mean flamingo"),
        ("99", "no class of the model is called '99'"),
        ("", "no class of the model is called ''"),
        ("n020075581", "no class of the model"),
    ],
)
def test_what_is_not_a_class(words, sentence):
    with pytest.raises(InputError, match=sentence):
        find_class(CLASSES, words)


ANIMALS = tuple(
    ClassName(label=label, description=description)
    for label, description in (
        ("n02123045", "tabby, tabby cat"), ("n02123159", "tiger cat"), ("n03125729", "cradle"), ("n03127925", "crate"),
        ("n09428293", "seashore, coast, seacoast"), ("n04517823", "vacuum"), ("n04493381", "tub, vat"),
        ("n02099601", "golden retriever"),
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("cat", " Did you mean tabby cat or tiger cat?"),
        ("Cats", " Did you mean tabby cat or tiger cat?"),
        ("golden", " Did you mean golden retriever?"),
        ("retriver", " Did you mean golden retriever?"),
        ("cradel", " Did you mean cradle or crate?"),
        ("dog", ""),
        ("", ""),
    ],
)
def test_names_that_hold_the_words_come_before_names_that_are_spelt_alike(words, sentence):
    assert nearest_names(ANIMALS, words) == sentence


def amounts_by_least_squares(prototypes, row, ridge):
    """Codes of a row on unit prototypes, those of a pure prototype set to its own length."""
    unit = torch.nn.functional.normalize(prototypes.double(), dim=1)
    design = torch.cat([unit.mT, max(ridge, 1e-6) ** 0.5 * torch.eye(len(unit), dtype=torch.float64)])
    wanted = torch.cat([row.double()[None], prototypes.double()]).mT
    fitted = torch.linalg.lstsq(design, torch.cat([wanted, wanted.new_zeros(len(unit), wanted.shape[1])])).solution
    return fitted[:, 0] / fitted[:, 1:].diagonal()


@pytest.mark.parametrize("kind", ["converted", "paper"])
def test_logits_are_the_sum_written_out(request, kind):
    model, _ = load_model(request.getfixturevalue(kind))
    rows = torch.randn(3, 16, model.prototypes.shape[1], generator=torch.Generator().manual_seed(0))
    parts = parts_of_rows(model, rows)
    for b in range(3):
        for c in range(len(model.bias)):
            logit = float(model.bias[c])
            entries = model.entries(c)
            basis = model.prototypes[model.weights.prototype[entries]].double()
            for n in range(16):
                row = rows[b, n].double()
                evidence = basis @ row if kind == "paper" else amounts_by_least_squares(basis, row, model.amounts.ridge)
                logit += float(row @ model.residual[c].double())
                logit += sum(float(model.weights.value[e]) * float(s) for e, s in zip(entries, evidence, strict=True))
            assert float(parts.logits[b, c]) == pytest.approx(logit, abs=1e-3)
    pooled = pooled_rows(rows, model.placed)
    assert pooled.shape == (3, 1, model.prototypes.shape[1])
    assert torch.equal(logit_parts(model, pooled).logits, parts.logits)
    assert not parts.unplaced.any()


@pytest.mark.parametrize("kind", ["converted", "paper"])
def test_prototypes_rebuild_the_head(request, kind):
    """w D + R = V, to rounding: the identity everything stands on."""
    from protonmf_cli.files.networks.backbones import restore_backbone

    model, weights = load_model(request.getfixturevalue(kind))
    vectors = restore_backbone(model, weights, True).readout.vectors
    rebuilt = model.prototype_vectors + model.residual
    assert torch.allclose(rebuilt, vectors, atol=1e-5 * float(vectors.abs().max()))
    assert torch.allclose(model.head_vectors().float(), vectors, atol=1e-5 * float(vectors.abs().max()))
    if kind == "paper":
        assert model.amounts is None
        assert torch.allclose(model.prototype_vectors, model.dense_weights.T @ model.prototypes, atol=1e-6)
        assert torch.allclose(model.prototypes.norm(dim=1), torch.ones(len(model.prototypes)), atol=1e-5)
    else:
        assert torch.allclose(model.amounts.usual[:, 1], torch.ones(len(model.prototypes)))


def test_readers_are_dual_to_the_prototypes_of_a_class(converted):
    model = load_model(converted)[0].exact
    assert model.amounts.ridge == 0
    for c in range(len(model.bias)):
        basis, readers = model.basis(c), model.readers(c)
        count = len(model.entries(c))
        assert count == 3  # two of its own, and the nearest class as a whole
        assert torch.allclose(readers @ basis.mT, torch.eye(count, dtype=torch.float64), atol=1e-4)
        assert torch.allclose(model.mixing(c) @ (basis @ basis.mT), readers @ basis.mT)
        # and they lie in the span of those prototypes alone
        assert torch.linalg.matrix_rank(torch.cat([basis, readers]), rtol=1e-4) == count


def test_rows_are_pooled_by_whether_they_have_a_place():
    rows = torch.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    assert torch.equal(pooled_rows(rows, None), rows.sum(dim=1, keepdim=True))
    assert torch.equal(pooled_rows(rows, 3), rows.sum(dim=1, keepdim=True))
    assert torch.equal(pooled_rows(rows, 2), torch.stack([rows[:, 0] + rows[:, 1], rows[:, 2]], dim=1))


def test_numbers_start_at_one_within_the_owner(converted):
    model, _ = load_model(converted)
    assert [model.number(j) for j in range(len(model.prototypes))] == [1, 2] * 4 + [0] * 4  # 0: as a whole
    assert model.own(2) == [4, 5] and model.whole(2) == 10
    assert model.wholes.tolist() == [False] * 8 + [True] * 4


def test_card_survives_json(converted):
    card = load_model(converted)[0].card
    assert Card.from_json(card.as_json()) == card


@pytest.mark.parametrize("kind", ["converted", "paper", "vit"])
def test_one_class_is_read_as_all_of_them_are(request, kind):
    model, _ = load_model(request.getfixturevalue(kind))
    exact, head = model.exact, model.head_vectors()
    pooled = torch.randn(
        3, 2 if kind == "vit" else 1, model.prototypes.shape[1], generator=torch.Generator().manual_seed(1)
    ).double()
    parts = logit_parts(exact, pooled)
    for c in range(len(model.bias)):
        one = model.class_head(c)
        assert one.entries == model.entries(c)
        assert torch.equal(one.readers, exact.readers(c)) and torch.equal(one.augmented, exact.augmented(c))
        assert torch.allclose(one.vector, head[c], atol=1e-12)
        found = parts_of_class(model, one, pooled)
        for name in ("prototypes", "residual", "unplaced"):
            assert torch.allclose(getattr(found, name)[:, 0], getattr(parts, name)[:, c])
        assert float(found.bias) == pytest.approx(float(parts.bias[c]))
    assert torch.allclose(head, exact.prototype_vectors + exact.residual, atol=1e-12)
    assert torch.allclose(model.mean_residual, exact.residual[model.active_classes].mean(dim=0))


def test_prototypes_of_a_class_and_their_examples_are_found_wherever_classes_lack_some(converted):
    model, _ = load_model(converted)
    owner = torch.tensor([-1, 1, 1, 1, 4, 4, 6, 7])
    order = torch.randperm(len(model.examples.prototype), generator=torch.Generator().manual_seed(0))
    weights = replace(
        model.weights, class_index=owner, prototype=torch.arange(8), value=torch.ones(8), residual_share=torch.zeros(8)
    )
    held = replace(
        model, owner=owner, weights=weights, examples=replace(model.examples, prototype=model.examples.prototype[order])
    )
    for c in range(-1, 9):
        assert held.own(c) == (owner == c).nonzero()[:, 0].tolist()
    assert [held.number(j) for j in range(8)] == [1, 1, 2, 3, 1, 2, 1, 1]
    assert held.active_classes.tolist() == [1, 4, 6, 7]
    for j in range(9):
        assert held.examples.of(j) == (held.examples.prototype == j).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("edits", "refits", "classes"),
    [
        ((), (), []),
        (({"class_index": 3}, {"class_index": 1}, {"class_index": 3}), (), [1, 3]),
        (({"class_index": 3}, {"class_index": -1}), (), None),
        (({"class_index": 3},), (RefitFacts(),), None),
        (({"by": "another version"},), (), None),
    ],
)
def test_which_classes_were_edited(converted, edits, refits, classes):
    model, _ = load_model(converted)
    assert replace(model, card=replace(model.card, edits=edits, refits=refits)).edited_classes == classes


def test_projections_are_of_all_rows_also_where_those_without_a_place_are_pooled_apart(paper):
    model, _ = load_model(paper)
    pooled = torch.randn(3, 2, model.prototypes.shape[1], generator=torch.Generator().manual_seed(1)).double()
    whole = pooled.sum(dim=1, keepdim=True)
    assert torch.equal(logit_parts(model.exact, pooled).logits, logit_parts(model.exact, whole).logits)
