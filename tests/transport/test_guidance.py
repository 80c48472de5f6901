"""Classifier-free guidance: which half is computed when, and the public three-channel rule."""

import pytest
import torch
from transport_toys import Recorder, normal

from models import SiT
from transport import Guidance, Sampler, create_transport

Z = normal(9, 2, 4, 4, 4)
Y = torch.tensor([1, 2])
NULL = 3


def labeled(x, t, y):
    """A toy conditional network: every class pulls in its own way."""
    t = t.view(-1, 1, 1, 1)
    return torch.tanh(x * (0.3 + 0.2 * y.view(-1, 1, 1, 1)) + t) - 0.1 * x


def null(cond):
    return cond | {"y": torch.full_like(cond["y"], NULL)}


def sample_ode(guidance, model=labeled, num_steps=5, method="euler", z=Z, **cond):
    sampler = Sampler(create_transport())
    sample = sampler.sample_ode(
        sampling_method=method, num_steps=num_steps, guidance=guidance, rtol=1e-6
    )
    return sample(z, model, **(cond or {"y": Y}))[-1]


def public_forward_with_cfg(x, t, y, cfg_scale):
    """What the public code does to a doubled state: channels 0-2 guided, both halves alike."""
    half = x[: len(x) // 2]
    out = labeled(torch.cat([half, half]), t, y)
    cond, uncond = out[:, :3].chunk(2)
    guided = uncond + cfg_scale * (cond - uncond)
    return torch.cat([torch.cat([guided, guided]), out[:, 3:]], dim=1)


@pytest.mark.parametrize("method", ["euler", "heun2", "dopri5"])
def test_three_of_four_channels_equal_the_public_forward_with_cfg(method):
    ours = sample_ode(Guidance(1.5, null, channels=3), method=method)
    doubled = dict(y=torch.cat([Y, torch.full_like(Y, NULL)]), cfg_scale=1.5)
    public = sample_ode(
        None, public_forward_with_cfg, method=method, z=torch.cat([Z, Z]), **doubled
    )
    torch.testing.assert_close(ours, public[: len(Z)], rtol=1e-4, atol=1e-5)
    everywhere = sample_ode(Guidance(1.5, null), method=method)
    assert (ours - everywhere).abs().max() > 1e-2


@pytest.mark.parametrize("channels", [3, None])
def test_guidance_of_a_real_network_equals_its_own_forward_with_cfg(perturb, channels):
    model = SiT(input_size=4, hidden_size=16, depth=2, num_heads=2, num_classes=NULL)
    model = perturb(model).eval()
    ours = sample_ode(Guidance(2.5, model.null, channels), model)
    doubled = dict(y=torch.cat([Y, torch.full_like(Y, NULL)]), cfg_scale=2.5, cfg_channels=channels)
    theirs = sample_ode(None, model.forward_with_cfg, z=torch.cat([Z, Z]), **doubled)
    torch.testing.assert_close(ours, theirs[: len(Z)], rtol=1e-5, atol=1e-5)
    assert (ours - sample_ode(None, model)).abs().max() > 1e-3


def test_guidance_on_all_channels_is_the_formula():
    guided = sample_ode(Guidance(1.8, null), num_steps=2)
    cond, uncond = (labeled(Z, torch.zeros(2), y) for y in (Y, torch.full_like(Y, NULL)))
    torch.testing.assert_close(guided, Z + uncond + 1.8 * (cond - uncond))


def test_scale_one_and_no_interval_compute_the_conditional_half_only():
    plain = sample_ode(None)
    for guidance in (Guidance(1.0, null), Guidance(4.0, null, interval=(0.9, 1.0))):
        model = Recorder(labeled)
        assert torch.equal(sample_ode(guidance, model), plain)
        assert model.batches == [2] * 4


def test_interval_includes_both_ends():
    model = Recorder(labeled)
    sample_ode(Guidance(2.0, null, interval=(0.3, 0.6)), model, num_steps=11)
    assert model.batches == [2] * 3 + [4] * 4 + [2] * 3


@pytest.mark.parametrize(
    "method, stages", [("heun2", 2), ("midpoint", 2), ("heun3", 3), ("rk4", 4)]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_all_stages_of_a_step_decide_by_its_start(method, stages, reverse):
    model = Recorder(labeled)
    guidance = Guidance(2.0, null, interval=(0.25, 0.5))
    sample = Sampler(create_transport()).sample_ode(
        sampling_method=method, num_steps=5, guidance=guidance, reverse=reverse
    )
    sample(Z, model, y=Y)  # steps start at 0, 1/4, 2/4, 3/4, or at 1, 3/4, 2/4, 1/4
    expected = [2, 2, 4, 4] if reverse else [2, 4, 4, 2]
    assert model.batches == [batch for batch in expected for _ in range(stages)]


def test_adaptive_solvers_decide_at_each_time_they_ask_for():
    model = Recorder(labeled)
    sample_ode(Guidance(2.0, null, interval=(0.0, 0.5)), model, method="dopri5")
    expected = [4 if t <= 0.5 + 1e-6 else 2 for t in model.times]
    assert model.batches == expected and set(expected) == {2, 4}


@pytest.mark.parametrize("method, stages", [("Euler", 1), ("Heun", 2)])
def test_sde_steps_and_the_last_step_decide_by_their_start(method, stages):
    model = Recorder(labeled)
    guidance = Guidance(2.0, null, interval=(0.4, 0.9))
    sample = Sampler(create_transport()).sample_sde(
        sampling_method=method, diffusion_form="sigma", num_steps=13, guidance=guidance
    )
    sample(Z, model, y=Y)  # steps start at 0, 0.08, ..., 0.88; the last step at 0.96
    assert model.batches == [2] * 5 * stages + [4] * 7 * stages + [2]


def test_guidance_never_reads_the_device():
    sample = Sampler(create_transport()).sample_sde(
        diffusion_form="sigma",
        guidance=Guidance(2.0, null, channels=3, interval=(0.3, 1.0)),
        num_steps=5,
    )
    assert sample(Z.to("meta"), labeled, y=Y.to("meta")).shape == (1, *Z.shape)


def test_conditions_that_are_no_tensors_pass_through():
    def model(x, t, y, name):
        assert name == "digits" and (y is None or len(y) == len(x))
        return 0.1 * x

    for y in (Y, None):
        nothing = Guidance(2.0, lambda cond: cond)
        torch.testing.assert_close(sample_ode(nothing, model, y=y, name="digits"), Z * 1.025**4)


def test_a_null_condition_of_more_than_the_condition_is_refused():
    """Else what it has besides would be left out, and guidance not be what was asked for."""
    guidance = Guidance(2.0, lambda cond: cond | {"mask": torch.ones(2, 1), "text": None})
    with pytest.raises(ValueError, match="null condition has mask, and the condition has not"):
        sample_ode(guidance)


@pytest.mark.parametrize("interval", [(0.7, 0.3), (-0.1, 1.0), (0.0, 1.1)])
def test_impossible_intervals_are_refused(interval):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        Guidance(2.0, null, interval=interval)


def test_no_channel_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Guidance(2.0, null, channels=0)
