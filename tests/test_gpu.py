"""What only a GPU can show: `pytest -m gpu` on a machine that has one."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import domains
from evaluations.metrics import Moments, frechet_distance, kernel_distance, precision_recall
from runtime.checkpoint import Checkpoint
from runtime.distributed import Ranks
from runtime.ema import EMA
from runtime.precision import Arithmetic
from runtime.prefetch import Prefetch
from runtime.saver import Saver
from runtime.state import TrainState
from tests.commands import checkpoint_of, flat, succeed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DIGITS = ["--preset", "digits", "--no-tensorboard", "--sample-every", 0]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_resumes_and_samples_on_the_gpu(tmp_path, precision):
    flags = [*DIGITS, "--precision", precision]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    succeed("train", *flags, "--max-steps", 8, "--results-dir", straight)
    succeed("train", *flags, "--max-steps", 4, "--results-dir", stopped)
    resume = ["--max-steps", 8, "--resume", "auto", "--results-dir", stopped]
    succeed("train", *flags, *resume)
    one, other = (flat(checkpoint_of(folder, 8)["model"]) for folder in (straight, stopped))
    for name, value in one.items():  # backward kernels add up in no fixed order
        torch.testing.assert_close(value, other[name], rtol=0.05, atol=2e-3)

    (run,) = straight.iterdir()
    sampling = ["--num-fid-samples", 40, "--per-proc-batch-size", 16, "--num-sampling-steps", 10]
    for mode in ("ODE", "SDE"):
        out = ["--sample-dir", tmp_path / "samples", "--name", mode]
        succeed("sample_ddp", mode, "--ckpt", run, *sampling, *out, "--cfg-scale", 1.5)
        assert np.load(tmp_path / "samples" / f"{mode}.npz")["arr_0"].shape == (40, 8, 8, 1)
        card = json.loads((tmp_path / "samples" / f"{mode}.json").read_text())
        assert card["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("flags", [{}, {"precision": "bf16", "compile": "on"}])
def test_the_step_never_waits_for_the_device(flags):
    import training
    from runtime.config import TrainConfig

    device = torch.device("cuda", 0)
    config = TrainConfig(dataset_name="synthetic", model="SiT-S/2", global_batch_size=16, **flags)
    config, *parts = training.build(config, device)
    trainer = training.Trainer(config, *parts, Ranks(0, 1, device))
    images = parts[0].train_set()
    draws = domains.Draws.plain(range(16))
    batch = images.__getitems__(draws).to_device(device)
    try:
        for number in range(5):
            # The first steps may wait: graphs are compiled, AdamW makes its moments.
            torch.cuda.set_sync_debug_mode("error" if number >= 3 else "default")
            trainer.step(iter([batch]))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_prefetched_batch_may_hold_tensors_of_the_host():
    class Pair(NamedTuple):
        raw: torch.Tensor
        index: torch.Tensor

    def to_device(pair: Pair, device: torch.device) -> Pair:
        return pair._replace(raw=pair.raw.pin_memory().to(device, non_blocking=True))

    device = torch.device("cuda", 0)
    pairs = (Pair(torch.full((1000,), i), torch.tensor(i)) for i in range(5))
    with Prefetch(pairs, to_device, device) as ahead:
        for i, pair in enumerate(ahead):
            assert pair.raw.is_cuda and (pair.raw == i).all() and pair.index == i


def test_the_optimizer_of_other_code_goes_on_fused_on_the_gpu():
    """Its step counts lie on the host, where fused AdamW does not take them."""
    layer = nn.Linear(3, 3, device="cuda")
    theirs = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3, device="cuda")).sum().backward()
    theirs.step()
    weights = layer.state_dict()
    origin = Checkpoint(
        Path("0000001.pt"), ema=weights, model=weights, opt=theirs.state_dict(), step=1
    )
    state = TrainState(layer, EMA(layer, 0.9), nn.Identity(), lr=1e-3, weight_decay=0.0, clip=0.0)
    state.resume(origin)
    layer(torch.ones(1, 3, device="cuda")).sum().backward()
    state.update()
    assert all(
        moments["step"].is_cuda and moments["step"] == 2 for moments in state.opt.state.values()
    )


def test_metrics_are_the_same_on_the_gpu():
    torch.manual_seed(0)
    real, drawn = torch.randn(600, 64), torch.randn(500, 64) + 0.1
    for half in (False, True):
        here, there = (
            precision_recall(real.to(where), drawn.to(where), half=half)
            for where in ("cpu", "cuda")
        )
        assert there == pytest.approx(here, abs=0.01)
    assert kernel_distance(real.cuda(), drawn.cuda()) == pytest.approx(
        kernel_distance(real, drawn), rel=1e-9
    )
    moments = Moments.of(real.cuda()), Moments.of(drawn.cuda())
    on_host = Moments.of(real), Moments.of(drawn)
    assert frechet_distance(*moments) == pytest.approx(frechet_distance(*on_host), rel=1e-9)


@pytest.mark.parametrize("attention", ["auto", "cudnn", "flash", "efficient", "math"])
def test_every_attention_kernel_runs_in_bf16(attention):
    chosen = Arithmetic("bf16", torch.device("cuda", 0), attention).attention(256, 16, 72)
    assert chosen == attention or attention == "auto"


def test_a_checkpoint_of_xl_holds_up_the_step_for_less_than_a_second(tmp_path):
    """11 GB through page-locked buffers, which the first save makes."""
    device = torch.device("cuda", 0)
    content = {"model": {str(i): torch.randn(27, 10**6, device=device) for i in range(100)}}
    saver = Saver(tmp_path, Ranks(0, 1, device), keep_last=1, milestone_every=0)
    saver.save(1, content)
    saver.wait()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    saver.save(2, content)
    waited = time.perf_counter() - begin
    saver.wait()
    assert waited < 1
