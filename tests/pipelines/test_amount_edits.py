"""Edits take one part away and nothing else: in one class, everywhere, and with rows that have no place."""

from dataclasses import replace

import pytest
import torch
from test_reconstruction import problem, reconstructed, sums_of

from protonmf_cli.errors import InputError
from protonmf_cli.maths.amounts import dual
from protonmf_cli.models.backbone import ClassName, Preprocessing, Source
from protonmf_cli.models.card import Card, DataFacts, ReadoutFacts
from protonmf_cli.models.card.stored import Facts
from protonmf_cli.models.evidence import Projections
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import logit_parts, pooled_rows
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.conversion.assembly import _no_examples
from protonmf_cli.pipelines.conversion.reconstruction import with_wholes
from protonmf_cli.pipelines.explaining.contrast import contrast_of
from protonmf_cli.pipelines.explaining.explanation import Answer
from protonmf_cli.pipelines.explaining.intervention import (
    apply_edits,
    check_different,
    find_edit,
    find_edit_everywhere,
    silent_classes,
)

PLACES = 2


def model_of(*, unplaced=True, ridge=0.0, near=2, wholes=False, **size):
    vectors, bases, parts = problem(unplaced=unplaced, **size)
    bases = with_wholes(bases, sums_of(parts).projected) if wholes else bases
    bias = torch.arange(len(vectors), dtype=torch.float64)
    heads = reconstructed(vectors, bias, bases, parts, ConversionOptions(prototypes=2, near=near, ridge=ridge))
    card = Card(
        method="protonmf", similarity="dual", pooling="sum",
        readout=ReadoutFacts.read({"grid": [1, PLACES], "rows_per_image": PLACES + 1, "width": vectors.shape[1]}),
        source=Source(name="toy", architecture="toy"),
        preprocessing=Preprocessing(
            input_size=(3, 8, 8), interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=(0.0,), std=(1.0,)
        ),
        classes=tuple(ClassName(label=f"class {c}") for c in range(len(vectors))),
        options=None, seed=0, versions={}, data=DataFacts(), measured=Facts(),
    )  # fmt: skip
    model = PrototypeModel(
        prototypes=heads.prototypes, owner=bases.owner, weights=heads.weights, residual=heads.residual.float(),
        bias=bias.float(), intercept=torch.zeros(len(vectors)), examples=_no_examples(), card=card,
        evidence=heads.amounts,
    )  # fmt: skip
    return model.exact, vectors, parts


def some_rows(width=16, images=6, seed=5):
    return torch.randn(images, PLACES + 1, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(model, rows):
    return logit_parts(model, pooled_rows(rows, model.placed)).logits


def row_of(model, prototype):
    """An image that is one prototype, with rows without a place as they are on average."""
    part = model.prototypes[prototype]
    rows = torch.stack([0.75 * part, 0.25 * part, model.amounts.unplaced_mean])
    return rows[None]


def contributions(model, c, rows):
    readers = model.readers(c)
    return model.weights.value[model.entries(c)] * (readers @ rows[0, : model.placed].sum(dim=0))


def test_logits_are_the_head_s_own():
    model, vectors, _ = model_of()
    rows = some_rows()
    assert torch.allclose(logits(model, rows), rows.sum(dim=1) @ vectors.T + model.bias, atol=1e-5)
    assert torch.allclose(model.head_vectors(), vectors, atol=1e-6)


def test_an_edit_takes_its_own_contribution_and_no_other_row_changes():
    model, _, _ = model_of()
    for class_index in (0, 3):
        edit = find_edit(model, class_index, class_index, 2, 0.0)
        edited = apply_edits(model, [edit])
        rows = row_of(model, model.own(1)[0])
        before, after = contributions(model, class_index, rows), contributions(edited, class_index, rows)
        place = [int(model.weights.prototype[e]) for e in model.entries(class_index)].index(edit.prototype_id)
        assert after[place] == 0
        assert torch.equal(after[torch.arange(len(after)) != place], before[torch.arange(len(before)) != place])
        lost = logits(model, rows) - logits(edited, rows)
        assert float(lost[0, class_index]) == pytest.approx(float(before[place]), abs=1e-5)
        others = torch.arange(len(model.bias)) != class_index
        assert not lost[0, others].any()


def test_a_row_that_is_another_prototype_keeps_its_score():
    model, _, _ = model_of()
    edited = apply_edits(model, [find_edit(model, 0, 0, 1, 0.0)])
    kept, gone = row_of(model, model.own(0)[1]), row_of(model, model.own(0)[0])
    assert torch.allclose(logits(edited, kept), logits(model, kept), atol=1e-4)
    nothing = row_of(model, model.own(0)[0]) * torch.tensor([0.0, 0.0, 1.0])[None, :, None]
    assert float(logits(edited, gone)[0, 0]) == pytest.approx(float(logits(edited, nothing)[0, 0]), abs=1e-4)


@pytest.mark.parametrize(("ridge", "wholes"), [(0.0, False), (0.1, False), (0.0, True), (0.1, True)])
def test_everywhere_no_class_gives_anything_for_a_row_that_is_the_prototype(ridge, wholes):
    model, vectors, _ = model_of(ridge=ridge, wholes=wholes)
    prototype = model.own(2)[0]
    part, reader = model.prototypes[prototype], model.amounts.edit_readers[prototype]
    edit = find_edit_everywhere(model, 2, 1, 0.0)
    edited = apply_edits(model, [edit])
    expected = vectors - torch.outer(vectors @ part, reader / (reader @ part))
    assert torch.allclose(edited.head_vectors(), expected, atol=1e-6)
    assert torch.allclose(edited.head_vectors() @ part, torch.zeros(5).double(), atol=1e-5)
    half = apply_edits(model, [replace(edit, factor=0.5)])
    assert torch.allclose(half.head_vectors(), (expected + vectors) / 2, atol=1e-6)
    used = model.weights.prototype == prototype
    assert not edited.weights.value[used].any()
    for c in range(5):
        entries = model.entries(c)
        basis = model.prototypes[model.weights.prototype[entries]]
        assert torch.allclose(
            edited.weights.value[entries], expected[c] @ basis.T * dual(basis, ridge).carried, atol=1e-5
        )
        if not ridge:
            assert float((edited.residual[c] @ basis.T).abs().max()) < 1e-4  # nothing that a row shows is taken back


@pytest.mark.parametrize("taken", [1, 0])
def test_a_whole_and_its_parts_follow_each_other_out_of_every_class(taken):
    model, _, _ = model_of(wholes=True)
    edited = apply_edits(model, [find_edit_everywhere(model, 2, taken, 0.0)])
    (whole,) = (j for j in range(len(model.owner)) if model.wholes[j] and model.owner[j] == 2)
    for row in (whole, *model.own(2)):
        changed = edited.weights.value != model.weights.value
        assert changed[model.weights.prototype == row].all()
    rows = row_of(model, model.own(2)[0])
    for c in range(5):
        made, entries = contributions(edited, c, rows).sum(), edited.entries(c)
        readers = edited.readers(c)
        basis = edited.prototypes[edited.weights.prototype[entries]]
        exact = edited.head_vectors()[c] @ basis.T @ (readers @ rows[0, : model.placed].sum(dim=0))
        assert float(made) == pytest.approx(float(exact), abs=1e-4)


def test_an_edit_of_every_class_reads_the_part_along_directions_in_which_images_vary():
    """In a plane where images vary along one axis only, what is read is read along that axis."""
    vectors, bases, parts = problem()
    axis = torch.nn.functional.normalize(torch.rand(16, generator=torch.Generator().manual_seed(9)), dim=0)
    for c in range(5):
        spread = torch.randn(30, 1, generator=torch.Generator().manual_seed(c))
        parts[c].pooled = (bases.prototypes[2 * c : 2 * c + 2].sum(dim=0) + spread * axis)[:, None]
    bias = torch.zeros(5, dtype=torch.float64)
    heads = reconstructed(vectors, bias, bases, parts, ConversionOptions(prototypes=2, near=2, ridge=0.0))
    readers = heads.amounts.edit_readers
    assert torch.allclose((readers * heads.prototypes).sum(dim=1), torch.ones(10), atol=1e-4)
    cosine = (torch.nn.functional.normalize(readers, dim=1) @ axis).abs()
    for c in range(5):
        used = heads.weights.prototype[heads.weights.class_index == c]
        plain = dual(heads.prototypes[used], 0.0).readers[:2].float()
        agree = (plain @ axis) * (heads.prototypes[2 * c : 2 * c + 2] @ axis) > 0  # else the axis tells nothing of it
        assert (cosine[2 * c : 2 * c + 2][agree] > 0.999).all()
    assert (cosine > 0.999).sum() >= 5


def test_without_any_variation_an_edit_of_every_class_is_the_dual_s():
    vectors, bases, parts = problem(images=1, width=64)
    heads = reconstructed(
        vectors, torch.zeros(5).double(), bases, parts, ConversionOptions(prototypes=2, near=2, ridge=0.0)
    )
    assert torch.allclose(heads.amounts.edit_readers @ heads.prototypes.T, torch.eye(10), atol=1e-3)


def test_what_rows_without_a_place_add_on_average_stays():
    model, _, _ = model_of()
    for edit in (find_edit(model, 1, 1, 1, 0.0), find_edit_everywhere(model, 1, 1, 0.0)):
        edited = apply_edits(model, [edit])
        empty = torch.zeros(1, PLACES + 1, 16, dtype=torch.float64)
        empty[0, -1] = model.amounts.unplaced_mean
        assert torch.allclose(logits(edited, empty), logits(model, empty), atol=1e-5)
        assert torch.allclose(
            logit_parts(edited, pooled_rows(empty, PLACES)).bias, logit_parts(model, pooled_rows(empty, PLACES)).bias
        )


def test_an_edit_and_its_inverse_give_the_same_model():
    model, _, _ = model_of()
    rows = some_rows()
    for edit in (find_edit(model, 1, 1, 1, 0.5), find_edit_everywhere(model, 1, 1, 0.5)):
        once = apply_edits(model, [edit])
        assert not torch.allclose(logits(once, rows), logits(model, rows), atol=1e-3)
        twice = apply_edits(once, [replace(edit, factor=2.0)])
        assert torch.allclose(logits(twice, rows), logits(model, rows), atol=1e-5)


def test_several_edits_are_each_for_their_own_class():
    model, _, _ = model_of()
    rows = some_rows()
    edits = [find_edit(model, 0, 0, 1, 0.0), find_edit(model, 3, 3, 2, 0.5)]
    both = logits(apply_edits(model, edits), rows)
    for edit in edits:
        alone = logits(apply_edits(model, [edit]), rows)
        assert torch.allclose(both[:, edit.class_index], alone[:, edit.class_index])
    assert torch.equal(both[:, [1, 2, 4]], logits(model, rows)[:, [1, 2, 4]])


def test_edits_that_make_no_sense_are_refused():
    model, _, _ = model_of(near=1)
    strange = next(
        c for c in range(1, 5) if c not in {int(model.owner[model.weights.prototype[e]]) for e in model.entries(0)}
    )
    with pytest.raises(InputError, match=f"class class 0 does not use prototype 1 of class {strange}.*everywhere"):
        find_edit(model, 0, strange, 1, 0.0)
    with pytest.raises(InputError, match="class 0 has no prototype 3; it has 1 to 2"):
        find_edit_everywhere(model, 0, 3, 0.0)
    gone = apply_edits(model, [find_edit(model, 0, 0, 1, 0.0)])
    with pytest.raises(InputError, match="has the weight 0 in class class 0: there is nothing left to edit"):
        find_edit(gone, 0, 0, 1, 0.5)
    nowhere = apply_edits(model, [find_edit_everywhere(model, 0, 1, 0.0)])
    with pytest.raises(InputError, match="no class has a weight for prototype 1 of class 0"):
        find_edit_everywhere(nowhere, 0, 1, 0.0)
    once, everywhere = find_edit(model, 0, 0, 1, 0.0), find_edit_everywhere(model, 0, 1, 0.0)
    for edits in ([once, once], [once, everywhere], [everywhere, everywhere]):
        with pytest.raises(InputError, match="prototype 1 of class 0 is edited twice"):
            check_different(model, edits)
    check_different(model, [once, find_edit(model, 0, 0, 2, 0.0)])
    with pytest.raises(InputError, match="everywhere needs a model that reads amounts"):
        find_edit_everywhere(replace(model, evidence=Projections()), 0, 1, 0.0)


def test_a_class_that_nothing_of_its_own_speaks_for_is_named():
    model, _, _ = model_of()
    one, two = (find_edit(model, 0, 0, number, 0.0) for number in (1, 2))
    assert silent_classes(apply_edits(model, [one]), [one]) == []
    assert silent_classes(apply_edits(model, [one, two]), [one, two]) == [(0, 0.0)]


@pytest.mark.parametrize("wholes", [False, True])
def test_two_classes_differ_by_weights_alone_and_the_rows_add_up(wholes):
    model, vectors, _ = model_of(near=4 if wholes else 1, wholes=wholes)
    rows = some_rows()[:1]
    read = pooled_rows(rows, PLACES)
    parts = logit_parts(model, read)
    answer = Answer(
        crop=torch.empty(0), rows=rows[0].double(), read=read.double(), logits=parts.logits[0], response=None
    )
    found = contrast_of(model, answer, 0, 3)
    assert found.difference == pytest.approx(float(parts.logits[0, 0] - parts.logits[0, 3]), abs=1e-5)
    ids = {row.prototype_id for row in found.rows}
    connected = {int(model.weights.prototype[e]) for c in (0, 3) for e in model.entries(c)}
    # neither class beside its own parts once more as a whole
    assert ids == {j for j in connected if not model.wholes[j] or int(model.owner[j]) not in (0, 3)}
    for row in found.rows:
        assert row.weights == pytest.approx(
            [float(vectors[c] @ model.prototypes[row.prototype_id]) for c in (0, 3)], abs=1e-4
        )
    sizes = [abs(row.difference) for row in found.rows]
    assert sizes == sorted(sizes, reverse=True)
    turned = contrast_of(model, answer, 3, 0)
    assert turned.difference == pytest.approx(-found.difference)
    with pytest.raises(InputError, match="cannot be compared with itself"):
        contrast_of(model, answer, 0, 0)


def test_what_prototypes_carry_and_what_they_leave_each_have_the_bias():
    """Else neither of them could be compared with the logits of the network."""
    model, vectors, _ = model_of()
    rows = some_rows()
    parts = logit_parts(model, pooled_rows(rows, PLACES))
    made, read, rest = model.prototype_vectors, rows[:, :PLACES].sum(dim=1), rows[:, PLACES:].sum(dim=1)
    mean = model.amounts.unplaced_mean
    bias = model.bias + vectors @ mean
    assert bias.abs().min() > 1
    assert torch.allclose(parts.carried, read @ made.mT + bias, atol=1e-5)
    assert torch.allclose(parts.left, read @ (vectors - made).mT + (rest - mean) @ vectors.mT + bias, atol=1e-5)


def test_amounts_read_the_rows_with_a_place_alone():
    model, _, _ = model_of()
    rows = some_rows()[:1]
    moved = rows.clone()
    moved[0, -1] += 1
    before, after = (logit_parts(model, pooled_rows(each, PLACES)) for each in (rows, moved))
    assert torch.equal(before.prototypes, after.prototypes)
    assert torch.equal(before.residual, after.residual)
    assert not torch.allclose(before.unplaced, after.unplaced)


def test_several_edits_at_once_are_those_edits_one_after_the_other():
    model, vectors, _ = model_of()
    single = find_edit(model, 3, 3, 1, 0.25)
    everywhere = [find_edit_everywhere(model, c, number, factor) for c, number, factor in ((0, 1, 0.0), (2, 2, 0.5))]
    together, alone = apply_edits(model, [*everywhere, single]), model
    for edit in (single, *everywhere):
        alone = apply_edits(alone, [edit])
    for name in ("residual", "bias"):
        assert torch.allclose(getattr(together, name), getattr(alone, name), atol=1e-6)
    assert torch.allclose(together.weights.value, alone.weights.value)
    assert torch.allclose(together.head_vectors(), alone.head_vectors(), atol=1e-6)
    assert float((together.head_vectors() - vectors).abs().max()) > 0.1
    assert torch.allclose(model.head_vectors(), vectors, atol=1e-6)
