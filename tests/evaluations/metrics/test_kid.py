"""The kernel distance: unbiased, its blocks disjoint, its interval honest."""

import numpy as np
import pytest
import torch
from metric_toys import normal
from torch_fidelity.metric_kid import kernel_poly, mmd2

from evaluations.metrics import kernel_distance
from evaluations.metrics.kid import blocks, unbiased_mmd


def test_one_block_equals_torch_fidelity():
    x, y = normal(60, 9).numpy(), 1.2 * normal(60, 9, seed=1).numpy() + 0.1
    kernels = [
        kernel_poly(
            *pair, kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1
        )
        for pair in ((x, x), (x, y), (y, y))
    ]
    ours = unbiased_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert ours.item() == pytest.approx(mmd2(*kernels), rel=1e-12)


def test_the_estimate_by_hand():
    """D = 1: k(x, y) = (x y + 1)^3. No point meets itself, and the sets may differ in size."""
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [-1.0]])
    within_x, within_y = (1 + 1 + 27) / 3, 0
    across = (1 + 1 + 8 + 0 + 27 - 1) / 6
    assert unbiased_mmd(x, y).item() == pytest.approx(within_x + within_y - 2 * across)


def test_the_estimate_is_unbiased_for_small_blocks():
    """2000 pairs of 5 points from one distribution; a biased estimate would be 4 above 0."""
    draws = normal(20_000, 4, seed=2).view(2000, 2, 5, 4)
    estimates = torch.stack([unbiased_mmd(x, y) for x, y in draws])
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean()) < 3 * error and error < 0.05


def test_equal_distributions_are_at_no_distance_and_shifted_ones_are():
    x, y = normal(2000, 8), normal(2000, 8, seed=1)
    same, apart = kernel_distance(x, y), kernel_distance(x, y + 0.3)
    assert same.low < 0 < same.high
    assert 0 < apart.low < apart.value < apart.high
    assert kernel_distance(x, y + 0.6).low > apart.high


def test_the_interval_holds_the_true_value_about_as_often_as_it_says():
    """Of 200 experiments of 10 blocks each."""
    truth = 0.0  # the expectation of the unbiased estimate where both sides are one distribution
    draws = iter(normal(200 * 200, 4).split(100))
    intervals = [kernel_distance(next(draws), next(draws)) for _ in range(200)]
    inside = np.mean([low <= truth <= high for _, low, high in intervals])
    assert 0.92 <= inside <= 0.99


@pytest.mark.parametrize(
    "reference, samples, count, sizes",
    [
        (10_000, 10_000, 10, (1000, 1000)),
        (5500, 50_000, 10, (550, 1000)),  # 10 blocks at least, and no block over 1000
        (15_500, 15_500, 16, (968, 968)),
        (199, 797, 10, (19, 79)),
        (7, 9, 3, (2, 3)),  # 2 rows at least
        (4, 4, 2, (2, 2)),
    ],
)
def test_blocks_shrink_so_that_there_are_ten(monkeypatch, reference, samples, count, sizes):
    seen = []

    def spy(x, y):
        seen.append((len(x), len(y)))
        return unbiased_mmd(x, y)

    monkeypatch.setattr("evaluations.metrics.kid.unbiased_mmd", spy)
    kernel_distance(normal(reference, 1), normal(samples, 1))
    assert seen == [sizes] * count


def test_blocks_are_disjoint_and_drawn_from_the_whole_set():
    x = torch.arange(1000.0)[:, None]
    drawn = torch.cat(blocks(x, 10, 50, torch.Generator().manual_seed(0)))
    assert len(drawn.unique()) == len(drawn) == 500
    assert drawn.max() > 900 and not drawn.equal(drawn.sort(0).values)


def test_the_seed_decides_the_blocks_and_nothing_else_does():
    x, y = normal(300, 4), normal(300, 4, seed=1)
    first = kernel_distance(x, y)
    torch.manual_seed(5)
    assert kernel_distance(x, y) == first
    assert kernel_distance(x, y, seed=1) != first
    assert kernel_distance(x.float(), y.float()).value == pytest.approx(first.value, rel=1e-4)


@pytest.mark.parametrize(
    "reference, samples, sentence",
    [
        (normal(3, 2), normal(9, 2), "reference features: at least 4 rows are needed, not 3"),
        (normal(9, 2), normal(9, 3), "features of 2 and of 3 dimensions"),
        (normal(9, 2), normal(9, 2) / 0, "sample features hold NaN or infinity"),
    ],
)
def test_features_that_make_no_blocks_are_refused(reference, samples, sentence):
    with pytest.raises(ValueError, match=sentence):
        kernel_distance(reference, samples)
