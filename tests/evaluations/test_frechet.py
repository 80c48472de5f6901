"""The Frechet distance against closed forms, and moments against numpy."""

import numpy as np
import pytest
import torch

from evaluations.frechet import Moments, frechet_distance

D = 6


def normal(n, d=D, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(mean, covariance):
    """Moments with exactly this mean and covariance."""
    moments = Moments(len(mean))
    moments.n, moments.mean, moments.scatter = 11, mean.double(), covariance.double() * 10
    return moments


def centered(covariance):
    return exact(torch.zeros(len(covariance)), covariance)


@pytest.mark.parametrize("n", [200, 4])
def test_a_set_is_at_no_distance_from_itself(n):
    moments = Moments.of(normal(n))
    assert frechet_distance(moments, moments) < 1e-8


def test_a_shift_costs_its_squared_length():
    x, shift = normal(50), torch.arange(D).double()
    distance = frechet_distance(Moments.of(x), Moments.of(x + shift))
    assert distance == pytest.approx(shift.square().sum().item(), rel=1e-10)


def test_scaled_gaussians_are_apart_by_dimension_times_squared_difference():
    one, other = centered(9 * torch.eye(D)), centered(4 * torch.eye(D))
    assert frechet_distance(one, other) == pytest.approx(D * (3 - 2) ** 2, rel=1e-12)


def test_diagonal_gaussians_compare_axis_by_axis():
    a, b = torch.arange(1, D + 1).double(), torch.arange(D, 0, -1).double()
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(centered(a.diag()), centered(b.diag())) == pytest.approx(expected)


def test_rotated_gaussians_in_the_plane_follow_the_determinant_formula():
    """tr sqrt(AB) = sqrt(tr AB + 2 sqrt(det AB)) for 2x2 matrices."""
    c, s = np.cos(0.7), np.sin(0.7)
    turn = torch.tensor([[c, -s], [s, c]])
    a = torch.tensor([[3.0, 0.0], [0.0, 0.2]]).double()
    b = turn @ torch.tensor([[1.5, 0.4], [0.4, 0.9]]).double() @ turn.T
    product = a @ b
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    expected = (a.trace() + b.trace() - 2 * root).item()
    assert frechet_distance(centered(a), centered(b)) == pytest.approx(expected, rel=1e-10)


def test_fewer_samples_than_dimensions_give_the_nuclear_norm_value():
    """tr sqrt(AB) is the nuclear norm of X Y' / sqrt((n-1)(m-1)) for centered features X and Y."""
    x, y = normal(30, 64, seed=1), normal(20, 64, seed=2) + 0.3
    xc, yc = x - x.mean(0), y - y.mean(0)
    nuclear = torch.linalg.matrix_norm(xc @ yc.T, "nuc") / (29 * 19) ** 0.5
    traces = xc.square().sum() / 29 + yc.square().sum() / 19
    expected = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * nuclear
    distance = frechet_distance(Moments.of(x), Moments.of(y))
    assert distance == pytest.approx(expected.item(), rel=1e-10)


def test_the_distance_is_symmetric_also_when_rank_deficient():
    for n in (100, 5):
        a, b = Moments.of(normal(n, 12, seed=3)), Moments.of(2 * normal(40, 12, seed=4) + 1)
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_a_point_is_apart_from_a_cloud_by_the_clouds_spread():
    point, cloud = centered(torch.zeros(D, D)), Moments.of(normal(100))
    expected = cloud.mean.square().sum() + cloud.covariance.trace()
    assert frechet_distance(point, cloud) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(point, point) == 0.0


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [3, 0, 50, 47], [99, 1]])
def test_moments_do_not_depend_on_batching(sizes):
    x = normal(100) * 3 + 1e4  # a mean far above the spread, where plain sums lose digits
    moments = Moments(D)
    for part in x.split(sizes):
        moments.update(part)
    assert moments.n == 100
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)


def test_merged_halves_equal_the_whole():
    x = normal(31).float()
    merged = Moments.of(x[:9]).merge(Moments.of(x[9:])).merge(Moments(D))
    whole = Moments.of(x)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-14)
    assert merged.n == 31 and merged.covariance.dtype == torch.float64


def test_features_are_not_changed_by_being_counted():
    x = normal(10)
    copy = x.clone()
    Moments.of(x).update(x)
    assert x.equal(copy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_features_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        Moments.of(torch.tensor([[0.0, bad]]))


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        frechet_distance(Moments.of(normal(1)), Moments.of(normal(9)))
