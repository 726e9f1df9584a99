"""The benchmark against other concept methods: its measures on planted truth, and its own writings of two papers."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

import toys
from benchmarks.rival_methods import epic, face, factorisations, measures, ours
from benchmarks.rival_methods.features import Images, Network, load_network, made_collages

VECTORS = torch.tensor([[4.0, 1.0, 0.0], [0.0, 2.0, 3.0]])
BIAS = torch.tensor([0.5, -0.5])


def images_of(rows: torch.Tensor, labels: torch.Tensor, vectors=VECTORS, bias=BIAS) -> Images:
    logits = rows.sum(dim=1) @ vectors.mT + bias
    return Images(rows=rows, rest=torch.zeros(len(rows), rows.shape[2]), logits=logits, labels=labels)


def planted(rows: torch.Tensor, labels: torch.Tensor, vectors=VECTORS, bias=BIAS) -> Network:
    """A head that reads rows, the same images wherever images are asked for."""
    found = images_of(rows, labels, vectors, bias)
    backbone = SimpleNamespace(readout=SimpleNamespace(vectors=vectors, bias=bias, unplaced=()))
    return Network(backbone=backbone, train=found, val=found, train_collages=found, val_collages=found)


def unit_concepts(network: Network, atoms: torch.Tensor) -> measures.Explainer:
    """Concepts that are directions of their own, each read by itself."""
    readers = torch.linalg.pinv(atoms)
    return factorisations.shared(network, factorisations.linear(network, atoms, lambda images: images.pooled @ readers))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


ONE = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]])
"""One image of two places; its sum is (1, 1, 1): logits 5.5 and 4.5."""


class TestFaithfulness:
    def test_all_concepts_are_the_network(self):
        network = planted(torch.rand(7, 4, 3), torch.arange(7) % 2)
        explainer = unit_concepts(network, torch.eye(3))
        figures = measures.faithfulness(explainer, measures.Coded.of(explainer, network.val), 3)
        assert figures["agreement"].tolist() == figures["agreement_all"].tolist() == [1.0] * 7
        assert float(figures["kl"].abs().max()) < 1e-6 > float(figures["kl_all"].abs().max())
        assert torch.allclose(figures["deletion"], figures["alone"], atol=1e-6)

    def test_deletion_and_insertion_are_the_areas_by_hand(self):
        """Contributions to the first class are 4, 1 and 0, to the second 0, 2 and 3; logits 5.5 and 4.5."""
        network = planted(ONE, torch.tensor([0]))
        network = Network(
            backbone=network.backbone, train=images_of(torch.cat([ONE, ONE]), torch.tensor([0, 1])),
            val=network.val, train_collages=network.val, val_collages=network.val,
        )  # fmt: skip
        explainer = unit_concepts(network, torch.eye(3))
        drawn = measures.curves(explainer, measures.Coded.of(explainer, network.val), 3)
        gone = [5.5 - 4.5, 1.5 - 4.5, 0.5 - 2.5, 0.5 + 0.5]
        come = [0.5 + 0.5, 4.5 + 0.5, 5.5 - 1.5, 5.5 - 4.5]
        for curve, margins in ((drawn.deletion, gone), (drawn.insertion, come), (drawn.alone, gone)):
            by_hand = [sigmoid(x) for x in margins]
            assert torch.allclose(curve[0], torch.tensor(by_hand))
            trapezia = sum((a + b) / 2 for a, b in itertools.pairwise(by_hand)) / 3
            assert float(measures.area(curve)[0]) == pytest.approx(trapezia, abs=1e-6)

    def test_area_is_by_the_trapezium_rule_over_a_width_of_one(self):
        found = measures.area(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
        assert found.tolist() == [0.25, 0.75, 1.0]

    def test_what_concepts_leave_stays_in_a_deletion_and_is_missing_in_an_insertion(self):
        network = planted(torch.cat([ONE, ONE]), torch.tensor([0, 1]))
        explainer = unit_concepts(network, torch.eye(3)[:1])
        drawn = measures.curves(explainer, measures.Coded.of(explainer, network.val), 2)
        assert torch.allclose(drawn.deletion[0], torch.tensor([sigmoid(1), sigmoid(-3), sigmoid(-3)]))
        assert torch.allclose(drawn.insertion[0], torch.tensor([sigmoid(1), sigmoid(5), sigmoid(5)]))
        assert torch.allclose(drawn.alone[0], torch.tensor([sigmoid(5), sigmoid(1), sigmoid(1)]))

    def test_divergence_is_that_of_the_definition(self):
        p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
        by_hand = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
        assert float(measures.divergence(p.log()[None], q.log()[None] + 3)) == pytest.approx(by_hand, abs=1e-6)

    def test_levelled_concepts_leave_nothing_on_average(self):
        network = planted(torch.rand(6, 4, 3), torch.arange(6) % 2)
        explainer = unit_concepts(network, torch.eye(3)[1:])
        coded = measures.Coded.of(explainer, network.train)
        level = measures.levelled(explainer, coded)
        left = network.train.logits - measures.rebuilt(level, coded)
        assert float(left.mean(dim=0).abs().max()) < 1e-5 < float(left.abs().max())

    def test_per_class_concepts_say_nothing_of_the_whole_head(self):
        network = planted(torch.rand(8, 4, 3), torch.arange(8) % 2)
        explainer = factorisations.craft(network, 2, 0)
        assert not explainer.joint
        assert "kl_all" not in measures.faithfulness(explainer, measures.Coded.of(explainer, network.val), 2)


class TestNames:
    def test_a_concept_along_the_head_is_wholly_plausible(self):
        network = planted(torch.rand(4, 2, 3), torch.arange(4) % 2)
        found = measures.plausibility(unit_concepts(network, torch.stack([3 * VECTORS[0], torch.eye(3)[0]])), network)
        cosine = float(VECTORS[0] @ VECTORS[1] / VECTORS[0].norm() / VECTORS[1].norm())
        assert found.tolist() == pytest.approx([1.0, cosine])

    def test_average_precision_is_scikit_learns(self):
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(20, 9, generator=generator)
        wanted = torch.rand(20, 9, generator=generator) < 0.4
        wanted[:, 0] = True
        expected = [average_precision_score(w.numpy(), s.numpy()) for w, s in zip(wanted, scores, strict=True)]
        assert measures.average_precision(scores, wanted).tolist() == pytest.approx(expected)

    def test_collages_are_named_by_the_best_four(self):
        made_of = torch.tensor([[1, 4, 6, 9]])
        wanted = measures.among_classes(made_of, [1, 2, 4, 6, 9])
        assert wanted.tolist() == [[True, False, True, True, True]]
        found = measures.identified(torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]]), wanted)
        assert float(found["precision_at_4"]) == 0.75
        assert float(found["mean_average_precision"]) == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 5) / 4)

    def test_collages_are_of_four_pictures_of_different_classes(self):
        labels = torch.arange(12) // 2
        crops = (20 * labels)[:, None, None, None].expand(12, 3, 8, 6).to(torch.uint8)
        pictures, made_of = made_collages(crops, labels, 5)
        assert pictures.shape == (5, 3, 8, 6)
        for picture, four in zip(pictures, made_of.tolist(), strict=True):
            assert len(set(four)) == 4
            corners = [int(picture[0, y, x]) // 20 for y in (0, 7) for x in (0, 5)]
            assert corners == four
            assert picture.unique().tolist() == sorted(20 * c for c in four)


class TestMethods:
    def test_least_squares_codes_are_scipys(self, monkeypatch):
        """Where they go on long enough: as the benchmark stops, one draw of these in fourteen is further off."""
        from scipy.optimize import nnls

        monkeypatch.setattr(factorisations, "SWEEPS", 3000)
        monkeypatch.setattr(factorisations, "CHANGE", 1e-5)
        rows, atoms = torch.rand(30, 8) - 0.2, torch.rand(4, 8)
        found = factorisations.codes_from_products(rows @ atoms.mT, atoms @ atoms.mT)
        expected = [nnls(atoms.mT.numpy(), row)[0] for row in rows.numpy()]
        assert np.allclose(found.numpy(), expected, atol=1e-2)

    def test_planted_parts_are_found_and_rebuild_the_logits(self):
        """Rows made of two parts of each class: CRAFT's own concepts, one dictionary of them, and a fitted head."""
        torch.manual_seed(0)
        parts = torch.eye(8)[:4] + 0.2 * torch.eye(8)[4:]
        labels = torch.arange(20) % 2
        codes = torch.rand(20, 5, 4) * (torch.arange(4) // 2 == labels[:, None])[:, None]
        vectors, bias = torch.randn(2, 8), torch.zeros(2)
        network = planted(codes @ parts, labels, vectors, bias)
        single = factorisations.craft(network, 2, 0)
        one = factorisations.united(network, single)
        fitted = factorisations.least_squares(network, one)
        for explainer in (one, fitted):
            found = measures.rebuilt(explainer, measures.Coded.of(explainer, network.val))
            assert torch.allclose(found, network.val.logits, atol=0.02)
        own = measures.rebuilt(single, measures.Coded.of(single, network.val))
        mine = torch.arange(20), labels
        assert torch.allclose(own[mine], network.val.logits[mine], atol=0.02)
        assert float((own - network.val.logits).abs().max()) > 0.1  # what a class's concepts cannot hold of the other

    def test_epic_rebuilds_the_logits_and_its_channels_grow_pure(self):
        torch.manual_seed(0)
        turn = torch.linalg.qr(torch.randn(6, 6)).Q
        rows = torch.rand(40, 5, 6) ** 6 @ turn
        vectors = torch.randn(2, 6)
        network = planted(rows, torch.arange(40) % 2, vectors)
        matrix, before = epic.disentangled(rows, 0, passes=100)
        assert epic.mean_purity(rows, matrix) > before + 0.1
        found = epic.epic(network, 3, 0)
        assert found.exactness < 1e-4
        figures = measures.faithfulness(found, measures.Coded.of(found, network.val), 3)
        assert float(figures["kl"].abs().max()) < 1e-5  # 2 classes x 3 channels are all six
        fewer = epic.epic(network, 2, 0)
        assert len(fewer.atoms) == 4
        assert fewer.exactness < 1e-4

    def test_exponential_is_torchs(self):
        raw = torch.randn(5, 5, dtype=torch.float64)
        assert torch.allclose(epic.exponential(raw), torch.matrix_exp(raw), rtol=1e-3)
        assert torch.equal(epic.exponential(torch.zeros(3, 3)), torch.eye(3))

    def test_channels_count_for_one_class_each(self):
        values = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 0.0, 0.0, 1.0]])
        kept = epic.kept_channels(values, torch.tensor([0, 1]), torch.ones(2, 4), 2)
        assert kept.tolist() == [0, 1, 3, 2]

    def test_face_gives_up_rows_for_what_the_classifier_says(self):
        torch.manual_seed(0)
        rows = torch.rand(12, 6, 5) ** 3
        rows[..., 4] *= 0.05  # a direction that hardly counts among rows, and alone decides
        vectors = torch.tensor([[0.0, 0.0, 0.0, 0.0, 40.0], [0.0, 0.0, 0.0, 1.0, 0.0]])
        network = planted(rows, torch.zeros(12, dtype=torch.int64), vectors, BIAS)
        start = torch.from_numpy(factorisations.fitted_classes(network, 2, 0)[0].components_)
        told, losses, errors = network.train.logits, {}, {}

        def head(codes, W):
            return codes @ (W @ vectors.mT) + BIAS

        for weight in (0.0, 10.0):
            W, codes = face.regularised(rows, start, head, told, weight)
            assert bool((W >= 0).all())
            losses[weight] = float(measures.divergence(told, head(codes, W)).mean())
            nearest = factorisations.codes_from_products(rows.flatten(0, 1) @ W.mT, W @ W.mT)
            errors[weight] = float((rows.flatten(0, 1) - nearest @ W).square().sum())
        assert losses[10.0] < 0.5 * losses[0.0]
        assert errors[10.0] > errors[0.0]

    @pytest.mark.parametrize("kind", ["NMF", "SemiNMF"])
    def test_overcomplete_factorises(self, kind):
        need_overcomplete()
        torch.manual_seed(0)
        network = planted(torch.rand(20, 4, 2) @ torch.rand(2, 6), torch.arange(20) % 2, torch.randn(2, 6))
        found = factorisations.overcomplete(network, 1, 0, kind)
        rebuilt = measures.rebuilt(found, measures.Coded.of(found, network.val))
        spread = float(network.val.logits.std())
        assert float((rebuilt - network.val.logits).abs().max()) < 0.3 * spread

    @pytest.mark.parametrize("kind", ["TopKSAE", "RATopKSAE"])
    def test_autoencoders_rebuild_clusters(self, kind):
        need_overcomplete()
        from benchmarks.rival_methods.autoencoders import trained

        torch.manual_seed(0)
        rows = torch.eye(4).repeat(3000, 1) + 0.01 * torch.rand(12000, 4)
        model = trained(rows, 8, kind, 2, 0)
        with torch.no_grad():
            codes = model.encode(rows)[1]
        assert int((codes != 0).sum(dim=1).max()) <= 2
        left = rows - codes @ model.get_dictionary().detach()
        assert float(left.square().mean()) < 0.3 * float(rows.square().mean())  # their mean alone leaves three quarters


def need_overcomplete() -> None:
    try:
        factorisations.import_overcomplete("optimization")
    except ImportError:
        pytest.skip("overcomplete is not installed: pip install 'protonmf[rivals]'")


@pytest.fixture(scope="module", params=["convolutional", "with rows without a place"])
def read_toy(request, toy, tmp_path_factory) -> Network:
    folder = tmp_path_factory.mktemp("rows")
    network = toy if request.param == "convolutional" else toys.make_vit(replace(toy, folder=folder))
    return load_network(network.name, toy.data, folder, 6)


class TestOurs:
    def test_rows_give_the_logits_and_are_kept(self, read_toy, toy, tmp_path):
        for images in (read_toy.train, read_toy.val, read_toy.val_collages):
            logits = (images.pooled + images.rest) @ read_toy.vectors.mT + read_toy.backbone.readout.bias
            assert torch.allclose(logits, images.logits, atol=1e-4)
        first = load_network(toy.name, toy.data, tmp_path, 6)
        (path, other) = sorted(tmp_path.iterdir())
        times = [each.stat().st_mtime_ns for each in (path, other)]
        again = load_network(toy.name, toy.data, tmp_path, 6)
        assert [each.stat().st_mtime_ns for each in (path, other)] == times
        assert torch.equal(first.val.rows, again.val.rows)

    @pytest.mark.parametrize("recipe", ["default", "paper"])
    def test_concepts_are_what_the_model_carries(self, read_toy, recipe):
        from protonmf_cli.models.response import logit_parts

        options, parts = ours._parts(read_toy, 2, 0, recipe)
        model = ours.models_of(read_toy.backbone, {2: parts}, options)[2]
        explainer = ours.converted(read_toy, 2, 0, recipe)
        coded = measures.Coded.of(explainer, read_toy.val)
        carried = logit_parts(model, ours.read_by(model, read_toy.val)).carried
        assert torch.allclose(measures.rebuilt(explainer, coded), carried[:, read_toy.classes], atol=1e-4)
        assert explainer.exactness < 1e-4
        for c, each in explainer.by_class.items():
            wanted = model.weights.value[model.entries(c)]
            assert torch.allclose(each.weights[c], wanted, rtol=1e-3, atol=1e-4)

    def test_a_control_is_another_model(self, read_toy):
        real, control = ours.converted(read_toy, 2, 0, "default"), ours.control(read_toy, 2, 0, "gaussian")
        assert control.said == "Gaussian directions"
        assert control.exactness < 1e-4
        cosines = normalize(real.shown, dim=1) @ normalize(control.shown, dim=1).mT
        assert float(cosines.max()) < 0.99


def test_intervals_are_paired():
    """The same images are drawn for all, so a method less itself has no interval, and a shift of it none either."""
    values = torch.rand(50)
    weights = measures.resampled(50)
    assert measures.interval(values - values, weights) == (0, 0, 0)
    mean, low, high = measures.interval(values + 1 - values, weights)
    assert (mean, low, high) == pytest.approx((1, 1, 1))
    mean, low, high = measures.interval(values, weights)
    half = 1.96 * float(values.std()) / math.sqrt(50)
    assert low < mean < high
    assert high - low == pytest.approx(2 * half, rel=0.15)


def test_benchmark_runs_and_goes_on(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent / "benchmarks"))
    import rivals

    words = [toy.name, "--data", str(toy.data), "--work", str(tmp_path), "-p", "2", "--collages", "4", "--seeds", "0"]
    words += ["--methods", "ours", "CRAFT / ICE", "EPIC", "control: label-shuffled", "--json", str(tmp_path / "out")]
    rivals.main(words)
    out = capsys.readouterr().out
    assert "| ours less |" in out or "| ours less | agreement" in out
    assert "ours, against published forms: first, or not told from it, on" in out
    rivals.main(words)
    assert "s of CPU" not in capsys.readouterr().out
