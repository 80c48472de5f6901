"""Precision and recall by hand, as ADM computes them, and as torch-fidelity does."""

import numpy as np
import pytest
import torch
from metric_toys import inception_like, normal
from torch_fidelity.metric_prc import calculate_precision_recall_full

from evaluations.metrics import precision_recall
from evaluations.metrics.manifold import half_distances, squared_distances

HALVES = pytest.mark.parametrize("half", [False, True])


def points(*values):
    """One dimension."""
    return torch.tensor(values, dtype=torch.float32)[:, None]


def adm(reference, samples, k, distances):
    """ADM's ManifoldEstimator restated in numpy, as one block."""
    radii = [np.partition(distances(x, x), k, axis=1)[:, k] for x in (reference, samples)]
    across = distances(reference, samples)
    precision = (across <= radii[0][:, None]).any(0).mean()
    return precision, (across <= radii[1]).any(1).mean()


def adm_distances(u, v, dtype=np.float32):
    """Its DistanceBlock: every operation is rounded to `dtype`; sums are kept in float32."""
    u, v = u.astype(dtype), v.astype(dtype)
    norms = [np.square(x).sum(1, dtype=np.float32).astype(dtype) for x in (u, v)]
    inner = (u.astype(np.float32) @ v.astype(np.float32).T).astype(dtype)
    d = norms[0][:, None] - dtype(2) * inner + norms[1]
    return np.maximum(d, dtype(0)).astype(np.float32)


@HALVES
def test_a_set_covers_itself(half):
    x = inception_like(200)
    assert precision_recall(x, x, half=half) == (1, 1)


@HALVES
def test_sets_far_apart_do_not_meet(half):
    x = inception_like(100)
    assert precision_recall(x, x + 3, half=half) == (0, 0)


@HALVES
def test_precision_is_high_and_recall_low_for_a_tight_cluster_inside(half):
    """And the other way round for samples that spread too far: the two are not swapped."""
    wide, tight = normal(400, 8), 0.1 * normal(400, 8, seed=1)
    precision, recall = precision_recall(wide, tight, half=half)
    assert precision > 0.95 and recall < 0.05
    assert precision_recall(tight, wide, half=half) == (recall, precision)


@HALVES
def test_balls_are_closed_and_a_point_is_its_own_first_neighbor(half):
    """With k = 1 the radii of 0, 1, 3 are 1, 1, 2: balls [-1, 1], [0, 2], [1, 5]. The radii of the
    samples -1, 5, 6 are 6, 1, 1, with balls [-7, 5], [4, 6] and [5, 7]."""
    reference, samples = points(0, 1, 3), points(-1, 5, 6)
    assert precision_recall(reference, samples, k=1, half=half) == (pytest.approx(2 / 3), 1)
    assert precision_recall(points(0, 1, 3), points(-1.25, 5.25, 6), k=1, half=half).precision == 0


@HALVES
def test_points_that_lie_together_have_balls_of_no_size(half):
    reference, samples = points(0, 0, 5, 9), points(0, 1, 5, 5)
    precision, recall = precision_recall(reference, samples, k=1, half=half)
    # Radii of the reference: 0, 0, 4, 4. Of the samples: 1, 1, 0, 0.
    assert (precision, recall) == (1, 0.75)


def test_float32_equals_torch_fidelity():
    reference, samples = inception_like(300), inception_like(500, seed=10, spread=0.8)
    ours = precision_recall(reference, samples)
    oracle = calculate_precision_recall_full(samples, reference)  # (generated, real)
    assert ours == pytest.approx(oracle, abs=1e-7)  # theirs are means in float32
    assert 0.3 < ours.precision < 1 and 0.3 < ours.recall < 1 and ours.precision != ours.recall


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("half, dtype", [(False, np.float32), (True, np.float16)])
def test_both_precisions_equal_adms_formulas(half, dtype, k):
    reference, samples = inception_like(300, 64), inception_like(400, 64, seed=10, spread=0.8)
    expected = adm(reference.numpy(), samples.numpy(), k, lambda u, v: adm_distances(u, v, dtype))
    assert precision_recall(reference, samples, k=k, half=half) == expected


def test_every_step_of_half_precision_is_rounded():
    u, v = inception_like(50), inception_like(60, seed=10)
    half = half_distances(u, v)
    assert half.dtype == torch.float32 and half.equal(half.half().float())
    np.testing.assert_array_equal(half, adm_distances(u.numpy(), v.numpy(), np.float16))
    # What rounding the result alone would give: closer, and not what ADM computes.
    once = squared_distances(u, v)
    assert (half - once).abs().max() > 2 * (once.half().float() - once).abs().max()


def test_half_precision_raises_both_numbers_a_little():
    """By about 0.001 and 0.0025 in published numbers, because rounding makes ties."""
    gaps = []
    for seed in (0, 100, 200):
        sets = inception_like(1500, seed=seed), inception_like(3000, seed=seed + 50, spread=0.9)
        full, half = precision_recall(*sets), precision_recall(*sets, half=True)
        gaps.append((half.precision - full.precision, half.recall - full.recall))
    precision, recall = np.mean(gaps, axis=0)
    assert 0.0003 < precision < 0.003 and 0.0005 < recall < 0.005


def test_a_block_that_overflows_falls_back_to_the_features_before_rounding():
    """Squared norms over 65504 have no float16. The features need more digits than it has."""
    u = 100 + normal(40, 16).float() / 64
    assert u.square().sum(1).min() > 65504
    block = half_distances(u, u)
    np.testing.assert_array_equal(block, squared_distances(u, u))
    assert not block.equal(squared_distances(u.half().float(), u.half().float()))


def test_only_blocks_that_overflow_are_done_in_float32():
    """One far point spoils its own blocks; the others keep ADM's float16."""
    x = inception_like(40)
    x[30:] *= 20
    u, v = x[:20], x[20:]
    assert half_distances(u, u).equal(torch.from_numpy(adm_distances(*[u.numpy()] * 2, np.float16)))
    assert half_distances(u, v).equal(squared_distances(u, v))
    blocks, whole = (precision_recall(x, x, half=True, rows=rows) for rows in (20, 40))
    assert blocks == whole == (1, 1)


def test_products_that_overflow_make_points_equal_as_in_adm():
    """Norms of 40000 are finite in float16, 2 u v is not: max(-inf, 0) counts as finite."""
    u, v = torch.full((1, 4), 100.0), torch.full((1, 4), 99.0)
    assert squared_distances(u, v).item() == 4
    assert half_distances(u, v).item() == 0


@HALVES
@pytest.mark.parametrize("rows", [7, 64, 150, 10_000])
def test_blocks_do_not_change_the_numbers(rows, half):
    reference, samples = inception_like(130), inception_like(150, seed=10)
    expected = precision_recall(reference, samples, half=half, rows=1000)
    assert precision_recall(reference, samples, half=half, rows=rows) == expected


def test_no_more_than_a_few_blocks_are_held(monkeypatch):
    """Of 600 x 800 distances in blocks of 50 x 50, none that is larger is ever computed."""
    sizes = []

    def spy(u, v):
        sizes.append((len(u), len(v)))
        return squared_distances(u, v)

    monkeypatch.setattr("evaluations.metrics.manifold.squared_distances", spy)
    precision_recall(inception_like(600, 8), inception_like(800, 8), rows=50)
    assert set(sizes) == {(50, 50)} and len(sizes) == 12 * 12 + 16 * 16 + 12 * 16


def test_distances_are_computed_without_tf32_and_leave_the_run_as_it_was(monkeypatch):
    seen = []

    def spy(u, v):
        seen.append(torch.get_float32_matmul_precision())
        return squared_distances(u, v)

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # as a training run has it
        monkeypatch.setattr("evaluations.metrics.manifold.squared_distances", spy)
        precision_recall(points(0, 1), points(0, 1), k=1)
        assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "reference, samples, sentence",
    [
        (normal(3, 2), normal(9, 2), "reference features: at least 4 rows are needed, not 3"),
        (normal(9, 2), normal(3, 2), "sample features: at least 4 rows are needed, not 3"),
        (normal(9, 2), normal(9, 3), "features of 2 and of 3 dimensions"),
        (normal(9, 2), normal(9, 2) * torch.nan, "sample features hold NaN or infinity"),
        (normal(9, 2) / 0, normal(9, 2), "reference features hold NaN or infinity"),
        (normal(9, 2), normal(9, 2)[0], r"sample features must be \(N, D\)"),
    ],
)
def test_features_that_make_no_manifold_are_refused(reference, samples, sentence):
    with pytest.raises(ValueError, match=sentence):
        precision_recall(reference, samples)
