import pytest
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.store import load_model
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.prototype import Card, find_class, logit_parts, respond

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


def test_respond_is_the_sum_written_out(converted):
    model, _ = load_model(converted)
    rows = torch.randn(3, 16, model.prototypes.shape[1], generator=torch.Generator().manual_seed(0))
    found = respond(model, rows)
    for b in range(3):
        for c in range(len(model.bias)):
            logit = float(model.bias[c] + model.intercept[c] - model.intercept[c])
            for n in range(16):
                logit += float(rows[b, n].double() @ model.residual[c].double())
                for entry in model.entries(c):
                    prototype = model.prototypes[model.weights.prototype[entry]].double()
                    logit += float(model.weights.value[entry]) * float(rows[b, n].double() @ prototype)
            assert float(found.logits[b, c]) == pytest.approx(logit, abs=1e-3)
    assert torch.allclose(found.maps.sum(dim=1), found.evidence, atol=1e-4)
    parts = logit_parts(model, rows.sum(dim=1))
    assert torch.equal(parts.logits, found.logits)


def test_prototypes_rebuild_the_head(converted):
    """a B + R = V, to rounding: the identity everything stands on."""
    from protonmf_cli.files.backbones import restore_backbone

    model, weights = load_model(converted)
    vectors = restore_backbone(model, weights, True).readout.vectors
    rebuilt = model.dense_weights.T @ model.prototypes + model.residual
    assert torch.allclose(rebuilt, vectors, atol=1e-5 * float(vectors.abs().max()))
    assert torch.allclose(model.prototypes.norm(dim=1), torch.ones(len(model.prototypes)), atol=1e-5)


def test_numbers_start_at_one_within_the_owner(converted):
    model, _ = load_model(converted)
    assert [model.number(j) for j in range(len(model.prototypes))] == [1, 2] * 4
    assert model.own(2) == [4, 5]


def test_card_survives_json(converted):
    card = load_model(converted)[0].card
    assert Card.from_json(card.as_json()) == card
