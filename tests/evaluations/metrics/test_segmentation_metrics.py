"""Mean IoU by hand."""

import pytest
import torch

from evaluations.metrics.segmentation import IGNORED, confusion, intersection_over_union, mean_iou

TARGET = torch.tensor([[0, 0, 1], [1, 2, IGNORED]])
CALLED = torch.tensor([[0, 1, 1], [1, 0, 2]])


def test_intersection_over_union_by_hand():
    """Class 0: 1 of {0, 0, called 0}; class 1: 2 of 3; class 2: none of 1, the ignored one is not
    counted."""
    found = intersection_over_union(confusion(TARGET, CALLED, 3))
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert mean_iou(confusion(TARGET, CALLED, 3)) == pytest.approx(1 / 3)


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean():
    counts = confusion(TARGET, CALLED, 5)
    assert intersection_over_union(counts).isnan().tolist() == [False] * 3 + [True] * 2
    assert mean_iou(counts) == pytest.approx(1 / 3)


def test_a_class_that_is_only_predicted_counts_as_0():
    counts = confusion(torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 0, 1]), 2)
    assert mean_iou(counts) == pytest.approx((3 / 4 + 0) / 2)


def test_images_without_a_pixel_that_counts_give_0():
    ignored = torch.full((3, 3), IGNORED)
    assert mean_iou(confusion(ignored, torch.zeros_like(ignored), 3)) == 0


def test_confusion_adds_up_over_images():
    whole = confusion(TARGET, CALLED, 3)
    assert (confusion(TARGET[0], CALLED[0], 3) + confusion(TARGET[1], CALLED[1], 3)).equal(whole)
