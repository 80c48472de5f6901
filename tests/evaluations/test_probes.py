"""Probes: heads in one pass are heads alone; what is there to read is read, noise is not."""

import numpy as np
import pytest
import torch

from evaluations import probes
from evaluations.features import Pooled
from evaluations.probes import Curves, Fit, StackedHeads, train_heads

CPU = torch.device("cpu")


def made(images, seed, spread=0.1):
    """Block 1 tells the class, block 2 tells nothing."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 4
    centers = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
    values = torch.randn(images, 2, 6, generator=random)
    values[:, 0] = centers[labels] + spread * values[:, 0]
    return Pooled((1, 2), values.numpy().astype(np.float16), labels.numpy())


def alone(features, block):
    place = features.blocks.index(block)
    return Pooled((block,), features.values[:, place : place + 1], features.labels)


@pytest.fixture(scope="module")
def sets():
    return made(400, 0), made(200, 1)


@pytest.mark.parametrize("norm", [True, False])
def test_heads_trained_together_are_the_heads_trained_apart(sets, norm):
    train, test = sets
    fit = Fit(epochs=4, batch=64, lr=1e-2, norm=norm)
    both = train_heads([train], test, 4, fit, CPU).values
    for place, block in enumerate((1, 2)):
        one = train_heads([alone(train, block)], alone(test, block), 4, fit, CPU).values
        assert one[:, 0] == pytest.approx(both[:, place], abs=1e-9)


def test_a_stacked_head_is_a_batch_norm_and_a_linear_map():
    heads = StackedHeads(2, 6, 4, norm=True, seed=0)
    x = torch.randn(10, 2, 6)
    found = heads(x)
    for block in range(2):
        norm = torch.nn.BatchNorm1d(6)
        expected = norm(x[:, block]) @ heads.weight[block].T + heads.bias[block]
        torch.testing.assert_close(found[:, block], expected)


def test_separable_features_are_read_and_noise_is_not(sets):
    train, test = sets
    final = train_heads([train], test, 4, Fit(epochs=30, lr=1e-2), CPU).final
    assert final[0] == 1.0 and final[1] < 0.4


def test_the_last_epoch_and_the_best_are_told_apart(sets):
    found = train_heads([sets[0]], sets[1], 4, Fit(epochs=5, lr=1e-2), CPU)
    assert found.final == found.values[-1].tolist()
    assert found.best[1] == max(found.values[:, 1])


def test_mirror_images_are_drawn_too(sets):
    """Views that disagree on everything: the heads learn from both, or they would be perfect."""
    train, test = sets
    mirrored = Pooled(train.blocks, -train.values, train.labels)
    one, both = (
        train_heads(views, Pooled(test.blocks, -test.values, test.labels), 4, Fit(epochs=30), CPU)
        for views in ([train], [train, mirrored])
    )
    assert both.final[0] > one.final[0]


def test_small_data_are_read_in_smaller_batches():
    assert Fit(batch=1024).batch_of(1297) == 64
    assert Fit(batch=1024).batch_of(100_000) == 1024
    assert Fit(batch=1024).batch_of(40) == 32
    assert Fit(batch=1024).batch_of(20) == 20


def test_heads_get_as_many_steps_as_on_tiny_imagenet():
    """Of 1,000 steps only, the last blocks would seem better for being easier to fit."""
    paper, small = Fit().resolved(100_000), Fit().resolved(1297)
    assert (paper.epochs, paper.batch) == (50, 1024)
    assert small.epochs * (1297 // small.batch) >= 50 * (100_000 // 1024)
    assert Fit(epochs=3).resolved(1297).epochs == 3


def test_a_training_that_is_too_short_is_told():
    steps = np.linspace(0.2, 0.9, 50)[:, None]
    assert Curves(steps).rising and not Curves(np.minimum(steps, 0.6)).rising
    few = np.array([[0.1], [0.3], [0.5]])
    assert Curves(few).rising and Curves(few[:1]).rising
    assert not Curves(np.array([[0.1], [0.5], [0.5]])).rising


def test_ridge_reads_what_is_linear(sets):
    def accuracy(block):
        train, test = sets
        return probes.ridge_accuracy(train.of(block), train.classes, test.of(block), test.classes)

    assert accuracy(1) == 1.0 and accuracy(2) < 0.4


def test_of_several_labels_the_first_guess_is_to_be_one_of_theirs(sets):
    """Multi-hot labels of one each are classes; a second label of every image is right, too."""
    train, test = sets
    sides = [(one.of(1), torch.nn.functional.one_hot(one.classes)) for one in sets]
    assert probes.ridge_accuracy(*sides[0], *sides[1]) == 1.0
    wrong = sides[1][1].roll(1, 1)
    assert probes.ridge_accuracy(*sides[0], sides[1][0], wrong) == 0.0
    assert probes.ridge_accuracy(*sides[0], sides[1][0], wrong + sides[1][1]) == 1.0
    one_by_one = [train.of(2), train.classes, test.of(2), test.classes]
    noise = [train.of(2), sides[0][1], test.of(2), sides[1][1]]
    assert probes.ridge_accuracy(*noise) == probes.ridge_accuracy(*one_by_one) < 0.4


def test_neighbours_vote_by_nearness():
    """Two far ones of class 1 lose against one near of class 0, and one near wins alone."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.1]])
    y = torch.tensor([0, 1, 1, 1])
    ask = torch.tensor([[1.0, 0.1], [0.0, 2.0]])
    assert probes.knn_accuracy(x, y, ask, torch.tensor([0, 1]), k=3) == 1.0
    assert probes.knn_accuracy(x, y, ask, torch.tensor([1, 1]), k=3) == 0.5
    assert probes.knn_accuracy(x, y, ask, torch.tensor([0, 1]), k=99) == 1.0
