"""What cross-validation chooses for the few-shot model, and what its fit does not depend on."""

import pytest
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.maths.soft_prototypes import Penalty, matches, objective
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.fewshot import fitting as fewshot_fitting
from protonmf_cli.pipelines.fewshot.fitting import _Search, _Task, fit_prototypes
from protonmf_cli.pipelines.fewshot.folds import fold_numbers
from protonmf_cli.pipelines.fewshot.refitting import refitted
from protonmf_cli.pipelines.fewshot.starts import part_means
from protonmf_cli.pipelines.progress import SILENT
from twisted import CENTRES, twisted

QUICK = FewShotOptions(
    normalisation="none", scales=(2.5, 10.0), alphas=(1e-2,), anchors=(3e-3,), folds=4, rounds=3, steps=50
)


def blobs(classes=4, count=5, width=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(count)
    noise = torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return centres[labels] + 0.7 * noise, labels


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_twisted_classes_get_a_prototype_for_each_cluster(norm):
    """Two for each class alone and one for the cluster that both share, each within its cluster."""
    rows, labels = twisted(0)
    found = fit_prototypes(rows, labels, 2, FewShotOptions(norm=norm, normalisation="none"))
    assert found.counts == (3, 3) and len(found.model.prototypes) == 5
    centres = torch.tensor(CENTRES).double()
    assert sorted(torch.cdist(found.model.prototypes, centres).argmin(dim=1).tolist()) == [0, 1, 2, 3, 4]
    assert float(torch.cdist(found.model.prototypes, centres).amin(dim=1).max()) < 1
    more, truth = twisted(1)
    pure = slice(0, 32)
    assert (found.logits(more)[pure].argmax(dim=1) == truth[pure]).all()
    sure = found.logits(more).softmax(dim=1).amax(dim=1)
    assert float(sure[pure].min()) > 0.7 and float(sure[32:].max()) < 0.6  # the shared cluster is ambiguous
    single = fit_prototypes(rows, labels, 2, FewShotOptions(norm=norm, normalisation="none", prototypes=1))
    assert len(single.model.prototypes) == 2
    assert float((single.logits(more)[pure].argmax(dim=1) == truth[pure]).double().mean()) < 0.8


SPARSE = FewShotOptions(**vars(QUICK) | {"norm": "l1", "sparse_alphas": (1e-1, 3e-2, 1e-2)})


def test_sparse_weights_are_as_sure_as_they_are_right():
    """L1 alone takes its strongest norm here and says 0.5 of answers that are all right."""
    rows, labels = blobs(classes=5, count=10)
    train, test = torch.arange(50) % 10 < 5, torch.arange(50) % 10 >= 5
    found = fit_prototypes(rows[train], labels[train], 5, SPARSE)
    assert found.choice.alpha == 1e-1 and int((found.model.weights != 0).sum()) == 5
    probabilities = found.logits(rows[test]).softmax(dim=1).max(dim=1)
    assert (probabilities.indices == labels[test]).all()
    assert float(probabilities.values.median()) > 0.9

    plain = fit_prototypes(rows[train], labels[train], 5, FewShotOptions(**vars(SPARSE) | {"refits": ()}))
    assert float(plain.logits(rows[test]).softmax(dim=1).amax(dim=1).median()) < 0.6
    assert torch.equal(plain.model.prototypes, found.model.prototypes)
    assert torch.equal(plain.model.weights.sign(), found.model.weights.sign())
    assert found.held_out[found.choice][1] < plain.held_out[plain.choice][1]
    assert found.held_out[found.choice][0] >= plain.held_out[plain.choice][0]


def test_weights_are_fitted_again_to_the_minimum():
    rows, labels = blobs(classes=5, count=6)
    start = fit_prototypes(rows, labels, 5, FewShotOptions(**vars(SPARSE) | {"refits": ()})).model
    kept = start.weights != 0
    found = refitted(start, rows, labels, 1e-3)
    assert torch.equal(found.weights != 0, kept) and torch.equal(found.prototypes, start.prototypes)
    weights = found.weights.clone().requires_grad_()
    cost = torch.nn.functional.cross_entropy(matches(rows, found.prototypes, found.scale) @ weights.mT, labels)
    (slope,) = torch.autograd.grad(cost + 1e-3 / 2 * weights.square().sum(), weights)
    assert float(slope[kept].abs().max()) < 1e-6 < float(slope[~kept].abs().max())
    silent = type(start)(**vars(start) | {"weights": torch.zeros_like(start.weights)})
    assert refitted(silent, rows, labels, 1e-3) is silent


def test_held_out_samples_say_how_sure_sparse_weights_may_be():
    """Labels that the features hardly tell do not get the weakest norm, clusters that lie apart do."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 30, generator=generator, dtype=torch.float64)
    labels = (rows[:, 0] + 3 * torch.randn(60, generator=generator) > 0).long()
    options = FewShotOptions(**vars(SPARSE) | {"refits": (1e-1, 1e-2, 1e-3), "sparse_alphas": (1e-3,)})
    assert fit_prototypes(rows, labels, 2, options).choice.refit > 1e-3
    rows, labels = blobs(classes=5, count=6)
    assert fit_prototypes(rows, labels, 5, options).choice.refit == 1e-3
    assert fit_prototypes(rows[::6], labels[::6], 5, options).choice.refit == 1e-2  # nothing is held out: the middle


def test_the_sparsest_weights_still_tell_the_samples_apart():
    """Among more than eight classes no weight survives the strongest norm: it must not be taken, held out or not."""
    rows, labels = blobs(classes=12, count=1)
    found = fit_prototypes(rows, labels, 12, SPARSE)
    assert found.folds == 0 and (found.logits(rows).argmax(dim=1) == labels).all()
    assert int((found.model.weights != 0).sum()) == 12 and found.choice.alpha == 3e-2

    rows, labels = blobs(classes=12, count=4)
    search = _Search.of(rows, labels, 12, SPARSE, None, SILENT)
    one = _Task.of(rows, labels, 12)
    # folds that do not tell the norms apart
    held_out = {choice: (0.9, choice.alpha) for choice in search.choices}
    chosen = min(search.choices, key=lambda choice: (choice.alpha, -choice.scale))
    assert search.sparsest((1,) * 12, chosen, held_out, one).alpha == 3e-2
    held_out |= {choice: (0.8, 0.0) for choice in search.choices if choice.alpha == 3e-2}
    assert search.sparsest((1,) * 12, chosen, held_out, one) == chosen


def test_sparse_norms_fall_with_a_class_s_share_of_the_loss(monkeypatch):
    """Every norm tried would leave nothing of so many classes."""
    rows, labels = blobs(classes=40, count=2, width=60)
    options = FewShotOptions(**vars(SPARSE) | {"scales": (10.0,), "sparse_alphas": (1e-1, 5e-2), "folds": 2})
    assert not fit_prototypes(rows, labels, 40, options).model.weights.any()
    monkeypatch.setattr(fewshot_fitting, "MANY", 10)
    found = fit_prototypes(rows, labels, 40, options)
    assert found.choice.alpha in (1e-1 / 4, 5e-2 / 4) and found.choice.refit in [a / 4 for a in SPARSE.refits]
    assert float((found.logits(rows).argmax(dim=1) == labels).double().mean()) > 0.9


def test_a_class_of_one_cluster_keeps_one_prototype():
    rows, labels = blobs(classes=3, count=8)
    found = fit_prototypes(rows, labels, 3, QUICK)
    assert found.counts == (1, 1, 1) and found.owner.tolist() == [0, 1, 2]


def test_a_fixed_number_of_prototypes_is_kept():
    rows, labels = blobs(classes=2, count=8)
    found = fit_prototypes(rows, labels, 2, FewShotOptions(**vars(QUICK) | {"prototypes": 3}))
    assert len(found.model.prototypes) == 6 and found.owner.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="9 prototypes per class need as many images, but a class has 8"):
        fit_prototypes(rows, labels, 2, FewShotOptions(**vars(QUICK) | {"prototypes": 9}))


def test_the_order_of_the_images_does_not_matter():
    rows, labels = blobs()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    one, other = (fit_prototypes(rows[o], labels[o], 4, QUICK) for o in (torch.arange(len(rows)), order))
    assert one.choice == other.choice and one.counts == other.counts
    assert torch.equal(one.model.prototypes, other.model.prototypes)
    assert torch.equal(one.model.weights, other.model.weights)


def test_the_unit_of_the_features_does_not_matter():
    rows, labels = blobs()
    one, other = (fit_prototypes(rows * unit, labels, 4, QUICK) for unit in (1.0, 1000.0))
    assert one.choice == other.choice
    assert torch.allclose(one.logits(rows), other.logits(rows * 1000), atol=1e-9)


def test_the_model_is_in_the_features_own_coordinates():
    rows, labels = blobs()
    found = fit_prototypes(rows, labels, 4, QUICK)
    assert found.model.prototypes.shape == (4, 30)
    unit = float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())
    penalty = Penalty(alpha=found.choice.alpha, anchor=found.choice.anchor / unit)
    assert objective(found.model, rows, labels, penalty) == pytest.approx(found.objective, rel=1e-9)
    assert torch.allclose(matches(rows, found.model.prototypes, found.model.scale).sum(dim=1), torch.ones(20).double())


@pytest.mark.parametrize("normalisation", ["unit", "centred"])
def test_normalised_features_have_length_one(normalisation):
    rows, labels = blobs()
    found = fit_prototypes(rows + 5, labels, 4, FewShotOptions(**vars(QUICK) | {"normalisation": normalisation}))
    assert torch.allclose(found.normaliser(rows + 5).norm(dim=1), torch.ones(20).double())
    assert bool(found.normaliser.mean.any()) == (normalisation == "centred")
    assert torch.allclose(found.logits(rows + 5), found.model.logits(found.normaliser(rows + 5)))


def test_classes_of_one_image_are_never_held_out():
    rows, labels = blobs()
    kept = torch.tensor([0, 1, 2, 5, 6, 10, 15])  # classes of 3, 2, 1 and 1 images
    numbers = fold_numbers(labels[kept], 5, 0)
    assert numbers[5:].tolist() == [-1, -1] and sorted(numbers[:3].tolist()) == [0, 1, 2]
    found = fit_prototypes(rows[kept], labels[kept], 4, QUICK)
    assert found.folds == 3 and (found.logits(rows[kept]).argmax(dim=1) == labels[kept]).all()
    single = fit_prototypes(rows[::5], labels[::5], 4, QUICK)
    assert single.folds == 0 and single.held_out == {}
    assert (single.logits(rows[::5]).argmax(dim=1) == labels[::5]).all()


def test_parts_of_samples_are_their_clusters():
    rows = torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.0, 0.2], [5.2, 5.0]]).double()
    assert torch.allclose(part_means(rows, 2), torch.tensor([[0.0, 0.1], [5.1, 5.0]]).double())
    assert part_means(rows[:1], 3).tolist() == [[0.0, 0.0]]


def test_what_cannot_be_fitted_is_refused():
    rows, labels = blobs()
    with pytest.raises(InputError, match="at least two classes"):
        fit_prototypes(rows[:5], labels[:5], 1, QUICK)
    with pytest.raises(InputError, match="2 of 4 classes have no images"):
        fit_prototypes(rows[:10], labels[:10], 4, QUICK)
    with pytest.raises(InputError, match="the same features"):
        fit_prototypes(rows[:1].repeat(20, 1), labels, 4, QUICK)
    with pytest.raises(InputError, match="not finite"):
        fit_prototypes(rows / 0, labels, 4, QUICK)
