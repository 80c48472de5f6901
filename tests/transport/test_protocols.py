"""Published protocols: legal values of real flags, and the network calls they cost."""

from dataclasses import asdict, fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from transport_toys import Recorder, normal, toy_field

from runtime.config import NpzDDPM, NpzODE, NpzSDE
from transport import ODE_METHODS, PROTOCOLS, Guidance, Sampler, create_transport

COMMANDS = {"ODE": NpzODE, "SDE": NpzSDE, "DDPM": NpzDDPM}


def of_type(value, hint) -> bool:
    """Whether a flag of this type may have the value."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):  # a union
        return any(of_type(value, part) for part in get_args(hint))
    return type(value) is hint


def flags_of(name):
    """(command, the row's flags) of a protocol."""
    row = dict(PROTOCOLS[name])
    return COMMANDS[row.pop("mode")], row


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_legal_values_of_the_flags_of_their_command(name):
    command, row = flags_of(name)
    hints = get_type_hints(command)
    assert row.keys() <= {field.name for field in fields(command)}
    assert {key for key, value in row.items() if not of_type(value, hints[key])} == set()
    if command is NpzODE:
        assert row["sampling_method"] in ODE_METHODS


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_say_sampler_steps_guidance_and_precision(name):
    command, row = flags_of(name)
    if command is NpzDDPM:  # all ticks of its clock
        return
    assert {"sampling_method", "num_sampling_steps", "cfg_scale", "float64"} <= row.keys()
    if command is NpzSDE:
        assert {"diffusion_form", "diffusion_norm", "last_step", "last_step_size"} <= row.keys()
    if row["cfg_scale"] != 1:
        assert {"cfg_channels", "guidance_low", "guidance_high"} <= row.keys()


def run_protocol(name):
    """Sample by the protocol's flags; the recorded calls of the network."""
    command, row = flags_of(name)
    flags = command(**row)
    z = normal(9, 2, 4, 4, 4)
    model = Recorder(lambda x, t, y: toy_field(x, t) + 0.1 * y.view(-1, 1, 1, 1))
    guidance = Guidance(
        flags.cfg_scale,
        lambda cond: {"y": torch.zeros_like(cond["y"])},
        channels=None if flags.cfg_channels == "all" else 3,
        interval=(flags.guidance_low, flags.guidance_high),
    )
    sampler = Sampler(create_transport())
    make = {NpzODE: sampler.sample_ode, NpzSDE: sampler.sample_sde}[command]
    own = ("sampling_method", "diffusion_form", "diffusion_norm", "last_step", "last_step_size")
    settings = {key: value for key, value in asdict(flags).items() if key in own}
    sample = make(num_steps=flags.num_sampling_steps, guidance=guidance, **settings)
    result = sample(z.double() if flags.float64 else z, model, y=torch.tensor([1, 2]))
    assert result.isfinite().all()
    return model


def test_paper_ode_makes_498_unguided_calls():
    assert run_protocol("paper-ode").batches == [2] * 498


def test_the_other_reading_of_its_250_steps_makes_250_unguided_calls():
    assert run_protocol("paper-ode-250").batches == [2] * 250
    ode, other = PROTOCOLS["paper-ode"], PROTOCOLS["paper-ode-250"]
    assert ode == other | dict(num_sampling_steps=250)


def test_paper_sde_makes_250_guided_calls():
    assert run_protocol("paper-sde").batches == [4] * 250


def test_wan_makes_50_guided_calls():
    assert run_protocol("wan").batches == [4] * 50


def test_cogvideox_steps_by_50_ticks_from_the_last_as_its_pipeline_does():
    """And as many before the data as between them, without noise."""
    _, row = flags_of("cogvideox")
    model = Recorder(lambda x, t: toy_field(x, t))
    sampler = Sampler(create_transport("CogVideoX", "v_prediction"))
    steps, ddim = row["num_sampling_steps"], row["ddim"]
    sampler.sample_ddpm(num_steps=steps, ddim=ddim, randn=None)(normal(9, 2, 4, 4, 4), model)
    ticks = [int(1000 * (1 - t)) for t in model.times]
    assert len(ticks) == 50 and ticks[0] == 999 and ticks[-1] == 19
    assert ticks == list(range(999, 0, -20))


def test_repa_sde_guides_from_t_of_three_tenths():
    model = run_protocol("repa-sde")
    assert model.batches == [2 if t < 0.3 else 4 for t in model.times]
    assert len(model.batches) == 250 and model.batches.count(2) == 78
