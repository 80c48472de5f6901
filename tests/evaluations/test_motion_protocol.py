"""R-precision, matching score, diversity and intervals by hand, and the one Frechet distance."""

import math

import pytest
import torch

from evaluations import metrics
from evaluations.motion import protocol
from evaluations.motion.protocol import (
    Embedded,
    diversity,
    matching_score,
    mean_of,
    r_precision,
    scores,
)

CHANCE = torch.tensor([1, 2, 3]).double() / 32


def test_perfect_embeddings_are_always_found():
    texts = torch.randn(320, 16)
    assert r_precision(texts, texts).tolist() == [1, 1, 1]


def test_random_embeddings_are_found_by_chance():
    found = r_precision(torch.randn(6400, 16), torch.randn(6400, 16))
    torch.testing.assert_close(found, CHANCE, atol=0.012, rtol=0)


def test_a_collapsed_evaluator_finds_by_chance():
    """All distances are equal, and none is the nearest."""
    assert r_precision(torch.ones(64, 16), torch.ones(64, 16)).equal(CHANCE)


def test_retrieval_is_among_the_32_of_a_batch():
    texts = torch.randn(32, 16)
    assert r_precision(texts.repeat(3, 1), texts.repeat(3, 1)).tolist() == [1, 1, 1]


def test_the_true_motion_is_ranked_among_its_batch():
    """On a line: caption i lies nearest to motion i + 1, then to i + 2 or its own, then the other.

    Captions 30 and 31 have fewer motions beyond them."""
    motions = torch.arange(32.0)[:, None]
    found = r_precision(motions + 1.25, motions)
    expected = torch.tensor([1, 2, 32]) / 32  # first: 31; second: 30 too; third: all
    torch.testing.assert_close(found, expected.double())


def test_captions_look_for_motions_and_not_the_other_way():
    """Motion 0 lies at caption 10, which now finds it first; motion 10 still has caption 10."""
    texts = torch.arange(32.0)[:, None]
    motions = texts + 0.3
    motions[0] = 10.1
    assert r_precision(texts, motions).tolist() == [30 / 32, 31 / 32, 31 / 32]
    assert r_precision(motions, texts).tolist() == [31 / 32, 31 / 32, 31 / 32]


def test_the_matching_score_is_the_mean_distance_of_true_pairs():
    texts = torch.zeros(32, 2)
    motions = torch.tensor([[3.0, 4.0]] * 16 + [[0.0, 1.0]] * 16)
    assert matching_score(texts, motions) == pytest.approx((5 + 1) / 2)


def test_diversity_is_the_mean_distance_of_300_random_pairs():
    motions = torch.zeros(4000, 4)
    motions[2000:] = 1  # half of all pairs are 2 apart
    values = [diversity(motions, 0, "pairs", i) for i in range(200)]
    assert len(set(values)) > 10 and diversity(motions, 0, "pairs", 3) == values[3]
    assert all(value * 300 / 2 == pytest.approx(round(value * 300 / 2)) for value in values)
    assert sum(values) / 200 == pytest.approx(1, abs=0.02)


def test_diversity_of_fewer_motions_is_of_as_many_pairs():
    value = diversity(torch.eye(8), 0)
    assert value * 8 / math.sqrt(2) == pytest.approx(round(value * 8 / math.sqrt(2)))
    assert value > 0


def test_motion_fid_is_the_frechet_distance_of_images():
    from evaluations.images import scores as images

    assert protocol.frechet_distance is images.frechet_distance is metrics.frechet_distance


def test_a_set_is_at_no_distance_from_itself():
    motions = torch.randn(640, 8)
    one = scores(Embedded(motions, motions), motions, "fid", 0)
    assert one["fid"] == pytest.approx(0, abs=1e-9) and one["matching_score"] == 0
    assert list(one) == ["r_precision_1", "r_precision_2", "r_precision_3", "fid",
                         "matching_score", "diversity"]  # fmt: skip
    shifted = scores(Embedded(motions, motions + 2), motions, "fid", 0)
    assert shifted["fid"] == pytest.approx(8 * 4)


def test_replications_are_consecutive_parts():
    x = torch.arange(96.0)[:, None]
    parts = Embedded(x, -x).replications(32)
    assert [part.texts[0].item() for part in parts] == [0, 32, 64]
    assert all(part.motions.equal(-part.texts) for part in parts)


def test_intervals_are_the_fields():
    """1.96 standard deviations, of divisor n, over sqrt(n): numpy's, as T2M prints them."""
    mean, reach, n = mean_of([0.7, 0.72, 0.74, 0.72])
    assert (mean, n) == (pytest.approx(0.72), 4)
    assert reach == pytest.approx(1.96 * math.sqrt(0.0008 / 4) / 2)


def test_one_replication_has_no_interval():
    assert mean_of([0.5]) == (0.5, None, 1)
