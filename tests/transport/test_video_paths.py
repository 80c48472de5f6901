"""The objectives of Wan and CogVideoX against diffusers' schedulers."""

import pytest
import torch
from transport_toys import normal, toy_field

from transport import PATHS, Sampler, create_transport
from transport.path import tick_of
from transport.transport import shifted, time_of

diffusers = pytest.importorskip("diffusers")

TICKS = torch.tensor([0, 1, 20, 500, 998, 999])


def cogvideox(**settings):
    """As scheduler/scheduler_config.json of CogVideoX-2b has it."""
    return diffusers.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
        rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing", **settings,
    )  # fmt: skip


def test_cogvideox_clock_is_that_of_diffusers():
    times = time_of(torch.arange(1000).double(), 1000)
    schedule = PATHS["CogVideoX"].schedule(times)
    torch.testing.assert_close(schedule.alpha**2, cogvideox().alphas_cumprod, rtol=0, atol=1e-12)
    assert schedule.alpha[-1] == 0 and schedule.sigma[-1] == 1
    assert torch.equal(tick_of(times, 1000), torch.arange(1000).double())


def test_x_t_and_target_are_those_of_diffusers():
    scheduler = diffusers.CogVideoXDPMScheduler.from_config(cogvideox().config)
    transport = create_transport("CogVideoX", "v_prediction")
    x, noise, pred = (normal(seed, len(TICKS), 4, 3) for seed in (1, 2, 3))
    t = time_of(TICKS, 1000).float()
    x_t, _ = transport.path.sample(x, noise, t)
    torch.testing.assert_close(x_t, scheduler.add_noise(x, noise, TICKS))
    target = scheduler.get_velocity(x, noise, TICKS)
    expected = ((pred - target) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(transport.loss(pred, x, noise, t), expected)


def test_weighted_data_loss_of_cogvideox_is_the_error_of_v():
    """Its authors train on (x0 - guess)^2 / (1 - alpha^2), of the data that the network's
    v_prediction amounts to."""
    transport = create_transport("CogVideoX", "v_prediction")
    x, noise, pred = (normal(seed, len(TICKS), 4, 3).double() for seed in (1, 2, 3))
    t = time_of(TICKS.double(), 1000)
    x_t, _ = transport.path.sample(x, noise, t)
    s = transport.path.at(t, x)
    weighted = (transport.data(pred, x_t, t) - x) ** 2 / s.sigma**2
    torch.testing.assert_close(
        weighted.flatten(1).mean(1), transport.loss(pred, x, noise, t), rtol=1e-5, atol=0
    )


def test_sampling_begins_without_signal_and_ends_at_the_data():
    data = normal(1, 2, 3)
    path = PATHS["CogVideoX"]

    def certain(x, t):
        """A network that knows the data."""
        s = path.at(t, x)
        noise = (x - s.alpha * data) / s.sigma
        return s.alpha * noise - s.sigma * data

    sampler = Sampler(create_transport("CogVideoX", "v_prediction"))
    x = sampler.sample_ddpm(num_steps=20)(normal(2, 2, 3), certain)[-1]
    torch.testing.assert_close(x, data, rtol=0, atol=1e-5)


@pytest.mark.parametrize("calls", [16, 20, 30, 48, 50, 240, 999])
def test_ticks_of_ddim_are_the_trailing_ones_of_diffusers(calls):
    """Of numbers that do not divide 1000, too, where diffusers' steps do not end where the next one
    begins, and ours do."""
    scheduler = cogvideox()
    scheduler.set_timesteps(calls)
    seen = []

    def field(x, t):
        seen.append(tick_of(t[0], 1000).item())
        return toy_field(x, t)

    sampler = Sampler(create_transport("CogVideoX", "v_prediction"))
    sampler.sample_ddpm(num_steps=calls, ddim=True, randn=None)(normal(1, 2, 4), field)
    assert [round(tick) for tick in seen] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("calls", [20, 50])
def test_ddim_is_the_loop_of_cogvideox_in_diffusers(calls):
    scheduler = cogvideox()
    scheduler.set_timesteps(calls)
    x = z = normal(1, 2, 4)
    for tick in scheduler.timesteps:
        pred = toy_field(x, time_of(tick, 1000).repeat(2))
        x = scheduler.step(pred, tick, x, return_dict=False)[0]
    sampler = Sampler(create_transport("CogVideoX", "v_prediction"))
    ours = sampler.sample_ddpm(num_steps=calls, ddim=True, randn=None)(z, toy_field)[-1]
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_shifted_times_are_the_sigmas_of_diffusers(shift):
    calls = 7
    even = torch.linspace(1, 0, calls + 1)[:-1]
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    flow.set_timesteps(sigmas=even.tolist())
    times = Sampler(create_transport(time_shift=shift)).times((0.0, 1.0), calls + 1)
    sigmas = 1 - torch.tensor(times)
    torch.testing.assert_close(sigmas, flow.sigmas, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(1000 * sigmas[:-1], flow.timesteps)

    unipc = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    unipc.set_timesteps(sigmas=even.numpy())
    torch.testing.assert_close(sigmas, unipc.sigmas, rtol=1e-5, atol=1e-5)

    drawn = create_transport(time_shift=shift).times(torch.linspace(0, 1, 11))
    expected = shift * (u := torch.linspace(1, 0, 11)) / (1 + (shift - 1) * u)
    torch.testing.assert_close(1 - drawn, expected)


def test_euler_on_shifted_times_is_the_loop_of_diffusers():
    calls = 6
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, calls + 1)[:-1].tolist())
    x = z = normal(1, 2, 4)
    for tick in scheduler.timesteps:
        pred = -toy_field(x, (1 - tick / 1000).repeat(2))  # noise - data
        x = scheduler.step(pred, tick, x, return_dict=False)[0]
    sampler = Sampler(create_transport(time_shift=3.0))
    ours = sampler.sample_ode(sampling_method="euler", num_steps=calls + 1)(z, toy_field)[-1]
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_a_shift_moves_no_end():
    """Where the last step of an SDE begins, say."""
    sampler = Sampler(create_transport(time_shift=3.0))
    times = sampler.times((0.0, 0.96), 5)
    assert times[0] == 0 and times[-1] == pytest.approx(0.96)
    t = torch.linspace(0, 1, 9)
    torch.testing.assert_close(shifted(shifted(t, 3.0), 1 / 3.0), t)
    assert (shifted(t, 3.0)[1:-1] < t[1:-1]).all()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(path_type="CogVideoX"), "has no velocity"),
        (dict(path_type="CogVideoX", prediction="noise"), "begins without any signal"),
        (dict(path_type="CogVideoX", prediction="v_prediction", time_shift=3.0), "ticks"),
        (dict(prediction="v_prediction", loss_weight="velocity"), "v_prediction predictions take"),
        (dict(time_shift=0.0), "shift"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_transport(**arguments)
