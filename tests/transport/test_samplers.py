"""Samplers: the whole matrix against the public code, closed forms, orders and call counts."""

import math
import warnings

import pytest
import torch
from transport_toys import COMBINATIONS, Gaussian, Recorder, golden, normal, toy_field

from models import Output, SiT
from transport import DIFFUSION_FORMS, LAST_STEPS, ODE_METHODS, PREDICTIONS, SDE_METHODS, Sampler
from transport import create_transport as create

Z = normal(9, 3, 4, 4, 4)
ODE_STEPS = {"euler": 20, "midpoint": 10, "heun2": 20, "rk4": 10, "dopri5": 5}  # as stored


def assert_public(result, stored):
    torch.testing.assert_close(result, torch.from_numpy(stored), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path, prediction", COMBINATIONS)
def test_every_ode_combination_is_finite_and_equals_the_public_result(path, prediction):
    sampler, stored = Sampler(create(path, prediction)), golden()
    for method in ODE_METHODS:
        steps = ODE_STEPS.get(method, 10)
        with warnings.catch_warnings():
            # implicit_adams says so when a step is too long for its iteration.
            warnings.filterwarnings("ignore", "Functional iteration did not converge")
            result = sampler.sample_ode(sampling_method=method, num_steps=steps)(Z, toy_field)
        assert result.shape == (1, *Z.shape) and result.isfinite().all(), method
        name = f"ode/{path}/{prediction}/{method}/{steps}"
        if name in stored:
            assert_public(result[-1], stored[name])


@pytest.mark.parametrize("path, prediction", COMBINATIONS)
def test_every_sde_combination_is_finite_and_equals_the_public_result(path, prediction):
    sampler, stored = Sampler(create(path, prediction)), golden()
    for method in SDE_METHODS:
        for form in DIFFUSION_FORMS:
            for last in LAST_STEPS:
                sample = sampler.sample_sde(
                    sampling_method=method, diffusion_form=form, last_step=last, num_steps=25
                )
                torch.manual_seed(77)
                result = sample(Z, toy_field)[-1]
                assert result.shape == Z.shape and result.isfinite().all(), (method, form, last)
                name = f"sde/{path}/{prediction}/{method}/{form}/{last}"
                if name in stored:
                    assert_public(result, stored[name])


def test_every_stored_public_result_is_compared():
    """The two tests above skip what is not stored: so the stored names must be among theirs."""
    odes = {f"ode/{p}/{q}/{m}/{n}" for p, q in COMBINATIONS for m, n in ODE_STEPS.items()}
    sdes = {
        f"sde/{p}/{q}/{method}/{form}/{last}"
        for p, q in COMBINATIONS
        for method in SDE_METHODS
        for form in DIFFUSION_FORMS
        for last in LAST_STEPS
    }
    stored = {name for name in golden() if not name.startswith("loss")}
    assert len(stored) == 40 and stored <= odes | sdes
    repaired = {name for name in sdes if "increasing-decreasing" in name}  # crashes in public
    assert len(odes | sdes - repaired) == 405


def flow_error(method, num_steps, path="Linear"):
    """Largest error against the exact map x0 -> mean + deviation x0 of Gaussian data."""
    field = Gaussian(path)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    result = Sampler(create(path)).sample_ode(sampling_method=method, num_steps=num_steps)
    return (result(z, field)[-1] - (field.mean + field.deviation * z)).abs().max().item()


@pytest.mark.parametrize("path", ["Linear", "GVP"])
@pytest.mark.parametrize("method, order", [("euler", 1), ("heun2", 2)])
def test_gaussian_flow_converges_with_the_order_of_the_solver(path, method, order):
    coarse, fine = flow_error(method, 21, path), flow_error(method, 41, path)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("path, prediction", [*COMBINATIONS, ("GVP", "data"), ("VP", "data")])
def test_gaussian_flow_is_integrated_exactly(path, prediction):
    """The flow maps quantiles to quantiles, whatever the path and the prediction."""
    field, transport = Gaussian(path, prediction), create(path, prediction)
    z = torch.linspace(-2, 2, 9).view(-1, 1)
    s, e = (transport.path.schedule(torch.tensor(t)) for t in transport.sample_interval())
    mean = [v.alpha * field.mean for v in (s, e)]
    deviation = [(v.alpha**2 * field.deviation**2 + v.sigma**2).sqrt() for v in (s, e)]
    expected = mean[1] + deviation[1] * (z - mean[0]) / deviation[0]
    result = Sampler(transport).sample_ode(rtol=1e-5)(z, field)[-1]
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", SDE_METHODS)
@pytest.mark.parametrize("form", DIFFUSION_FORMS)
def test_every_diffusion_form_has_the_marginals_of_the_data(form, method):
    # SBDM's D = (1 - t) / t is stiff at the start: it needs the finer grid.
    steps = 400 if form == "SBDM" else 80
    sample = Sampler(create()).sample_sde(
        sampling_method=method, diffusion_form=form, num_steps=steps, last_step=None
    )
    torch.manual_seed(3)
    field = Gaussian("Linear")
    result = sample(torch.randn(20_000, 1), field)[-1]
    assert result.mean().item() == pytest.approx(field.mean, abs=0.02)
    assert result.std().item() == pytest.approx(field.deviation, abs=0.025)


@pytest.mark.parametrize(
    "path, form, rate",
    [
        ("Linear", "sigma", 1),
        ("Linear", "linear", 1),
        ("Linear", "decreasing", 0),
        ("GVP", "sigma", 1),
        ("GVP", "linear", 2 / math.pi),
        ("GVP", "decreasing", 0),
    ],
)
def test_the_drift_takes_its_limit_at_the_data(path, form, rate):
    """The score is singular there, D score = -(D / sigma) noise is not: one Heun step, 0 to 1."""
    z, zero, one = Z.double(), torch.zeros(3), torch.ones(3)
    noise = {"Linear": lambda x, v: x - v, "GVP": lambda x, v: -2 / math.pi * v}[path]
    first = toy_field(z, zero) - z  # at t = 0 the noise is x, and D / sigma is 1 for all of these
    velocity = toy_field(z + first, one)
    expected = z + 0.5 * (first + velocity - rate * noise(z + first, velocity))
    sample = Sampler(create(path)).sample_sde(
        sampling_method="Heun",
        diffusion_form=form,
        last_step=None,
        num_steps=2,
        randn=torch.zeros_like,
    )
    torch.testing.assert_close(sample(z, toy_field)[-1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path, prediction", COMBINATIONS)
@pytest.mark.parametrize("method", ["dopri5", "heun2", "rk4"])
def test_reverse_undoes_sampling(path, prediction, method):
    sampler, field = Sampler(create(path, prediction)), Gaussian(path, prediction)
    settings = dict(sampling_method=method, num_steps=400, rtol=1e-5)
    data = sampler.sample_ode(**settings)(Z, field)[-1]
    back = sampler.sample_ode(**settings, reverse=True)(data, field)[-1]
    assert (data - Z).abs().max() > 0.5
    torch.testing.assert_close(back, Z, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    "method, calls", [("euler", 249), ("heun2", 498), ("midpoint", 498), ("rk4", 996)]
)
def test_ode_call_counts(method, calls):
    model = Recorder()
    Sampler(create()).sample_ode(sampling_method=method, num_steps=250)(Z[:1], model)
    assert len(model.times) == calls


@pytest.mark.parametrize(
    "method, last, calls",
    [("Euler", "Mean", 250), ("Euler", None, 249), ("Heun", "Mean", 499), ("Heun", None, 498)],
)
def test_sde_asks_the_network_once_per_stage(method, last, calls):
    model = Recorder()
    sample = Sampler(create()).sample_sde(
        sampling_method=method, diffusion_form="sigma", last_step=last, num_steps=250
    )
    sample(Z[:1], model)
    assert len(model.times) == calls


def test_sde_draws_noise_from_the_given_source_once_per_step():
    draws = []

    def silent(x):
        draws.append(x.shape)
        return torch.zeros_like(x)

    sample = Sampler(create()).sample_sde(diffusion_form="sigma", num_steps=11, randn=silent)
    assert torch.equal(sample(Z, toy_field), sample(Z, toy_field))
    assert draws == [Z.shape] * 20


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"])
def test_adaptive_solvers_never_leave_the_interval(method):
    for reverse in (False, True):
        model = Recorder()
        Sampler(create("VP", "noise")).sample_ode(sampling_method=method, reverse=reverse)(Z, model)
        assert min(model.times) >= 0 and max(model.times) <= 0.999 + 1e-6


def stiff_first(x, t):
    """A hard first sample among samples that stand still."""
    field = torch.zeros_like(x)
    field[0] = 8 * torch.cos(25 * t[0]) * x[0]
    return field


def test_easy_neighbors_do_not_loosen_the_accuracy_of_a_sample():
    sampler, z = Sampler(create()), torch.ones(64, 3)
    exact = math.exp(8 / 25 * math.sin(25))

    def error(**settings):
        result = sampler.sample_ode(rtol=1e-4, **settings)
        return [(result(z[:n], stiff_first)[-1][0, 0] - exact).abs().item() for n in (1, 64)]

    alone, among = error()
    assert among == pytest.approx(alone, rel=1e-3)
    alone, among = error(per_sample_error=False)
    assert among > 2 * alone


@pytest.mark.parametrize("method", ["euler", "heun2", "midpoint", "dopri5"])
def test_float64_state_is_kept_and_the_network_sees_float32(method):
    model = Recorder()
    sample = Sampler(create()).sample_ode(sampling_method=method, num_steps=5)
    assert sample(Z.double(), model).dtype == torch.float64
    assert set(model.dtypes) == {torch.float32}


def test_float64_state_of_an_sde_is_kept():
    model = Recorder()
    sample = Sampler(create("VP", "score")).sample_sde(num_steps=5)
    assert sample(Z.double(), model).dtype == torch.float64
    assert set(model.dtypes) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sample_ode", "sample_sde", "sample_ddpm"])
def test_a_short_start_is_integrated_in_float32(name, dtype):
    """In bfloat16 steps of 1/250 would be rounded away. The network alone rounds what it sees."""
    model, z = Recorder(), Z.to(dtype)

    def sampled(start, function):
        drawn = iter(normal(1, 250, *Z.shape))
        options = {"sample_ode": {"sampling_method": "euler"}}.get(
            name, {"randn": lambda x: next(drawn).to(x)}
        )
        return getattr(Sampler(create()), name)(num_steps=250, **options)(start, function)

    short, exact = sampled(z, model), sampled(z.double(), toy_field)
    assert short.dtype == dtype and set(model.dtypes) == {dtype}
    assert (short.double() - exact).norm() < 0.01 * exact.norm()


def test_likelihoods_of_short_data_are_float32():
    model = Recorder()
    sample = Sampler(create()).sample_ode_likelihood(sampling_method="euler", num_steps=20)
    found, exact = sample(Z.bfloat16(), model), sample(Z.bfloat16().float(), toy_field)
    assert found.log_density.dtype == torch.float32 and set(model.dtypes) == {torch.bfloat16}
    assert (found.noise - exact.noise).norm() < 0.01 * exact.noise.norm()


def test_samples_carry_no_graph():
    weight = torch.ones((), requires_grad=True)
    for sample in (Sampler(create()).sample_ode(), Sampler(create()).sample_sde(num_steps=5)):
        assert not sample(Z, lambda x, t: weight * x).requires_grad


@pytest.mark.parametrize("wrap", [lambda pred: pred, lambda pred: Output(pred, {})])
def test_model_functions_take_arguments_and_return_tensors_or_outputs(wrap):
    sample = Sampler(create()).sample_ode(sampling_method="euler", num_steps=5)
    result = sample(Z, lambda x, t, y, scale: wrap(scale * y * x), y=2.0, scale=0.5)
    torch.testing.assert_close(result[-1], Z * 1.25**4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_real_network_is_sampled(perturb, prediction):
    model = SiT(input_size=4, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    model, y = perturb(model).eval(), torch.tensor([0, 1, 3])
    sampler = Sampler(create(prediction=prediction))
    for sample in (sampler.sample_ode(num_steps=5), sampler.sample_sde(num_steps=5)):
        result = sample(Z, model, y=y)
        assert result.shape == (1, *Z.shape) and result.isfinite().all()
        # The classes matter: sample 2 here has another one.
        torch.manual_seed(0)
        first = sample(Z, model, y=y)
        torch.manual_seed(0)
        assert not torch.allclose(first[0, 0], sample(Z, model, y=y.flip(0))[0, 0])


def test_fixed_step_samplers_never_read_the_device():
    """On the meta device any read of a value raises."""
    z, sampler = Z.to("meta"), Sampler(create("VP", "noise"))
    for method in ("euler", "heun2"):
        sample = sampler.sample_ode(sampling_method=method, num_steps=4)
        assert sample(z, toy_field).shape == (1, *Z.shape)
    for method in SDE_METHODS:
        sample = sampler.sample_sde(sampling_method=method, num_steps=4)
        assert sample(z, toy_field).shape == (1, *Z.shape)


@pytest.mark.parametrize(
    "method, arguments, said",
    [
        ("sample_ode", dict(sampling_method="Euler"), "euler, heun2, heun, midpoint"),
        ("sample_ode", dict(num_steps=1), "at least 2 time points"),
        ("sample_sde", dict(sampling_method="euler"), "Euler, Heun"),
        ("sample_sde", dict(diffusion_form="sbdm"), "constant, SBDM, sigma"),
        ("sample_sde", dict(last_step="mean"), "Mean, Euler, Tweedie, None"),
        ("sample_sde", dict(last_step_size=1.0), r"\[0, 1\)"),
        ("sample_sde", dict(last_step_size=0.9995), "leaves no time before it"),
        ("sample_sde", dict(diffusion_norm=-1.0), "diffusion_norm is -1.0"),
        ("sample_ddpm", dict(num_steps=1), "num_steps is 1; at least 2"),
        ("sample_ddpm", dict(num_steps=0), "num_steps is 0; at least 2"),
        ("sample_ode_likelihood", dict(num_steps=1), "at least 2 time points"),
        ("sample_ode_likelihood", dict(sampling_method="dopri"), "dopri5"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(method, arguments, said):
    with pytest.raises(ValueError, match=said):
        getattr(Sampler(create()), method)(**arguments)
