"""A page of more classes than it has rows of: its numbers are those of the model, under numbers of its own."""

import base64

import numpy as np
import pytest
import torch

from benchmarks.assembly_cost import DrawnClasses, drawn_backbone
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.readouts.readout import Reading
from protonmf_cli.options import ConversionOptions
from protonmf_cli.output.page.data import page_data
from protonmf_cli.output.page.pictures import FULL, Pictures
from protonmf_cli.output.page.words import page_words
from protonmf_cli.pipelines.conversion.assembly import assemble_model
from protonmf_cli.pipelines.page import content
from protonmf_cli.pipelines.page.content import report_of

CLASSES, WIDTH, SHOWN = 40, 24, 11


class Drawn(Backbone):
    """A head alone: what it reads of an image is drawn from the image's first pixel."""

    def read(self, crops):
        rows = []
        for crop in crops:
            c = int(crop[0, 0, 0])
            rows.append(DrawnClasses(self.readout.vectors, 1, 2)[c].sample[0])
        whole = torch.stack(rows)
        return Reading(rows=whole, logits=self.readout.logits(whole))


@pytest.fixture(scope="module")
def drawn():
    backbone = drawn_backbone(CLASSES, WIDTH)
    finished = DrawnClasses(backbone.readout.vectors, 6, 2)
    options = ConversionOptions(near=2, stability=False)
    return Drawn(**vars(backbone)), assemble_model(backbone, finished, options, data=DataFacts())


def decoded(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def report_on_31(drawn, **words):
    backbone, model = drawn
    crops = torch.full((1, 3, 8, 8), 31, dtype=torch.uint8)
    batch = ImageBatch(class_index=31, crops=crops, sources=(ImageSource(path="a.jpg", sha256=""),))
    return crops, report_of(backbone, model, [batch], file="m", decode=lambda _: crops[0], **words)


def test_classes_that_nothing_explained_needs_are_left_out_where_they_bring_too_many_prototypes(drawn, monkeypatch):
    def listed(most):
        monkeypatch.setattr(content, "MOST_PROTOTYPES", most)
        return set(report_on_31(drawn)[1].listed)

    monkeypatch.setattr(content, "MOST_CLASSES", SHOWN)
    _, whole = report_on_31(drawn)
    explained = {each.class_index for case in whole.cases for each in case.explanations}
    named = content._named(drawn[1], whole.listed)
    assert listed(len(named)) == set(whole.listed)
    assert explained <= listed(len(named) - 1) < set(whole.listed)
    assert listed(0) == explained


@pytest.mark.parametrize("explained_only", [False, True])
def test_numbers_of_a_page_are_those_of_the_model(drawn, monkeypatch, explained_only):
    backbone, model = drawn
    monkeypatch.setattr(content, "MOST_CLASSES", SHOWN)
    crops, report = report_on_31(drawn, explained_only=explained_only)
    bare = Pictures(detail=FULL, folder=None)
    monkeypatch.setattr(Pictures, "patch", lambda *_: 0)
    bare.sizes = dict.fromkeys((view.jpeg for p in report.gallery.prototypes for view in p.examples), (224, 224))
    data = page_data(report, page_words(report, {}, nameless=False), bare)
    listed, prototypes = data["listed"], data["prototypes"]
    assert 31 in listed and len(listed) == (len(set(listed)) if explained_only else SHOWN)
    assert bool(report.left_out) == (not explained_only)
    ids = [model.own(one["c"])[one["n"] - 1] if one["n"] else model.whole(one["c"]) for one in prototypes]
    assert len(ids) < len(model.prototypes) and ids == sorted(ids)
    starts, linked = (decoded(data["links"][name], "<i4") for name in ("start", "prototype"))
    weights = decoded(data["links"]["weight"], "<f4")
    for c in listed:
        some = slice(starts[c], starts[c + 1])
        entries = model.entries(c)
        assert [ids[n] for n in linked[some]] == model.weights.prototype[entries].tolist()
        assert np.array_equal(weights[some], model.weights.value[entries].numpy())
    assert starts[-1] == len(linked) == sum(len(model.entries(c)) for c in listed)
    assert all(ids[n] in model.own(int(c)) for c, own in data["own"].items() for n in own)
    (case,) = data["cases"]
    rows = backbone.read(crops).rows[0].sum(dim=0).double()
    assert decoded(case["evidence"], "<f8") == pytest.approx((model.prototypes[ids].double() @ rows).numpy())
    for c, drawn_class in case["drawn"].items():
        assert {ids[n] for n in drawn_class["parts"]} <= set(model.weights.prototype[model.entries(c)].tolist())
    for contrast in case["contrasts"]:
        used = {j for c in contrast["of"] for j in model.weights.prototype[model.entries(c)].tolist()}
        assert {ids[row[0]] for row in contrast["rows"]} <= used
    for n, one in enumerate(prototypes):
        assert all(one["c"] != prototypes[other]["c"] and other != n for other, _ in one["near"])
