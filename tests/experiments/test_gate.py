"""The gate: what it measures and what it says."""

import json

import pytest
import torch

from experiments import gate
from tests.commands import succeed

TINY = ["--", "--model", "SiT-Ti/4", "--hidden-size", 32, "--num-heads", 2, "--depth", 4]


def test_a_probe_reads_what_is_linear_and_nothing_from_noise():
    random = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    signal = torch.nn.functional.one_hot(y).float() @ torch.randn(4, 8, generator=random)
    noise = torch.randn(400, 8, generator=random)
    sets = ({1: signal + 0.01 * noise, 2: noise}, y)
    halves = [
        ({b: x[part] for b, x in sets[0].items()}, y[part])
        for part in (slice(200), slice(200, 400))
    ]
    assert gate.probe(*halves, 1) == 1.0
    assert gate.probe(*halves, 2) < 0.4


@pytest.mark.slow
def test_the_gate_on_digits_from_an_empty_folder(tmp_path):
    """It reads classes although the models are trained without."""
    flags = ["--preset", "digits", "--max-steps", 4, "--samples", 20, "--device", "cpu"]
    done = succeed("experiments.gate", *flags, "--results", tmp_path, *TINY, "--num-classes", 0)
    found = json.loads((tmp_path / "gate" / "gate.json").read_text())["digits"]
    assert set(found["held_out_loss"]) == {"vanilla", "layer_sync", "positive-control"}
    assert found["minus_vanilla"]["vanilla"]["mean"] == 0
    (probes,) = found["probes"]
    assert len(probes["blocks"]) == 4 and probes["step"] == 1 and max(probes["blocks"]) < 0.9
    assert found["open"] == (found["has_gap"] and found["positive_control_helps"])
    assert ("the gate is open" in done.out) == found["open"]


@pytest.mark.parametrize(
    ("gap", "gains", "opens"),
    [
        (0.06, (0.011, 0.01, 0.012), True),
        (0.04, (0.011, 0.01, 0.012), False),  # the teacher is hardly better
        (0.06, (-0.011, -0.01, -0.012), False),
        (0.06, (0.03, -0.02, 0.01), False),  # seeds disagree
        (0.06, (0.01,), False),  # one seed decides nothing
    ],
)
def test_it_opens_only_if_there_is_something_to_hand_on_and_room_for_it(
    monkeypatch, gap, gains, opens
):
    probe = {
        "run": "r",
        "step": 1,
        "blocks": [0.5, 0.5 + gap],
        "student": 0.5,
        "teacher": 0.5 + gap,
    }
    monkeypatch.setattr(gate, "probes_of", lambda folder, pair: probe)

    def result(name, seed, loss):
        record = {"name": f"digits-{name}", "seed": seed, "preset": "digits", "pair": [1, 2]}
        return None, gate.table.Result(record, {"held-out loss, ema": loss}, [], None)

    results = [result("vanilla", seed, 0.5) for seed, _ in enumerate(gains)]
    results += [result("positive-control", seed, 0.5 - gain) for seed, gain in enumerate(gains)]
    found = gate.judged("digits", results)
    assert found["open"] == opens
    assert ("the gate is open" in gate.as_text("digits", found)) == opens
