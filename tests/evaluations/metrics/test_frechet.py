"""The Frechet distance against closed forms and other code, and moments against numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from metric_toys import normal
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from evaluations.metrics import Gaussian, Moments, frechet_distance, trace_of_root
from evaluations.metrics.frechet import root_of

D = 6


def centered(covariance):
    return Gaussian(torch.zeros(len(covariance)), covariance)


@pytest.mark.parametrize("n", [200, 4])
def test_a_set_is_at_no_distance_from_itself(n):
    moments = Moments.of(normal(n, D))
    assert frechet_distance(moments, moments) < 1e-8


def test_a_shift_costs_its_squared_length():
    x, shift = normal(50, D), torch.arange(D).double()
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
    point, cloud = centered(torch.zeros(D, D)), Moments.of(normal(100, D))
    expected = cloud.mean.square().sum() + cloud.covariance.trace()
    assert frechet_distance(point, cloud) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(point, point) == 0.0


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [3, 0, 50, 47], [99, 1]])
def test_moments_do_not_depend_on_batching(sizes):
    x = normal(100, D) * 3 + 1e4  # a mean far above the spread, where plain sums lose digits
    moments = Moments(D)
    for part in x.split(sizes):
        moments.update(part)
    assert moments.n == 100
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)


def test_merged_halves_equal_the_whole():
    x = normal(31, D).float()
    merged = Moments.of(x[:9]).merge(Moments.of(x[9:])).merge(Moments(D))
    whole = Moments.of(x)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-14)
    assert merged.n == 31 and merged.covariance.dtype == torch.float64


def test_features_are_not_changed_by_being_counted():
    x = normal(10, D)
    copy = x.clone()
    Moments.of(x).update(x)
    assert x.equal(copy)


def test_moments_equal_numpy_to_the_last_digits():
    x = normal(100, D)
    moments = Moments(D)
    for part in x.split(7):
        moments.update(part)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_features_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        Moments.of(torch.tensor([[0.0, bad]]))


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        frechet_distance(Moments.of(normal(1, D)), Moments.of(normal(9, D)))


@pytest.mark.parametrize("n", [300, 40])  # of full rank, and not
def test_distances_equal_those_of_other_code(n):
    """ADM's and pytorch-fid's sqrtm is itself off by 1e-7 where the rank is not full."""
    x, y = normal(n, 64, seed=5), 1.3 * normal(n + 10, 64, seed=6) + 0.1
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    theirs = [fid_features_to_statistics(z) for z in (x, y)]
    oracle = fid_statistics_to_metric(*theirs, verbose=False)
    assert ours == pytest.approx(oracle["frechet_inception_distance"], rel=1e-7)
    root = scipy.linalg.sqrtm(theirs[0]["sigma"] @ theirs[1]["sigma"])
    shift = theirs[0]["mu"] - theirs[1]["mu"]
    adm = shift @ shift + np.trace(theirs[0]["sigma"] + theirs[1]["sigma"] - 2 * root.real)
    assert ours == pytest.approx(adm, rel=1e-4)


def test_rounding_does_not_count_as_spread():
    """The roots of 189 eigenvalues at rounding level would add 1e-6 to the trace."""
    x, y = normal(12, 200, seed=7), normal(12, 200, seed=8)
    a, b = Moments.of(x).covariance, Moments.of(y).covariance
    nuclear = torch.linalg.matrix_norm((x - x.mean(0)) @ (y - y.mean(0)).T, "nuc") / 11
    assert trace_of_root(a, b) == pytest.approx(nuclear.item(), rel=1e-12)


def test_the_trace_is_exact_for_every_condition_of_the_covariance():
    """Of matrices with the same eigenvectors it is the sum of the roots of products; eigenvalues
    down to 1e-11 of the largest are not rounding, and those at 1e-17 are."""
    turn = torch.linalg.qr(normal(64, 64)).Q
    one, other = torch.logspace(0, -11, 64).double(), torch.linspace(1, 2, 64).double()
    for kept in (64, 44):
        one[kept:] = 1e-17
        a, b = ((turn * values) @ turn.T for values in (one, other))
        expected = (one * other)[:kept].sqrt().sum().item()
        assert trace_of_root(a, b) == pytest.approx(expected, rel=1e-8)
        assert trace_of_root(b, a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_dependent_features_take_the_way_over_eigenvectors(seed):
    """A feature that is a sum of others: Cholesky's pivot is rounding there, of either sign."""
    x, y = normal(90, 20, seed), normal(70, 20, seed + 100)
    for z in (x, y):
        z[:, 7] = z[:, 3] + z[:, 4]
    xc, yc = x - x.mean(0), y - y.mean(0)
    nuclear = torch.linalg.matrix_norm(xc @ yc.T, "nuc") / (89 * 69) ** 0.5
    a, b = Moments.of(x).covariance, Moments.of(y).covariance
    assert root_of(a).shape == (20, 19)
    assert trace_of_root(a, b) == pytest.approx(nuclear.item(), rel=1e-12)


def test_full_rank_takes_the_short_way():
    factor = root_of(Moments.of(normal(90, 20)).covariance)
    assert factor.equal(factor.tril())


def test_stored_statistics_take_the_place_of_features():
    """ADM's references hold mu and sigma, its mu in float32."""
    x, y = Moments.of(normal(50, D)), Moments.of(normal(50, D, seed=1) + 1)
    stored = Gaussian(x.mean.float(), x.covariance)
    assert frechet_distance(stored, y) == pytest.approx(frechet_distance(x, y), rel=1e-6)
    assert frechet_distance(y, stored) == pytest.approx(frechet_distance(y, x), rel=1e-6)


@pytest.mark.parametrize(
    "stored, sentence",
    [
        (Gaussian(torch.zeros(4), torch.eye(4)), "features of 4 and of 6 dimensions"),
        (Gaussian(torch.zeros(6), torch.eye(4)), r"covariance of shape \(4, 4\) do not belong"),
        (Gaussian(torch.full((6,), torch.nan), torch.eye(6)), "mean or the covariance holds NaN"),
        (Gaussian(torch.zeros(6), torch.full((6, 6), torch.inf)), "the covariance holds NaN or"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(stored, sentence):
    with pytest.raises(ValueError, match=sentence):
        frechet_distance(stored, Moments.of(normal(9, D)))


def test_features_of_another_dimension_are_refused():
    for refused in (Moments(3).update, lambda x: Moments(3).merge(Moments.of(x))):
        with pytest.raises(ValueError, match="features of 3 and of 6 dimensions"):
            refused(normal(9, D))
    with pytest.raises(ValueError, match=r"must be \(N, D\), not of shape \(9,\)"):
        Moments.of(torch.zeros(9))
