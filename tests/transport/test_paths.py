"""Paths: derivatives, conversions, intervals of time and the loss of a prediction."""

import pytest
import torch
from transport_toys import COMBINATIONS, CONTINUOUS, SITS, Recorder, golden, normal, toy_field

from transport import DIFFUSION_FORMS, LOSS_WEIGHTS, PATHS, PREDICTIONS, Sampler, create_transport
from transport.path import convert

TIMES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


@pytest.mark.parametrize("path", CONTINUOUS)
def test_path_derivatives_match_autograd(path):
    t = TIMES.clone().requires_grad_()
    s = PATHS[path].schedule(t)
    for value, derivative in ((s.alpha, s.d_alpha), (s.sigma, s.d_sigma)):
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative.detach(), slope, rtol=1e-9, atol=1e-9)


def test_paths_know_their_names():
    assert [path.name for path in PATHS.values()] == list(PATHS)
    assert CONTINUOUS == ["Linear", "GVP", "VP"]
    assert create_transport("GVP").path.name == "GVP"


@pytest.mark.parametrize("path", CONTINUOUS)
def test_paths_end_at_data_without_noise(path):
    s = PATHS[path].schedule(torch.ones(1))
    assert s.alpha.item() == pytest.approx(1, abs=1e-6) and s.sigma.item() == 0
    assert PATHS[path].pure_noise == (PATHS[path].schedule(torch.zeros(1)).alpha.item() == 0)


@pytest.mark.parametrize("path", CONTINUOUS)
def test_every_prediction_gives_one_velocity(path):
    x1, x0 = normal(1, 25, 3).double(), normal(2, 25, 3).double()
    s = PATHS[path].at(TIMES, x1)
    x, velocity = PATHS[path].sample(x1, x0, TIMES)
    same = {"velocity": velocity, "noise": x0, "score": -x0 / s.sigma, "data": x1}
    same["v_prediction"] = s.alpha * x0 - s.sigma * x1
    for source in PREDICTIONS:
        for target in PREDICTIONS:
            converted = convert(s, x, same[source], source, target)
            torch.testing.assert_close(converted, same[target], rtol=1e-8, atol=1e-8)
        transport = create_transport(path, source)
        torch.testing.assert_close(transport.velocity(same[source], x, TIMES), velocity)
        torch.testing.assert_close(transport.noise(same[source], x, TIMES), x0)


@pytest.mark.parametrize("form", DIFFUSION_FORMS)
@pytest.mark.parametrize("path", CONTINUOUS)
def test_diffusion_is_never_negative(path, form):
    t = torch.linspace(1e-3, 1 - 1e-3, 50)
    diffusion = DIFFUSION_FORMS[form](t, PATHS[path].schedule(t), 1.3)
    assert diffusion.shape == t.shape and (diffusion >= 0).all()


def test_diffusion_forms_are_sits():
    t = torch.tensor([0.25, 0.75])
    expected = {
        "constant": (2.0, 2.0),
        "SBDM": (6.0, 2 / 3),
        "sigma": (1.5, 0.5),
        "linear": (1.5, 0.5),
        "decreasing": (0.25 * (2 * 0.5**0.5 + 1) ** 2, 0.25 * (2 * 0.5**0.5 - 1) ** 2),
        "increasing-decreasing": (1.0, 1.0),
    }
    assert expected.keys() == DIFFUSION_FORMS.keys()
    for form, values in expected.items():
        diffusion = DIFFUSION_FORMS[form](t, PATHS["Linear"].schedule(t), 2.0)
        torch.testing.assert_close(diffusion, torch.tensor(values))


@pytest.mark.parametrize("path", CONTINUOUS)
def test_sbdm_diffusion_is_that_of_the_forward_process(path):
    s = PATHS[path].schedule(TIMES)
    expected = s.d_alpha / s.alpha * s.sigma**2 - s.sigma * s.d_sigma
    torch.testing.assert_close(DIFFUSION_FORMS["SBDM"](TIMES, s, 2.0), 2 * expected)


def stored_losses():
    return sorted(name[: -len("/loss")] for name in golden() if name.endswith("/loss"))


@pytest.mark.parametrize("name", stored_losses())
def test_training_losses_equal_the_public_ones(name):
    _, path, prediction, weight = name.split("/")
    stored = {key: torch.from_numpy(golden()[f"{name}/{key}"]) for key in ("loss", "x0", "t")}
    transport = create_transport(path, prediction, None if weight == "None" else weight)
    losses = transport.training_losses(
        toy_field, normal(5, 6, 4, 4, 4), x0=stored["x0"], t=stored["t"]
    )
    torch.testing.assert_close(losses["loss"], stored["loss"], rtol=2e-6, atol=0)
    assert losses["pred"].shape == (6, 4, 4, 4)


def test_losses_drawn_alone_use_times_of_the_training_interval():
    model = Recorder(lambda x, t: x)
    torch.manual_seed(0)
    transport = create_transport("VP", "noise", train_eps=0.2)
    for _ in range(50):
        transport.training_losses(model, normal(5, 2, 4))
    assert 0.5 < max(model.times) <= 0.8 and min(model.times) < 0.3


@pytest.mark.parametrize("prediction", SITS)
@pytest.mark.parametrize("weight", LOSS_WEIGHTS)
def test_loss_of_the_truth_is_zero(prediction, weight):
    transport = create_transport("GVP", prediction, weight)
    x1, x0, t = normal(1, 5, 3), normal(2, 5, 3), torch.linspace(0.1, 0.9, 5)
    _, velocity = transport.path.sample(x1, x0, t)
    sigma = transport.path.at(t, x1).sigma
    truth = {"velocity": velocity, "noise": x0, "score": -x0 / sigma}[prediction]
    assert transport.loss(truth, x1, x0, t).max() < 1e-9
    assert transport.loss(truth + 1, x1, x0, t).min() > 1e-3


def test_loss_of_bfloat16_is_computed_in_float32():
    pred, x1, x0 = (normal(seed, 5, 64).bfloat16() for seed in (1, 2, 3))
    t = torch.linspace(0.1, 0.9, 5)
    loss = create_transport().loss(pred, x1, x0, t)
    expected = (pred.double() - (x1.double() - x0.double())).square().mean(1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_masked_positions_do_not_count():
    transport = create_transport()
    pred, x1, x0, t = normal(1, 2, 3, 8), normal(2, 2, 3, 8), normal(3, 2, 3, 8), torch.rand(2)
    mask = torch.zeros(2, 1, 8, dtype=torch.bool)
    mask[0, :, :5], mask[1, :, :2] = True, True
    loss = transport.loss(pred, x1, x0, t, mask)
    for i, length in enumerate((5, 2)):
        cut = [v[i : i + 1, :, :length] for v in (pred, x1, x0)]
        torch.testing.assert_close(loss[i : i + 1], transport.loss(*cut, t[i : i + 1]))
    torch.testing.assert_close(
        transport.loss(pred, x1, x0, t, torch.ones_like(mask)), transport.loss(pred, x1, x0, t)
    )
    assert transport.loss(pred, x1, x0, t, torch.zeros_like(mask)).tolist() == [0, 0]


@pytest.mark.parametrize("path, prediction", COMBINATIONS)
def test_default_epsilons_are_sits(path, prediction):
    transport = create_transport(path, prediction)
    simple = path != "VP" and prediction == "velocity"
    expected = (0.0, 0.0) if simple else (1e-5 if path == "VP" else 1e-3, 1e-3)
    assert (transport.train_eps, transport.sample_eps) == expected


@pytest.mark.parametrize("path, prediction", COMBINATIONS)
def test_epsilons_of_the_user_are_honoured(path, prediction):
    transport = create_transport(path, prediction, train_eps=0.03, sample_eps=0.02)
    times = transport.times(torch.tensor([0.0, 1.0]))
    start = 0 if path == "VP" else 1
    torch.testing.assert_close(times, torch.tensor([0.03 * start, 0.97]))

    model, z = Recorder(), normal(9, 2, 4)
    Sampler(transport).sample_ode(sampling_method="rk4", num_steps=4)(z, model)
    assert min(model.times) == pytest.approx(0.02 * start)
    assert max(model.times) == pytest.approx(0.98)

    model = Recorder()
    sde = dict(sampling_method="Heun", diffusion_form="sigma", num_steps=4)
    Sampler(transport).sample_sde(**sde, last_step=None)(z, model)
    assert min(model.times) == pytest.approx(0.02 * start)
    assert max(model.times) == pytest.approx(0.98)


def test_sampling_backs_off_only_where_a_formula_divides_by_zero():
    def span(transport, **sde):
        model = Recorder()
        Sampler(transport).sample_sde(num_steps=3, **sde)(normal(9, 2, 4), model)
        return min(model.times), max(model.times)

    plain = create_transport()
    assert span(plain, diffusion_form="sigma") == pytest.approx((0, 0.96))
    assert span(plain, diffusion_form="SBDM") == pytest.approx((1e-3, 0.96))
    assert span(create_transport("VP"), diffusion_form="SBDM") == pytest.approx((0, 0.96))
    heun = dict(diffusion_form="sigma", last_step=None, sampling_method="Heun")
    assert span(plain, **heun) == pytest.approx((0, 1))
    assert plain.sample_interval() == (0, 1)
    assert create_transport(prediction="noise", sample_eps=0.0).sample_interval() == (1e-3, 1)
    assert create_transport("VP", "noise", sample_eps=0.0).sample_interval() == (0, 0.999)
    assert create_transport("VP", sample_eps=0.0).sample_interval() == (0, 1)


@pytest.mark.parametrize("path, prediction", COMBINATIONS)
def test_without_epsilons_every_ode_and_sde_stays_finite(path, prediction):
    sampler = Sampler(create_transport(path, prediction, sample_eps=0.0))
    assert sampler.sample_ode(sampling_method="heun2")(normal(9, 2, 4), toy_field).isfinite().all()
    for form in DIFFUSION_FORMS:
        for last in (None, "Mean", "Tweedie"):
            sample = sampler.sample_sde(
                sampling_method="Heun",
                diffusion_form=form,
                last_step=last,
                last_step_size=0.0,
                num_steps=20,
            )
            assert sample(normal(9, 2, 4), toy_field).isfinite().all(), (form, last)


@pytest.mark.parametrize(
    "arguments, listed",
    [
        (dict(path_type="linear"), "Linear, GVP, VP"),
        (dict(prediction="v"), "velocity, noise, score"),
        (dict(loss_weight="none"), "None, velocity, likelihood"),
        (dict(train_eps=0.7), "train_eps"),
        (dict(sample_eps=-1e-3), "sample_eps"),
    ],
)
def test_unknown_names_and_impossible_epsilons_are_refused(arguments, listed):
    with pytest.raises(ValueError, match=listed):
        create_transport(**arguments)
