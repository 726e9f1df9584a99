"""Tables counted by hand on a toy and on made images."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import protonmf_cli
from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.jobs.stored_options import options_of
from protonmf_cli.maths.curves import area_under, masks_by_rank
from protonmf_cli.models.backbone import Backbone, ClassName, Source
from protonmf_cli.models.evidence import Amounts, NearestPatch, Projections
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.prototype import PrototypeModel, SparseWeights
from protonmf_cli.models.readouts.readout import Reading, Readout
from protonmf_cli.models.response import logit_parts
from protonmf_cli.models.results import KeptImages
from protonmf_cli.options import ConversionOptions, NmfOptions
from protonmf_cli.pipelines.conversion.classes import ConversionImages, read_classes
from protonmf_cli.pipelines.conversion.residual_shares import augmentation_table
from protonmf_cli.pipelines.explaining.intervention import apply_edits, find_edit
from protonmf_cli.pipelines.measuring.evaluation import evaluate_model
from protonmf_cli.pipelines.measuring.faithfulness import OURS, RANDOM, faithfulness_tables, feature_layer
from protonmf_cli.pipelines.measuring.oracle import oracle_table
from protonmf_cli.pipelines.measuring.part_quality import consistency, part_quality_table
from protonmf_cli.pipelines.measuring.parts import (
    CONTROLS,
    cancellation_table,
    control_models,
    finished_by_count,
    models_of,
    parts_table,
)
from protonmf_cli.pipelines.measuring.picture_sheets import SHEETS, gallery_panels
from protonmf_cli.pipelines.measuring.rival import Rival, check_rival, rival_table
from protonmf_cli.pipelines.measuring.stability import stability_tables
from toys import PREPROCESSING


@pytest.fixture(scope="module")
def loaded(converted):
    return protonmf_cli.load(converted)


@pytest.fixture(scope="module")
def images(loaded, toy):
    return find_images(toy.data, "val", loaded.model.card.classes, ClassMapping())


@pytest.fixture(scope="module")
def kept(loaded, images):
    found = KeptImages()
    batches = loaded.reader.batches(images.of(images.files))
    evaluate_model(loaded.backbone, loaded.model, batches, images.files, keep=found)
    return found


@pytest.fixture(scope="module")
def projections(paper):
    return protonmf_cli.load(paper)


@pytest.fixture(scope="module")
def readings(loaded, toy):
    found = find_images(toy.data, "train", loaded.model.card.classes, ClassMapping())
    source = ConversionImages(
        counts=found.counts,
        open=lambda some: loaded.reader.batches_of(found.files[c] for c in some),
        encode=lambda _: b"",
    )
    return list(read_classes(loaded.backbone, source, found.counts, options=ConversionOptions()))


def with_other_rows(model, kept):
    """Made images of which a part has no place, near the borders of the classes."""
    generator = torch.Generator().manual_seed(0)
    real = torch.cat(kept.read)
    read = real.mean(dim=0) / 2 + real.std(dim=0) * torch.randn(300, 2, real.shape[2], generator=generator)
    amounts = replace(model.amounts, unplaced_mean=read[:, 1].mean(dim=0))
    made = KeptImages(read=[read], target=[torch.randint(0, 4, (300,), generator=generator)])
    return replace(model, evidence=amounts), made


@pytest.mark.parametrize("rule", ["coefficient", "contribution"])
@pytest.mark.parametrize("kind", ["amounts", "rows without a place", "paper"])
def test_the_oracle_is_an_edit_in_every_wrong_prediction(loaded, projections, kept, kind, rule):
    whole, images = (projections.model if kind == "paper" else loaded.model), kept
    if kind == "rows without a place":
        whole, images = with_other_rows(whole, kept)
    model = whole.exact
    row = {r["rule"]: r for r in oracle_table(whole, images, 0).rows if r["scope"] == "all classes"}
    pooled, target = torch.cat(images.read).double(), torch.cat(images.target)
    before = after = oracle = 0
    for x, y in zip(pooled, target.tolist(), strict=True):
        top = int(logit_parts(model, x[None]).logits.argmax())
        entries = model.entries(top)
        size = model.weights.value[entries]
        if rule == "contribution":
            size = size * (model.readers(top) @ x[0])
        j = int(model.weights.prototype[entries[int(size.argmax())]])
        edit = find_edit(model, top, int(model.owner[j]), model.number(j), 0.0)
        edited = int(logit_parts(apply_edits(model, [edit]), x[None]).logits.argmax())
        before += top == y
        after += edited == y
        oracle += top == y or edited == y
    count = len(target)
    found = row[rule]
    assert found["before"] == pytest.approx(before / count)
    assert found["everywhere"] == pytest.approx(after / count)
    assert found["oracle"] == pytest.approx(oracle / count)
    assert found["repaired"] == oracle - before
    assert found["before_interval"][0] <= found["before"] <= found["before_interval"][1]


def converted_with(loaded, readings, counts):
    options = options_of(loaded.model)
    return models_of(loaded.backbone, finished_by_count(loaded.backbone, readings, options, counts), options)


def test_the_sweep_gives_what_converting_gives(loaded, readings, kept):
    options = replace(options_of(loaded.model), seed=0)
    assert (options.prototypes, options.near) == (2, 1)
    finished = finished_by_count(loaded.backbone, readings, options, (1, 2))
    models = models_of(loaded.backbone, finished, options)
    controls = control_models(loaded.backbone, finished[2], options, 2)
    assert torch.allclose(models[2].prototypes, loaded.model.prototypes, rtol=2e-3, atol=2e-3)
    assert [len(models[n].parts) for n in (1, 2)] == [4, 8]
    for n in (1, 2):  # other numbers beside it change nothing
        alone = converted_with(loaded, readings, (n,))[n]
        assert torch.equal(models[n].prototypes, alone.prototypes)
    table = parts_table(models, controls, kept, 0)
    assert [row["named"] for row in table.rows] == ["1", "2", *CONTROLS.values()]
    pooled, target = torch.cat(kept.read), torch.cat(kept.target)
    for row, model in zip(table.rows, [*models.values(), *controls.values()], strict=True):
        parts = logit_parts(model, pooled)
        only = ((parts.prototypes + parts.bias).argmax(dim=1) == target).double().mean()
        assert row["prototypes_only"] == pytest.approx(float(only))
        assert row["augmented"] == row["black_box"]
    errors = [row["feature_relative_error"] for row in table.rows]
    assert errors[1] < errors[0]
    assert errors[2:] == [None] * 3
    accuracy = {row["black_box"] for row in table.rows}
    assert len(accuracy) == 1, "whatever the prototypes, the logits are the network's"


def test_controls_mean_less_than_prototypes(loaded, readings):
    """They are as many, of the same kind, and drawn from other images or from nothing."""
    options = options_of(loaded.model)
    finished = finished_by_count(loaded.backbone, readings, options, (2,))
    controls = control_models(loaded.backbone, finished[2], options, 2)
    for kind, model in controls.items():
        assert torch.equal(model.owner, loaded.model.owner)
        assert (model.prototypes >= 0).all()  # as all rows of this network
        cosine = torch.cosine_similarity(model.prototypes, loaded.model.prototypes, dim=1)
        assert float(cosine.min()) < 0.99, kind
    rows = torch.nn.functional.normalize(torch.cat([reading.rows.flatten(0, 1) for reading in readings]), dim=1)
    patches = torch.nn.functional.normalize(controls["patches"].prototypes[controls["patches"].parts], dim=1)
    assert torch.allclose((patches @ rows.mT).amax(dim=1), torch.ones(8), atol=1e-5)


def test_cancellation_is_counted_by_hand(loaded, kept):
    table = cancellation_table(loaded.model, kept, 0)
    rows = {row["images_are"]: row for row in table.rows}
    exact = loaded.model.exact
    sizes, own, negative = [], [], []
    for x in torch.cat(kept.read).double():
        top = int(logit_parts(exact, x[None]).logits.argmax())
        entries = exact.entries(top)
        parts = (exact.weights.value[entries] * (exact.readers(top) @ x[0])).tolist()
        sizes.append(sum(map(abs, parts)) / abs(sum(parts)))
        order = sorted(range(len(parts)), key=lambda k: -abs(parts[k]))
        own.append(int(exact.owner[exact.weights.prototype[entries[order[0]]]]) == top)
        negative.append(np.mean([parts[k] < 0 for k in order[:5]]))
    found = rows["all images"]
    assert found["images"] == len(sizes)
    assert found["median"] == pytest.approx(np.median(sizes))
    assert found["high"] == pytest.approx(np.quantile(sizes, 0.9))
    assert found["own"] == pytest.approx(np.mean(own))
    assert found["negative"] == pytest.approx(np.mean(negative))
    assert found["five"] == pytest.approx(1)  # there are only four
    assert sum(rows[name]["images"] for name in ("right", "wrong") if name in rows) == len(sizes)


def test_stability_of_two_seeds_and_two_halves(loaded, readings, kept):
    def tables(options):
        return stability_tables(loaded.backbone, loaded.model, readings, options, kept)

    table, explanations = tables(options_of(loaded.model))
    seeds, halves = table.rows
    assert seeds["median"] == pytest.approx(1, abs=1e-6)
    assert (seeds["prototypes"], halves["prototypes"]) == (8, 8)
    assert 0 < halves["low"] <= halves["median"] <= 1
    random, _ = tables(replace(options_of(loaded.model), nmf=replace(options_of(loaded.model).nmf, init="abs")))
    assert random.rows[0]["median"] < 1
    found = {row["figure"]: row for row in explanations.rows}
    assert len(found) == 6
    images = sum(len(target) for target in kept.target)
    assert found["largest row the same"]["count"] == found["5 largest rows, Jaccard"]["count"] == images
    for name, row in found.items():
        for value in (row["mean"], row["another"], row["random"]):
            assert value is None if "IoU" in name and value is None else -1 <= value <= 1
        assert (-1 if "Spearman" in name else 0) <= row["mean"] <= 1
        assert row["random"] <= row["mean"] + 1e-12, f"{name}: prototypes matched at random are more alike"
    alike = found["evidence of all rows, overlap (sum of the lesser / sum of the greater)"]
    assert alike["random"] < alike["another"] < alike["mean"]
    maps = next(row for name, row in found.items() if "IoU" in name)
    assert maps["count"] == 2 * (6 + 7 + 8 + 8)  # two prototypes, at most eight images of each class


def test_every_rule_of_augmentation_is_reported(loaded, readings):
    rows = {reading.class_index: reading.rows[:3] for reading in readings}
    table = augmentation_table(loaded.model, rows)
    assert [row["rule"] for row in table.rows] == ["min-norm", "paper"]
    assert all(row["largest_change"] >= row["change"] > 0 for row in table.rows)
    smallest = min(table.rows, key=lambda row: row["largest_change"])
    assert smallest["rule"] == "min-norm"


def test_masks_and_areas():
    masks = masks_by_rank(torch.tensor([[0.1, 0.9], [0.5, 0.5]]), 4)
    assert masks.sum(dim=(1, 2)).tolist() == [0, 1, 2, 3, 4]
    assert masks[1].tolist() == [[False, True], [False, False]]
    assert all(bool((a <= b).all()) for a, b in itertools.pairwise(masks))
    assert area_under(torch.ones(5)) == pytest.approx(1)


def test_faithfulness_begins_and_ends_where_it_must(loaded, images):
    few = images.limited(1, 0)
    pixels, removal = faithfulness_tables(
        loaded.backbone, loaded.model, loaded.reader.batches(few.of(few.files)), seed=0
    )
    assert [row["order"] for row in pixels.rows][:3] == [OURS, "prototypes alone", RANDOM]
    first = {(p["curve"], p["order"]): p["probability"] for p in pixels.facts["curves"] if p["share"] == 0}
    last = {(p["curve"], p["order"]): p["probability"] for p in pixels.facts["curves"] if p["share"] == 1}
    for order in (OURS, RANDOM):
        assert first["deletion", order] == pytest.approx(last["insertion", order], abs=1e-6)
        assert first["deletion", order] == pytest.approx(first["deletion", OURS])
        assert last["deletion", order] == pytest.approx(last["deletion", OURS], abs=1e-6)
    logits = []
    for batch in loaded.reader.batches(few.of(few.files)):
        logits += loaded.backbone.read(batch.crops).logits.amax(dim=1).tolist()
    assert removal.rows[0]["largest_first"] == pytest.approx(np.mean(logits), abs=1e-4)
    assert removal.rows[1]["largest_first"] <= removal.rows[1]["random_order"]
    assert removal.rows[-1]["largest_first"] == pytest.approx(removal.rows[-1]["random_order"])


def test_grad_cam_looks_at_the_map_that_the_head_pools(loaded):
    layer = feature_layer(loaded.backbone)
    caught = []
    handle = layer.register_forward_hook(lambda *call: caught.append(call[2]))
    pixels = torch.randn(1, 3, 64, 64)
    features = loaded.backbone.network.forward_features(pixels)
    handle.remove()
    assert torch.equal(caught[-1], features)


def test_sheets_of_pictures(loaded, images, readings):
    models = converted_with(loaded, readings, (1, 3))
    few = images.limited(1, 0)
    crops = [(batch.crops[0], batch.class_index) for batch in loaded.reader.batches(few.of(few.files))]
    table, sheets = gallery_panels(loaded.backbone, loaded.model, models, crops)
    assert sheets.keys() == SHEETS.keys()
    assert [row["file"] for row in table.rows] == [f"{name}.png" for name in SHEETS]
    row = sheets["prototypes_by_count"][0]
    assert [len(panel.maps) for panel in row] == [0, 1, 3]
    rows = loaded.backbone.read(crops[0][0][None]).rows[0].double()
    for panel, model in zip(row[1:], models.values(), strict=True):
        own = model.own(crops[0][1])
        assert panel.full == tuple(model.amounts.peak_of(j) for j in own)
        for grid, reader in zip(panel.maps, model.exact.readers(crops[0][1]), strict=False):
            assert np.allclose(grid.flatten(), (rows @ reader).numpy(), atol=1e-5)


def test_sheets_of_the_papers_pictures_are_of_codes(projections, images, readings):
    options = options_of(projections.model)
    assert options.reconstruction == "paper"
    models = converted_with(projections, readings, (1, 3))
    few = images.limited(1, 0)
    crops = [(batch.crops[0], batch.class_index) for batch in projections.reader.batches(few.of(few.files))]
    _, sheets = gallery_panels(projections.backbone, projections.model, models, crops)
    row = sheets["prototypes_by_count"][0]
    assert [len(panel.maps) for panel in row] == [0, 1, 3]
    assert all((grid >= 0).all() for panel in row for grid in panel.maps)
    assert all(panel.full == () for panel in row)


class _Bright(Readout):
    """A network that sees nothing but brightness: one row of width 2 per pixel of a 4 x 4 grid, red and green."""

    def read(self, network, pixels):
        rows = torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(2).mT[..., :2] / 16
        return Reading(rows=rows, logits=self.logits(rows))


def bright_backbone():
    network = torch.nn.Linear(1, 1)
    readout = _Bright(kind="average", vectors=torch.eye(2), bias=torch.zeros(2), grid=(4, 4), unplaced=())
    preprocessing = replace(PREPROCESSING, input_size=(3, 224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)
    return Backbone(
        network=network,
        readout=readout,
        rows_option="auto",
        preprocessing=preprocessing,
        classes=(ClassName(label="a"), ClassName(label="b")),
        source=Source(name="bright", architecture="bright"),
    )


@pytest.mark.parametrize("kind", ["amounts", "oblique", "paper"])
def test_prototypes_that_follow_a_part_are_consistent_and_others_are_not(loaded, projections, kind):
    """Red square = part 0, always seen by the red prototype; the green one lies far from every part.

    Amounts of a red and of a mostly red prototype are read with the other one explained away: the latter follows green.
    """
    prototypes = torch.eye(2) if kind != "oblique" else torch.tensor([[1.0, 0.0], [0.9, 0.4]])
    model = replace(
        (projections if kind == "paper" else loaded).model,
        prototypes=prototypes,
        owner=torch.zeros(2, dtype=torch.int64),
        residual=torch.zeros(2, 2),
        bias=torch.zeros(2),
        intercept=torch.zeros(2),
        evidence=Projections()
        if kind == "paper"
        else Amounts(ridge=0.0, usual=torch.ones(2, 4), unplaced_mean=torch.zeros(2), edit_readers=torch.eye(2)),
        weights=replace(
            loaded.model.weights,
            class_index=torch.zeros(2, dtype=torch.int64),
            prototype=torch.tensor([0, 1]),
            value=torch.ones(2),
            residual_share=torch.zeros(2),
        ),
    )
    crops = torch.zeros(4, 3, 224, 224, dtype=torch.uint8)
    where = {}
    for n, (row, column) in enumerate([(0, 0), (1, 2), (3, 1), (2, 3)]):
        crops[n, 0, 56 * row : 56 * row + 56, 56 * column : 56 * column + 56] = 255
        opposite = (3 - row, 3 - column)
        crops[n, 1, 56 * opposite[0] : 56 * opposite[0] + 56, 56 * opposite[1] : 56 * opposite[1] + 56] = 255
        where[f"a/{n}.png"] = {0: (56 * column + 28.0, 56 * row + 28.0)}
    sources = tuple(ImageSource(path=path, sha256="") for path in where)
    batch = ImageBatch(class_index=0, crops=crops, sources=sources)
    table = part_quality_table(
        bright_backbone(), model, [batch], parts=1, locate=lambda source: where.get(source.path), seed=0
    )
    found = {row["measure"]: row["value"] for row in table.rows}
    assert table.facts["parts_met"]["0"] == {"part": 0, "share": 1.0}
    assert table.facts["parts_met"]["1"]["share"] < 0.8
    assert found["consistency"] == 0.5
    assert found["stability"] == 1.0
    assert found["distinctiveness"] == 1.0
    assert table.facts["images_annotated"] == 4
    with pytest.raises(InputError, match="none of the 4 images is in the part annotations"):
        part_quality_table(bright_backbone(), model, [batch], parts=1, locate=lambda _: None, seed=0)
    bare = part_quality_table(bright_backbone(), model, [batch], parts=0, locate=None, seed=0)
    assert [row["value"] is None for row in bare.rows] == [True, True, False, False]


def test_consistency_counts_visible_parts_only():
    nan = np.nan
    assert consistency([np.array([1.0, nan]), np.array([0.0, 1.0]), np.array([1.0, nan])]) == (1.0, 1)
    assert consistency([np.array([nan, nan])]) is None


def rival_of(rows, prototypes, owner):
    """A ProtoPNet whose latent rows are given: (class, images, places, width)."""

    class Latent(Readout):
        def read(self, network, pixels):
            found = pixels.flatten(1)[:, : rows.shape[2] * rows.shape[3]].reshape(len(pixels), rows.shape[2], -1)
            return Reading(rows=found, logits=found.new_empty(len(found), 0))

    bright = bright_backbone()
    readout = Latent(
        kind="latent-patches",
        vectors=torch.empty(0, rows.shape[3]),
        bias=torch.empty(0),
        grid=(1, rows.shape[2]),
        unplaced=(),
    )
    backbone = replace(
        bright, readout=readout, preprocessing=replace(bright.preprocessing, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    )
    pixels = torch.zeros(rows.shape[0], rows.shape[1], 3, 8, 8)
    pixels.flatten(2)[..., : rows.shape[2] * rows.shape[3]] = rows.flatten(2)
    batches = [
        ImageBatch(
            class_index=c,
            crops=pixels[c].to(torch.uint8),
            sources=tuple(ImageSource(path=f"{c}/{n}", sha256="") for n in range(rows.shape[1])),
        )
        for c in range(rows.shape[0])
    ]
    classes = tuple(ClassName(label=str(c)) for c in range(rows.shape[0]))
    card = SimpleNamespace(method="protopnet", pooling="max", similarity="log", members=(), classes=classes,
        readout=SimpleNamespace(grid=(1, rows.shape[2]), rows_per_image=rows.shape[2], width=rows.shape[3]))  # fmt: skip
    empty = torch.empty(0, dtype=torch.int64)
    model = PrototypeModel(
        prototypes=prototypes, owner=owner, residual=torch.zeros(len(classes), rows.shape[3]), bias=torch.zeros(len(classes)),
        intercept=torch.zeros(len(classes)), examples=None, card=card, evidence=NearestPatch(),
        weights=SparseWeights(class_index=empty, prototype=empty, value=torch.empty(0), residual_share=torch.empty(0)),
    )  # fmt: skip
    return Rival(
        name="cycle", model=model, backbone=backbone, images=sum(len(b.sources) for b in batches), open=lambda: batches
    )


def test_rows_that_are_a_protopnets_prototypes_are_rebuilt_by_them():
    generator = torch.Generator().manual_seed(0)
    parts = torch.randint(1, 12, (2, 2, 16), generator=generator).float()
    codes = torch.randint(0, 9, (2, 6, 4, 2), generator=generator).float()
    rows = torch.einsum("cntk,ckd->cntd", codes, parts)
    owner = torch.tensor([0, 0, 1, 1])
    good = rival_of(rows, parts.flatten(0, 1), owner)
    wild = rival_of(rows, torch.rand(4, 16, generator=generator), owner)
    table, pictures = rival_table([good, wild], NmfOptions(), seed=0)
    error = {(n, row["prototypes"][:3]): row["error"] for n, row in enumerate(table.rows)}
    assert error[0, "NMF"] < 0.01 and error[1, "Pro"] < 1e-6 and error[2, "NMF"] < 0.01
    assert error[3, "Pro"] > 0.05
    assert [row["classes"] for row in table.rows] == [2] * 4
    assert len(pictures) == 2 and len(pictures[0]) == 5


def test_the_area_of_a_prototype_is_where_it_has_half_its_largest_value():
    rows = torch.zeros(1, 2, 4, 3)
    rows[0, :, 0] = torch.tensor([9.0, 0, 0])
    rows[0, :, 1:] = torch.tensor([0, 0, 200.0])
    rival = rival_of(rows, torch.tensor([[9.0, 0, 0]]), torch.tensor([0]))
    table, _ = rival_table([rival], NmfOptions(), seed=0)
    assert table.rows[1]["area"] == 0.25


def test_a_rival_that_is_no_protopnet_is_refused(loaded):
    with pytest.raises(ModelFileError, match="needs a ProtoPNet"):
        check_rival(loaded.model, "x")
