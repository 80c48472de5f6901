"""The Inception Score against what it must be, ADM's formula, and torch-fidelity."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metric_toys import normal
from torch_fidelity.metric_isc import isc_features_to_metric

from evaluations.metrics import inception_score


def softmax(n, classes=7, seed=0):
    return (2 * normal(n, classes, seed)).softmax(1).float()


def adm_score(preds, split_size):
    """ADM's loop over splits, restated in numpy."""
    scores = []
    for i in range(0, len(preds), split_size):
        part = preds[i : i + split_size]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    return np.mean(scores)


def test_undecided_predictions_score_one():
    assert inception_score(torch.full((20, 5), 0.2)) == pytest.approx(1, abs=1e-6)


def test_certain_predictions_of_equally_many_of_each_class_score_the_number_of_classes():
    """Their probabilities are 0 and 1, where p log p is 0 and not NaN."""
    assert inception_score(F.one_hot(torch.arange(30) % 10)) == pytest.approx(10, rel=1e-12)


def test_one_certain_class_scores_one():
    assert inception_score(F.one_hot(torch.full((30,), 3), 10)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("n", [1, 4999, 5000, 5001, 12_000])
def test_splits_are_those_of_adm(n):
    """Of 5000 rows; the last one may be short and counts as much as the others."""
    probabilities = softmax(n)
    expected = adm_score(probabilities.double().numpy(), 5000)
    assert inception_score(probabilities) == pytest.approx(expected, rel=1e-12)


def test_a_short_last_split_counts_like_the_others():
    probabilities = F.one_hot(torch.cat([torch.arange(10), torch.zeros(1).long()]), 10)
    assert inception_score(probabilities, split=10) == pytest.approx((10 + 1) / 2, rel=1e-12)


def test_the_order_of_the_file_matters():
    """Sorted by class, every split holds few classes: the score is low and wrong."""
    mixed = F.one_hot(torch.arange(100) % 10)
    ordered = F.one_hot(torch.arange(100) // 10)
    assert inception_score(mixed, split=10) == pytest.approx(10)
    assert inception_score(ordered, split=10) == pytest.approx(1)


@pytest.mark.parametrize("n, splits", [(200, 10), (150, 3)])
def test_torch_fidelity_agrees_when_it_does_not_shuffle(n, splits):
    logits = normal(n, 12)
    oracle = isc_features_to_metric(logits, splits=splits, shuffle=False)["inception_score_mean"]
    ours = inception_score(logits.softmax(1), split=n // splits)
    assert ours == pytest.approx(oracle, rel=1e-12)


def test_float32_probabilities_are_summed_in_float64():
    probabilities = softmax(20_000, classes=50)
    exact = inception_score(probabilities.double())
    assert inception_score(probabilities) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (torch.zeros(0, 10), "at least 1 rows"),
        (torch.full((3, 4), torch.nan), "NaN or infinity"),
        (torch.randn(3, 4), "must be at least 0 and sum to 1: apply softmax"),
        (torch.tensor([[1.5, -0.5]]), "must be at least 0"),
        (torch.full((4,), 0.25), r"must be \(N, D\)"),
    ],
)
def test_what_is_no_table_of_probabilities_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        inception_score(wrong)
