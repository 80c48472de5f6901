"""Every benchmark runs, measures what it says, and compares like with like; no time is asserted."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import baseline, regularisers, sample
from benchmarks.baseline import RESTATED, PublicLoop, public_network
from benchmarks.report import (
    Contestant,
    Measured,
    MeasureFlags,
    host_held,
    host_peak,
    interleave,
    speedup,
)
from benchmarks.sample import GROUPS, LATE, OURS, PUBLIC, Theirs, alive, compared, opened
from benchmarks.train import optimizer_parts
from domains import build
from evaluations.extractors.vit import VisionTransformer
from layersync import LayerSync, default_pair
from models import SiT, architecture
from runtime.distributed import Ranks
from runtime.ema import EMA
from runtime.precision import Arithmetic
from runtime.state import TrainState
from tests.commands import refused, succeed
from transport import TrainingStep, create_transport

CPU = torch.device("cpu")
SHORT = ["--device", "cpu", "--rounds", 1, "--calls", 1, "--settle", 0, "--warmup", 1]
SMALL = ["--model", "SiT-Ti/2", "--compile", "off", "--precision", "fp32"]
SHARDS = ["--shard-size", 32, "--steps", 2]
SETS = ["--reference", 30, "--samples", 40]
WEIGHT = 0.2


@pytest.fixture
def model() -> SiT:
    """A small SiT, as train.py makes it, at weights where every block does something."""
    return alive(SiT(class_dropout_prob=0.0, **architecture("SiT-Ti/4")))


def written(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "name, flags, rows",
    [
        ("train", [*SMALL, "--batch", 2, "--grad-accum", 2], 3 + 1 + 6),
        ("regularisers", [*SMALL, "--batch", 2, "--encoder", "vit_tiny_patch16_224"], 8),
        ("sample", [*SMALL, "--batch", 1, "--num-sampling-steps", 3], 2 + 3 + 2),
        ("loader", [*SMALL, "--images", 48, "--read-batch", 16, *SHARDS], 3 + 1),
        ("metrics", ["--dimension", 16, "--full", 40, "--few", 8, *SETS], 2 + 2 + 2),
        ("trd", ["--batch", 2, "--frames", 3, "--height", 4, "--width", 5, "--channels", 6], 1),
    ],
)
def test_every_benchmark_prints_tables_and_appends_json(tmp_path, name, flags, rows):
    if "--encoder" in flags:
        pytest.importorskip("timm")
    out = tmp_path / "made" / "figures.jsonl"
    result = succeed(f"benchmarks.{name}", *SHORT, *flags, "--out", out)
    lines = written(out)
    assert len(lines) == rows
    for line in lines:
        assert line["benchmark"] == name and line["row"] in result.out
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            assert line["flags"][flag[2:].replace("-", "_")] == value
        assert {"device", "torch", "commit", "time", "threads"} <= line.keys()
        assert all(np.isfinite(value) for value in line.values() if isinstance(value, float))


def test_repas_encoder_runs_in_every_step_where_its_tokens_are_not_stored(monkeypatch):
    """Over as many images as the latents, at the pixels that they stand for."""
    pytest.importorskip("timm")
    seen, tokens = [], VisionTransformer.tokens
    monkeypatch.setattr(
        VisionTransformer, "tokens", lambda self, x: seen.append(x.shape) or tokens(self, x)
    )
    flags = regularisers.Flags(
        model="SiT-Ti/4", batch=2, compile="off", precision="fp32", encoder="vit_tiny_patch16_224"
    )
    for name, calls in (("external", 0), ("repa", 3)):
        step = regularisers.built(flags, Ranks(0, 1, CPU), name)
        seen.clear()
        losses = [step() for _ in range(3)]
        assert seen == [(2, 3, 256, 256)] * calls
        assert all(torch.isfinite(loss["reg"]) for loss in losses)


def test_json_is_appended_and_a_vae_joins_on_request(tmp_path, tiny_vae):
    out = tmp_path / "figures.jsonl"
    flags = [*SHORT, *SMALL, "--batch", 1, "--vae", tiny_vae, "--out", out]
    succeed("benchmarks.train", *flags, "--end-to-end")
    before = written(out)
    assert [line["row"] for line in before[:2]] == [
        "public, cached latents", "public, VAE in the step",
    ]  # fmt: skip
    assert before[1]["end_to_end_speedup"] == 1
    succeed("benchmarks.sample", *flags, "--decode", "--num-sampling-steps", 2)
    assert written(out)[: len(before)] == before and len(written(out)) > len(before)


def test_the_public_step_has_our_losses_gradients_and_update(model):
    """Same draws, float32: the step that ours is compared with computes the same thing."""
    loop = PublicLoop(RESTATED, public_network(RESTATED, model), weight=WEIGHT)
    x, y = torch.randn(24, 4, 32, 32), torch.arange(24)
    torch.manual_seed(7)
    loop.step(x, y)

    torch.manual_seed(7)
    noise, t, dropped = torch.randn_like(x), torch.rand(24), torch.rand(24) < 0.1
    assert dropped.any()
    sync = LayerSync([default_pair(model.depth)], WEIGHT)
    state = TrainState(
        model, EMA(model, 0.9999), nn.Identity(), lr=1e-4, weight_decay=0.0, clip=0.0
    )
    step = TrainingStep(model, create_transport(), sync)
    losses = step(x, noise, t, model.drop({"y": y}, dropped), torch.tensor(WEIGHT))
    losses.total.backward()

    theirs, averages = dict(loop.network.named_parameters()), dict(loop.ema.named_parameters())
    ours = [loss.item() for loss in losses]
    assert [loop.loss, loop.velocity, loop.reg] == pytest.approx(ours, rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rounding = 1e-5 * theirs[name].grad.abs().max().item()
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=rounding)
            parameter.grad = theirs[name].grad.clone()  # Adam's first step is the gradient's sign
    state.update()
    averaged = dict(state.ema.model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(averaged[name], averages[name], rtol=1e-6, atol=1e-7)


def test_the_public_sde_sampler_makes_twice_our_calls_for_the_same_samples(model):
    points, domain = 5, build("synthetic")
    flags = sample.Flags(model="SiT-Ti/4", num_sampling_steps=points)
    theirs = Theirs(RESTATED, public_network(RESTATED, model).eval(), domain, flags)
    ours = opened(model.eval(), domain, Arithmetic("fp32", CPU))
    found = {g.name: compared(theirs, ours, g, flags, CPU) for g in GROUPS}
    for name in ("Euler-Maruyama", "Euler-Maruyama, guided"):
        assert (found[name][PUBLIC]["calls"], found[name][OURS]["calls"]) == (2 * points, points)
    assert found["Heun"][PUBLIC]["calls"] == found["Heun"][OURS]["calls"] == 2 * (points - 1)
    for rows in found.values():
        assert rows[OURS]["difference"] < 1e-5
    x, t, y = torch.randn(2, 4, 32, 32), torch.rand(2), torch.tensor([1, 2])
    assert model(x, t, y).pred.std() > 0.1  # or any sampler would do
    guided = found["Euler-Maruyama, guided"]
    assert points < guided[LATE]["rows_per_image"] < guided[OURS]["rows_per_image"] == 2 * points


def test_every_call_of_the_optimizer_benchmark_moves_weights(model):
    """A part that found no gradients would be fast."""
    loop = PublicLoop(RESTATED, public_network(RESTATED, model), weight=WEIGHT)
    state = TrainState(
        model, EMA(model, 0.9999), nn.Identity(), lr=1e-4, weight_decay=0.0, clip=0.0
    )
    parts = optimizer_parts(loop, state)
    moved = [loop.network, state.model, loop.ema, state.ema.model, loop.ema, state.ema.model]
    for part, network in [*zip(parts, moved, strict=True)] * 2:
        before = network.final_layer.linear.weight.clone()
        part.build()()
        assert not torch.equal(network.final_layer.linear.weight, before), part.name


def test_the_metrics_benchmark_compares_equal_numbers(tmp_path):
    out = tmp_path / "figures.jsonl"
    sizes = ["--dimension", 16, "--full", 40, "--few", 8, *SETS]
    succeed("benchmarks.metrics", *SHORT, *sizes, "--out", out)
    tables = [line["trace"] for line in written(out) if "trace" in line]
    assert tables[0] == pytest.approx(tables[1], rel=1e-10) and tables[0] > 0
    assert tables[2] == pytest.approx(tables[3], rel=1e-4) and tables[2] != tables[0]
    precise = [line["precision"] for line in written(out) if "precision" in line]
    assert len(precise) == 2 and all(0 < value <= 1 for value in precise)


def test_without_scipy_the_metrics_benchmark_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.linalg", None)
    assert "pip install scipy" in refused("benchmarks.metrics", *SHORT)


def test_contestants_take_turns_and_ratios_are_taken_within_a_round():
    order = []
    contestants = [Contestant(n, lambda n=n: lambda: order.append(n), 1) for n in "ab"]
    flags = MeasureFlags(rounds=3, calls=2, settle=0, warmup=1)
    measured = interleave(contestants, CPU, flags)
    assert "".join(order[-12:]) == "aabb" + "bbaa" + "aabb"
    assert measured["a"].seconds.shape == (3, 2)

    slow = Measured("slow", 4, np.array([[2.0], [4.0], [9.0]]), 0, 0)
    fast = Measured("fast", 8, np.array([[1.0], [1.0], [3.0]]), 0, 0)
    assert speedup(slow, fast) == (6, 4, 8)


def test_memory_is_what_a_call_allocates_at_once_and_what_is_held():
    def call() -> None:
        for _ in range(3):
            torch.zeros(1000, 500)
        _ = torch.zeros(1000, 1000), torch.zeros(1000, 1000)

    assert host_peak(call) == 2 * 4_000_000
    before = host_held()
    weight = nn.Parameter(torch.zeros(1000, 500))
    views = [weight[:10], weight.detach()]
    weight.sum().backward()
    assert host_held() - before == 2 * 2_000_000, views


CHECKOUT = {
    "models.py": "from benchmarks.baseline import RestatedSiT as SiT\n",
    "transport/__init__.py": "from .parts import Sampler, Transport as create_transport\n",
    "transport/parts.py": """
from benchmarks import baseline

class Transport:
    def training_losses(self, model, x1, model_kwargs, loss_type):
        assert loss_type == "layer_sync"
        return baseline.restated_losses(model, x1, model_kwargs)

class Sampler:
    def __init__(self, transport):
        assert isinstance(transport, Transport)
    def sample_sde(self, *, diffusion_form, num_steps):
        assert diffusion_form == "sigma"
        return baseline.restated_sde(num_steps=num_steps)
    def sample_ode(self, *, sampling_method, num_steps):
        assert sampling_method == "heun2"
        return baseline.restated_ode(num_steps=num_steps)
""",
}


def checkout(folder, **changed):
    for name, content in (CHECKOUT | changed).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_a_checkout_of_the_public_code_takes_the_restated_ones_place(tmp_path, monkeypatch):
    """Beside our packages of the same names, and never twice the one that was loaded first."""
    import models as ours

    monkeypatch.setattr(baseline, "RESTATED", None)
    against = ["--against", checkout(tmp_path / "one"), *SHORT, *SMALL, "--batch", 1]
    out = ["--out", tmp_path / "figures.jsonl"]
    succeed("benchmarks.train", *against, *out)
    succeed("benchmarks.sample", *against, *out, "--num-sampling-steps", 2)
    assert ours.SiT is SiT
    other = checkout(tmp_path / "two", **{"transport/parts.py": "Transport = Sampler = 1 / 1\n"})
    assert "not callable" in refused("benchmarks.train", "--against", other)


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"models.py": "SiT_models = {}\n"}, "not the public LayerSync code"),
        ({"models.py": "import a_package_that_nobody_has\n"}, "a_package_that_nobody_has"),
        ({"models.py": "def (\n"}, "cannot be loaded"),
    ],
)
def test_another_checkout_is_refused_with_a_sentence(tmp_path, changed, sentence):
    assert sentence in refused("benchmarks.train", "--against", checkout(tmp_path, **changed))


@pytest.mark.parametrize(
    "name, flags, sentence",
    [
        ("train", ["--against", "/nowhere"], "there is no /nowhere/models.py"),
        ("train", ["--batch", 3, "--grad-accum", 2], "--batch 3 is not divisible"),
        ("train", ["--rounds", 0], "--rounds 0: give 1 or more"),
        ("train", ["--model", "SiT-M/2"], "unknown model 'SiT-M/2'"),
        ("sample", ["--num-sampling-steps", 1], "--num-sampling-steps 1: give 2 "),
        ("regularisers", ["--only", "layersync"], "--only layersync: choose from"),
        ("loader", ["--images", 64], "--read-batch 256 is more than --images"),
        ("metrics", ["--few", 1], "--few 1: give 4 or more"),
        ("trd", ["--frames", 0], "--frames 0: give 1 or more"),
    ],
)
def test_flags_that_make_no_sense_are_refused(name, flags, sentence):
    assert sentence in refused(f"benchmarks.{name}", *SHORT, *flags)


def test_figures_that_cannot_be_written_are_refused(tmp_path):
    flags = [*SHORT, *SMALL, "--images", 16, "--read-batch", 4, "--shard-size", 16, "--steps", 0]
    assert "--out" in refused("benchmarks.loader", *flags, "--out", tmp_path)
