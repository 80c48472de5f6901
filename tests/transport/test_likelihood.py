"""Likelihood of data under the flow against densities that are known."""

import math

import pytest
import torch
from transport_toys import COMBINATIONS, Gaussian, Recorder, normal

from transport import Sampler, create_transport

X = 0.8 + 0.5 * normal(4, 5, 3, 2)


@pytest.mark.parametrize("path, prediction", COMBINATIONS)
def test_likelihood_of_gaussian_data_is_the_analytic_one(path, prediction):
    """A diagonal Jacobian makes the estimate with random signs exact."""
    field = Gaussian(path, prediction)
    evaluate = Sampler(create_transport(path, prediction)).sample_ode_likelihood(rtol=1e-5)
    result = evaluate(X, field)
    exact = field.log_density(X)
    assert exact.std() > 0.5
    torch.testing.assert_close(result.log_density, exact, rtol=0, atol=0.03)
    torch.testing.assert_close(result.bits_per_dim, -result.log_density / (6 * math.log(2)))


@pytest.mark.parametrize("method", ["euler", "heun2", "rk4", "dopri5"])
def test_likelihood_works_with_every_kind_of_solver(method):
    field = Gaussian("Linear")
    sampler = Sampler(create_transport())
    result = sampler.sample_ode_likelihood(sampling_method=method, num_steps=200)(X, field)
    atol = 0.1 if method == "euler" else 1e-3
    torch.testing.assert_close(result.log_density, field.log_density(X), rtol=0, atol=atol)
    torch.testing.assert_close(result.noise, (X - 0.8) / 0.5, rtol=0, atol=atol)


def test_likelihood_averages_to_the_truth_where_pixels_depend_on_each_other():
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    identity = torch.eye(2)

    def field(x, t):
        """The velocity of data N(0, covariance) on the straight path."""
        t = t[0]
        spread = t**2 * covariance + (1 - t) ** 2 * identity
        growth = t * covariance - (1 - t) * identity
        return x @ torch.linalg.solve(spread, growth)  # the two commute

    torch.manual_seed(0)
    x = torch.tensor([[0.4, -0.6]])
    evaluate = Sampler(create_transport()).sample_ode_likelihood(
        sampling_method="heun2", num_steps=60
    )
    log_density = evaluate(x.expand(4000, 2), field).log_density
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), covariance).log_prob(x).item()
    error = log_density.std().item() / math.sqrt(4000)
    assert error > 1e-4, "the probes must matter here"
    assert log_density.mean().item() == pytest.approx(exact, abs=4 * error + 1e-3)


def test_the_probe_is_drawn_once_from_the_given_source():
    draws = []

    def ones(x):
        draws.append(x.shape)
        return torch.ones_like(x)

    model = Recorder(Gaussian("Linear"))
    Sampler(create_transport()).sample_ode_likelihood(probe=ones)(X, model)
    assert draws == [X.shape] and len(model.times) > 2


def test_likelihood_keeps_no_graph_and_leaves_parameters_alone():
    weight = torch.full((), 0.3, requires_grad=True)
    evaluate = Sampler(create_transport()).sample_ode_likelihood(
        sampling_method="euler", num_steps=5
    )
    result = evaluate(X, lambda x, t: weight * x)
    assert not any(value.requires_grad for value in result) and weight.grad is None


def test_adaptive_steps_judge_the_divergence_by_itself():
    """A field that barely moves the data but whose divergence swings fast."""

    def field(x, t):
        return 1e-7 * torch.sin(1e6 * x * torch.cos(20 * t.view(-1, 1)))

    x = torch.zeros(1, 4096)
    exact = -4096 * 0.1 * math.sin(20) / 20 - 0.5 * 4096 * math.log(2 * math.pi)
    result = Sampler(create_transport()).sample_ode_likelihood()(x, field)
    assert result.log_density.item() == pytest.approx(exact, abs=0.1)
