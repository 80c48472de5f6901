"""The gate: what it measures and what it says."""

import json

import pytest
import torch

from experiments import gate
from tests.commands import succeed

TINY = ["--", "--model", "SiT-Ti/4", "--hidden-size", 32, "--num-heads", 2, "--depth", 4]


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
    assert (
        found["positive_control_helps"] is None
        and "(3 or more) and images: not decided" in done.out
    )


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [("cpu", 1, "cpu"), ("cuda", 1, "cuda"), ("auto", 1, "cuda"), ("cuda", 0, "cpu")],
)
def test_probes_are_measured_on_the_device_of_the_sweep(tmp_path, monkeypatch, asked, gpus, device):
    """The last one was submitted to Slurm from a machine without a GPU."""
    path = tmp_path / "000-SiT-Ti-4-vanilla" / "checkpoints" / "0000001.pt"
    path.parent.mkdir(parents=True)
    args = {"dataset_name": "digits", "data_path": None, "device": asked}
    torch.save({"ema": {"x": torch.zeros(1)}, "args": args}, path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(gate, "Study", lambda flags, ranks: ranks.device.type)
    monkeypatch.setattr(gate, "qualities", lambda study, most: ([0.1, 0.2], study))
    assert gate.probes_of(tmp_path, (1, 2))["tested"] == device


@pytest.mark.parametrize(
    ("gap", "tested", "gains", "says"),
    [
        (0.06, 10**5, (0.011, 0.01, 0.012), "is open"),
        (0.04, 10**5, (0.011, 0.01, 0.012), "is shut"),  # the teacher is hardly better
        (0.06, 400, (0.011, 0.01, 0.012), "is undecided"),  # images tell no two points
        (0.30, 400, (0.011, 0.01, 0.012), "is open"),
        (0.06, 10**5, (-0.011, -0.01, -0.012), "is shut"),
        (0.06, 10**5, (0.03, -0.02, 0.01), "is undecided"),  # seeds disagree
        (0.06, 10**5, (3e-4, -2e-4, 1e-4), "is shut"),  # a gain of 1 % would have been seen
        (0.06, 10**5, (0.01, 0.012), "is undecided"),  # two seeds say nothing of their spread
        (0.06, 10**5, (0.01,), "is undecided"),
        (0.04, 10**5, (0.01,), "is undecided"),
    ],
)
def test_it_opens_only_if_there_is_something_to_hand_on_and_room_for_it(
    monkeypatch, gap, tested, gains, says
):
    blocks = [0.5, 0.5 + gap]
    probe = dict(run="r", step=1, blocks=blocks, tested=tested, student=0.5, teacher=0.5 + gap)
    monkeypatch.setattr(gate, "probes_of", lambda folder, pair: probe)

    def result(name, seed, loss):
        record = {"name": f"digits-{name}", "seed": seed, "preset": "digits", "pair": [1, 2]}
        # The EMA of a short run is near the start: it is not what counts.
        scores = {"held-out loss, model": loss, "held-out loss, ema": 1.0}
        return None, gate.table.Result(record, scores, {}, [])

    results = [result("vanilla", seed, 0.5) for seed, _ in enumerate(gains)]
    results += [result("positive-control", seed, 0.5 - gain) for seed, gain in enumerate(gains)]
    assert f"the gate {says}" in gate.as_text("digits", gate.judged("digits", results))


def test_the_pair_that_has_most_to_hand_on_is_named():
    probe = dict(blocks=[0.3, 0.5, 0.6, 0.5, 0.5, 0.9], tested=400)
    best = gate.widest([probe, probe])
    assert best[:2] == (1, 3) and best.gap == pytest.approx(0.3)  # block 6 is too deep to teach
    assert best.error == pytest.approx(2 * ((0.3 * 0.7 + 0.6 * 0.4) / 400) ** 0.5)


def test_a_gap_that_seeds_disagree_on_is_not_decided():
    seeds = [dict(blocks=[0.5, 0.5 + gap], tested=10**6) for gap in (0.12, 0.09, 0.06)]
    assert gate.is_wide(gate.gap_of(1, 2, seeds), seeds=3) is None  # 0.09 ± 0.075
    seeds[0]["blocks"][1] = 0.58
    assert gate.is_wide(gate.gap_of(1, 2, seeds), seeds=3) is None  # 0.077 ± 0.038
    seeds[2]["blocks"][1] = 0.075 + 0.5
    assert gate.is_wide(gate.gap_of(1, 2, seeds), seeds=3)
