"""CKA, debiased CKA and CKNNA against their definitions on whole kernels."""

import pytest
import torch

from evaluations.metrics.alignment import CKA, CKNNA, DebiasedCKA


def cka(x, y):
    return CKA(x).to(CKA(y))


def debiased_cka(x, y):
    return DebiasedCKA(x).to(DebiasedCKA(y))


def cknna(x, y, k=10):
    return CKNNA(x, k).to(CKNNA(y, k))


def features(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pair():
    x = features(40, 6, 0)
    return x, x @ features(6, 9, 1) + 0.5 * features(40, 9, 2) + 3.0


def hsic(k, l):  # noqa: E741
    """Song's unbiased estimate from kernels whose diagonals are 0, term by term."""
    n, ones = len(k), torch.ones(len(k), dtype=k.dtype)
    return (
        torch.trace(k @ l)
        + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ k @ l @ ones)
    ) / (n * (n - 3))


def kernel(x, *, diagonal):
    k = x @ x.T
    return k if diagonal else k - torch.diag(k.diagonal())


def test_cka_equals_the_kernel_form(pair):
    n = len(pair[0])
    center = torch.eye(n, dtype=torch.float64) - 1 / n
    k, l = (center @ kernel(x, diagonal=True) @ center for x in pair)  # noqa: E741
    expected = torch.trace(k @ l) / (torch.trace(k @ k) * torch.trace(l @ l)).sqrt()
    assert cka(*pair) == pytest.approx(expected.item(), rel=1e-12)


def test_debiased_cka_equals_its_definition_without_centring(pair):
    k, l = (kernel(x, diagonal=False) for x in pair)  # noqa: E741
    expected = hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
    assert debiased_cka(*pair) == pytest.approx(expected.item(), rel=1e-9)


def test_cknna_equals_its_definition(pair):
    k_near = 5
    units = [x / x.norm(dim=1, keepdim=True) for x in pair]
    kernels = [kernel(x, diagonal=False) for x in units]
    near = torch.zeros(2, 40, 40, dtype=torch.bool)
    for side, x in enumerate(units):
        for i in range(40):
            order = sorted((j for j in range(40) if j != i), key=lambda j: -float(x[i] @ x[j]))
            near[side, i, order[:k_near]] = True

    def masked(a, b):
        mask = near[a] & near[b]
        return hsic(kernels[a] * mask, kernels[b] * mask)

    expected = masked(0, 1) / (masked(0, 0) * masked(1, 1)).sqrt()
    assert cknna(*pair, k=k_near) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("metric", [cka, debiased_cka, cknna])
def test_rotation_and_scale_change_nothing_and_a_network_is_like_itself(metric, pair):
    x, y = pair
    turned = 7 * x @ torch.linalg.qr(features(6, 6, 3)).Q
    assert metric(turned, y) == pytest.approx(metric(x, y), rel=1e-4)
    assert metric(x, turned) == pytest.approx(1, abs=1e-4)


def test_a_shift_of_all_features_is_no_likeness(pair):
    x, y = pair
    assert cka(x + 100, y - 50) == pytest.approx(cka(x, y), rel=1e-8)
    assert debiased_cka(x + 100, y - 50) == pytest.approx(debiased_cka(x, y), rel=1e-8)


def test_independent_features_have_nothing_in_common_only_when_debiased():
    """Of more dimensions than images, the biased value is most of the way to 1."""
    x, y = features(300, 400, 0), features(300, 400, 1)
    assert cka(x, y) > 0.5
    assert abs(debiased_cka(x, y)) < 0.02


def test_too_few_images_are_refused():
    for metric in (cka, debiased_cka, cknna):
        with pytest.raises(ValueError, match="3 images are too few"):
            metric(features(3, 2, 0), features(3, 2, 1))


def test_features_that_are_all_equal_are_like_nothing():
    x, equal = features(8, 3, 0), torch.ones(8, 3, dtype=torch.float64)
    assert cka(x, equal) == 0 and debiased_cka(x, equal) == 0
