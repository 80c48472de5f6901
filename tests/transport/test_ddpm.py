"""MDM's discrete diffusion: a clock on which data are predicted, and ancestral sampling."""

import math

import pytest
import torch

from transport import PATHS, Sampler, create_transport
from transport.path import tick_of
from transport.transport import time_of

diffusers = pytest.importorskip("diffusers")


def scheduler_of(steps: int):
    return diffusers.DDPMScheduler(
        steps, beta_schedule="squaredcos_cap_v2", prediction_type="sample",
        variance_type="fixed_small", clip_sample=False,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1000, 50])
def test_the_clock_is_the_published_table_and_that_of_diffusers(steps):
    path = PATHS[f"Cosine-{steps}"]
    ticks = torch.arange(steps)
    schedule = path.schedule(time_of(ticks.double(), steps))
    kept = scheduler_of(steps).alphas_cumprod.double()
    assert (schedule.alpha**2 - kept).abs().max() < 5e-7  # a product of 1000 in float32
    beta = 1 - schedule.alpha[1:] ** 2 / schedule.alpha[:-1] ** 2

    def f(s):
        return math.cos((s / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    published = torch.tensor(
        [min(1 - f(i + 1) / f(i), 0.999) for i in range(steps)], dtype=torch.float64
    )
    assert (beta - published[1:]).abs().max() < 2e-8
    assert (beta - scheduler_of(steps).betas[1:].double()).abs().max() < 3e-8  # float32's rounding


@pytest.mark.parametrize("steps", [1000, 50])
def test_training_times_are_ticks_all_equally_likely(steps):
    transport = create_transport(f"Cosine-{steps}", "data")
    u = (torch.arange(4 * steps) + 0.5) / (4 * steps)
    times = transport.times(u)
    ticks = tick_of(times, steps)
    assert torch.equal(ticks.long().bincount(), torch.full((steps,), 4))
    torch.testing.assert_close(times, time_of(ticks, steps))


@pytest.mark.parametrize("steps", [1000, 50])
def test_ancestral_sampling_steps_as_diffusers_does(steps):
    """The same network guesses and the same noise: the same samples, to the rounding of diffusers'
    float32 tables."""
    torch.manual_seed(0)
    z, mixing = torch.randn(2, 3, 7), torch.randn(3, 3) / 3

    def guess(x, t):
        return torch.tanh(torch.einsum("ij,bjn->bin", mixing, x) + t.view(-1, 1, 1))

    noises = torch.randn(steps, *z.shape)
    drawn = iter(noises)
    transport = create_transport(f"Cosine-{steps}", "data")
    ours = Sampler(transport).sample_ddpm(randn=lambda x: next(drawn))(z, guess)[-1]

    scheduler, x, drawn = scheduler_of(steps), z, iter(noises)
    scheduler.set_timesteps(steps)
    for tick in scheduler.timesteps:
        pred = guess(x, torch.full((2,), time_of(tick.item(), steps)))
        none = torch.Generator().manual_seed(0)  # its noise is taken out again, and ours put in
        mean = scheduler.step(pred, tick, x, generator=none).prev_sample
        if tick > 0:
            noise = torch.randn(x.shape, generator=none.manual_seed(0))
            deviation = scheduler._get_variance(tick, None) ** 0.5
            mean = mean + deviation * (next(drawn) - noise)
        x = mean
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3)


def test_with_the_true_data_as_its_guess_any_path_ends_at_the_data():
    x1 = torch.randn(4, 2, 5)
    for name in ("Linear", "GVP", "VP", "Cosine-50"):
        transport = create_transport(name, "data")
        end = Sampler(transport).sample_ddpm(num_steps=20)(torch.randn_like(x1), lambda x, t: x1)
        assert (end[-1] - x1).abs().max() < 0.05, name  # VP stays 0.001 away from the data


def test_ancestral_samples_have_the_variance_of_the_data():
    """Data N(0, 0.5^2): the best guess is known, and so is what comes out."""
    for name in ("Linear", "Cosine-1000", "VP"):
        transport = create_transport(name, "data")

        def best(x, t, path=transport.path):
            s = path.at(t, x)
            return x * s.alpha * 0.25 / (s.alpha**2 * 0.25 + s.sigma**2)

        x = Sampler(transport).sample_ddpm(num_steps=200)(torch.randn(4000, 1), best)[-1]
        assert x.std() == pytest.approx(0.5, abs=0.03), name


def test_a_masked_loss_counts_valid_frames_alone():
    transport = create_transport("Cosine-1000", "data")
    x, noise, t = torch.randn(2, 3, 6), torch.randn(2, 3, 6), torch.tensor([0.5, 0.2])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)[:, None]
    pred = x + torch.arange(6.0)
    loss = transport.loss(pred, x, noise, t, mask)
    torch.testing.assert_close(loss, torch.tensor([55 / 6, 1 / 2]))
    pred[1, :, 2:] = 1e9  # whatever is said of padding
    torch.testing.assert_close(transport.loss(pred, x, noise, t, mask), loss)


def test_a_clock_has_no_velocity():
    with pytest.raises(ValueError, match="predict data or noise"):
        create_transport("Cosine-1000")
    sampler = Sampler(create_transport("Cosine-50", "data"))
    for refused in (sampler.sample_ode, sampler.sample_sde, sampler.sample_ode_likelihood):
        with pytest.raises(ValueError, match="sample it by DDPM"):
            refused()
    with pytest.raises(ValueError, match="51 steps, but Cosine-50 has 50"):
        sampler.sample_ddpm(num_steps=51)
    with pytest.raises(ValueError, match="data predictions take none"):
        create_transport("Linear", "data", "velocity")


def test_a_quick_look_suits_the_path():
    x1 = torch.full((2, 3), 0.7)
    for name, prediction in (("Linear", "data"), ("Cosine-1000", "data")):
        calls = []

        def guess(x, t, calls=calls):
            calls.append(t)
            return x1

        x = Sampler(create_transport(name, prediction)).sample_few()(torch.randn(2, 3), guess)[-1]
        assert (x - x1).abs().max() < 0.01 and len(calls) in (48, 50)
