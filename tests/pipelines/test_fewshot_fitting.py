"""What cross-validation chooses for the few-shot model, and what its fit does not depend on."""

import pytest
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.maths.soft_prototypes import Penalty, matches, objective
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.fewshot_fitting import fit_fewshot, fold_numbers, part_means
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


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_twisted_classes_get_a_prototype_for_each_cluster(norm):
    """Two for each class alone and one for the cluster that both share, each within its cluster."""
    rows, labels = twisted(0)
    found = fit_fewshot(rows, labels, 2, FewShotOptions(norm=norm, normalisation="none"))
    assert found.counts == (3, 3) and len(found.model.prototypes) == 5
    centres = torch.tensor(CENTRES).double()
    assert sorted(torch.cdist(found.model.prototypes, centres).argmin(dim=1).tolist()) == [0, 1, 2, 3, 4]
    assert float(torch.cdist(found.model.prototypes, centres).amin(dim=1).max()) < 1
    more, truth = twisted(1)
    pure = slice(0, 32)
    assert (found.logits(more)[pure].argmax(dim=1) == truth[pure]).all()
    sure = found.logits(more).softmax(dim=1).amax(dim=1)
    assert float(sure[pure].min()) > 0.7 and float(sure[32:].max()) < 0.6  # the shared cluster is ambiguous
    single = fit_fewshot(rows, labels, 2, FewShotOptions(norm=norm, normalisation="none", prototypes=1))
    assert len(single.model.prototypes) == 2
    assert float((single.logits(more)[pure].argmax(dim=1) == truth[pure]).double().mean()) < 0.8


def test_a_class_of_one_cluster_keeps_one_prototype():
    rows, labels = blobs(classes=3, count=8)
    found = fit_fewshot(rows, labels, 3, QUICK)
    assert found.counts == (1, 1, 1) and found.owner.tolist() == [0, 1, 2]


def test_a_fixed_number_of_prototypes_is_kept():
    rows, labels = blobs(classes=2, count=8)
    found = fit_fewshot(rows, labels, 2, FewShotOptions(**vars(QUICK) | {"prototypes": 3}))
    assert len(found.model.prototypes) == 6 and found.owner.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="9 prototypes per class need as many images, but a class has 8"):
        fit_fewshot(rows, labels, 2, FewShotOptions(**vars(QUICK) | {"prototypes": 9}))


def test_the_order_of_the_images_does_not_matter():
    rows, labels = blobs()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    one, other = (fit_fewshot(rows[o], labels[o], 4, QUICK) for o in (torch.arange(len(rows)), order))
    assert one.choice == other.choice and one.counts == other.counts
    assert torch.equal(one.model.prototypes, other.model.prototypes)
    assert torch.equal(one.model.weights, other.model.weights)


def test_the_unit_of_the_features_does_not_matter():
    rows, labels = blobs()
    one, other = (fit_fewshot(rows * unit, labels, 4, QUICK) for unit in (1.0, 1000.0))
    assert one.choice == other.choice
    assert torch.allclose(one.logits(rows), other.logits(rows * 1000), atol=1e-9)


def test_the_model_is_in_the_features_own_coordinates():
    rows, labels = blobs()
    found = fit_fewshot(rows, labels, 4, QUICK)
    assert found.model.prototypes.shape == (4, 30)
    unit = float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())
    penalty = Penalty(alpha=found.choice.alpha, anchor=found.choice.anchor / unit)
    assert objective(found.model, rows, labels, penalty) == pytest.approx(found.objective, rel=1e-9)
    assert torch.allclose(matches(rows, found.model.prototypes, found.model.scale).sum(dim=1), torch.ones(20).double())


@pytest.mark.parametrize("normalisation", ["unit", "centred"])
def test_normalised_features_have_length_one(normalisation):
    rows, labels = blobs()
    found = fit_fewshot(rows + 5, labels, 4, FewShotOptions(**vars(QUICK) | {"normalisation": normalisation}))
    assert torch.allclose(found.normaliser(rows + 5).norm(dim=1), torch.ones(20).double())
    assert bool(found.normaliser.mean.any()) == (normalisation == "centred")
    assert torch.allclose(found.logits(rows + 5), found.model.logits(found.normaliser(rows + 5)))


def test_classes_of_one_image_are_never_held_out():
    rows, labels = blobs()
    kept = torch.tensor([0, 1, 2, 5, 6, 10, 15])  # classes of 3, 2, 1 and 1 images
    numbers = fold_numbers(labels[kept], 5, 0)
    assert numbers[5:].tolist() == [-1, -1] and sorted(numbers[:3].tolist()) == [0, 1, 2]
    found = fit_fewshot(rows[kept], labels[kept], 4, QUICK)
    assert found.folds == 3 and (found.logits(rows[kept]).argmax(dim=1) == labels[kept]).all()
    single = fit_fewshot(rows[::5], labels[::5], 4, QUICK)
    assert single.folds == 0 and single.held_out == {}
    assert (single.logits(rows[::5]).argmax(dim=1) == labels[::5]).all()


def test_parts_of_samples_are_their_clusters():
    rows = torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.0, 0.2], [5.2, 5.0]]).double()
    assert torch.allclose(part_means(rows, 2), torch.tensor([[0.0, 0.1], [5.1, 5.0]]).double())
    assert part_means(rows[:1], 3).tolist() == [[0.0, 0.0]]


def test_what_cannot_be_fitted_is_refused():
    rows, labels = blobs()
    with pytest.raises(InputError, match="at least two classes"):
        fit_fewshot(rows[:5], labels[:5], 1, QUICK)
    with pytest.raises(InputError, match="2 of 4 classes have no images"):
        fit_fewshot(rows[:10], labels[:10], 4, QUICK)
    with pytest.raises(InputError, match="the same features"):
        fit_fewshot(rows[:1].repeat(20, 1), labels, 4, QUICK)
    with pytest.raises(InputError, match="not finite"):
        fit_fewshot(rows / 0, labels, 4, QUICK)
