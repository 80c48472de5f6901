"""Optimizer, EMA, arithmetic, prefetching, checkpoints in a thread: fast, and still the same."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from models import SiT
from runtime import checkpoint, hardware
from runtime.distributed import Ranks
from runtime.ema import EMA
from runtime.errors import InputError, LocalError
from runtime.hardware import facts, peak_flops
from runtime.precision import Arithmetic, cast_products, slow_precision
from runtime.prefetch import Prefetch
from runtime.saver import Saver
from runtime.state import TrainState
from tests.commands import ROOT, full_disk

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SMALL = dict(input_size=4, depth=2, hidden_size=32, num_heads=2, num_classes=3)


def state_of(model, **settings):
    settings = dict(lr=1e-2, weight_decay=0.1, clip=0.0) | settings
    return TrainState(model, EMA(model, 0.9), nn.Identity(), **settings)


def test_fused_adamw_and_foreach_ema_are_the_plain_ones(perturb):
    model, plain = (perturb(SiT(**SMALL)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    state = state_of(model)
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    average = {name: p.detach().clone() for name, p in plain.named_parameters()}
    for _ in range(10):
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            theirs.grad = torch.randn_like(theirs) if theirs.requires_grad else None
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        state.update()
        adamw.step()
        for name, p in plain.named_parameters():
            average[name].mul_(0.9).add_(p.detach(), alpha=0.1)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            state.ema.model.get_parameter(name), average[name], rtol=1e-6, atol=1e-6
        )


def test_the_learning_rate_grows_to_its_value_and_stays_there(perturb):
    """Adam's steps are as long as the learning rate, whatever the gradient: it is seen in them."""
    model = perturb(SiT(**SMALL))
    state = state_of(model, lr=1e-2, weight_decay=0.0, warmup=4)
    weight, moved = model.final_layer.linear.weight, []
    for _ in range(6):
        before = weight.detach().clone()
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        state.update()
        moved.append((weight - before).abs().max().item())
    assert moved == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01], rel=1e-3)


def test_an_ema_in_bfloat16_is_refused():
    with pytest.raises(ValueError, match="keep weights in float32"):
        EMA(nn.Linear(2, 2).bfloat16(), 0.9999)


def test_clipping_bounds_the_gradient_and_the_norm_is_the_one_before():
    model = nn.Linear(2, 2)
    for p in model.parameters():
        p.grad = torch.full_like(p, 10.0)
    state = state_of(model, clip=1.0)
    assert state.grad_norm() == pytest.approx(10 * 6**0.5)
    seen = []
    state.opt.register_step_pre_hook(lambda *_: seen.append(state.grad_norm().item()))
    state.update()
    assert seen[0] == pytest.approx(1, rel=1e-4)


def test_weights_cast_once_give_what_autocast_gives(perturb):
    model = perturb(SiT(**SMALL)).eval()
    x, t, y = torch.randn(2, 4, 4, 4), torch.rand(2), torch.tensor([0, 3])
    with torch.no_grad(), Arithmetic("bf16", CPU)():
        before = model(x, t, y).pred
        after = cast_products(model, "bf16")(x, t, y).pred
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert before.equal(after)


def test_arithmetic_can_be_entered_again_and_leaves_nothing_behind():
    arithmetic = Arithmetic("bf16", CPU)
    for _ in range(2):
        with arithmetic():
            assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cpu")


def test_the_attention_kernel_is_named_and_an_impossible_one_is_refused():
    assert Arithmetic("fp32", CPU).attention(16, 2, 16) in ("flash", "math")
    assert Arithmetic("fp32", CPU, "math").attention(16, 2, 16) == "math"


def test_the_peak_of_an_unknown_device_is_not_guessed():
    assert peak_flops(CPU) is None
    assert {"device", "torch", "commit"} <= facts(CPU).keys()


@pytest.mark.parametrize(
    ("vendor", "flags", "precision", "said"),
    [
        ("AuthenticAMD", "fpu avx512f avx512_vnni", "bf16", True),
        ("AuthenticAMD", "fpu avx512f avx512_vnni", "fp32", False),
        ("AuthenticAMD", "fpu avx512f avx512_bf16", "bf16", False),
        ("GenuineIntel", "fpu avx512f avx512_bf16", "bf16", True),  # half as fast there
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", "bf16", False),
        ("ARM", None, "bf16", False),  # it cannot be known
    ],
)
def test_bfloat16_is_said_to_be_slow_where_it_is(
    monkeypatch, tmp_path, vendor, flags, precision, said
):
    info = tmp_path / "cpuinfo"
    lines = f"processor\t: 0\nvendor_id\t: {vendor}\n"
    info.write_text(lines + (f"flags\t\t: {flags}\n" if flags else ""))
    monkeypatch.setattr(hardware, "CPU_INFO", info)
    assert bool(slow_precision(precision, CPU)) == said
    assert slow_precision(precision, torch.device("cuda")) is None


def test_figures_of_a_gpu_tell_a_throttled_clock_from_its_highest(monkeypatch):
    said = {"--query-gpu=clocks.sm": "1200 MHz", "--query-gpu=clocks.max.sm": "1980 MHz"}
    monkeypatch.setattr(hardware, "said_by", lambda *words: said.get(words[-1]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    found = facts(torch.device("cuda", 0))
    assert (found["sm_clock"], found["sm_clock_max"]) == ("1200 MHz", "1980 MHz")


class Item(NamedTuple):
    number: torch.Tensor


def moved(item, device):
    return Item(item.number.to(device))


def test_prefetching_keeps_the_order_and_reads_ahead_of_the_consumer():
    read = []

    def source():
        for number in range(6):
            read.append(number)
            yield Item(torch.tensor(number))

    with Prefetch(source(), moved, CPU, depth=2) as ahead:
        assert next(ahead).number == 0
        deadline = time.monotonic() + 5
        while len(read) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read == [0, 1, 2, 3], "two are ready, one is in the thread's hands"
        assert [item.number.item() for item in ahead] == [1, 2, 3, 4, 5]
        assert list(ahead) == []


def test_what_goes_wrong_while_reading_reaches_the_consumer_in_its_place():
    def source():
        yield Item(torch.tensor(0))
        raise InputError("the data are gone")

    with Prefetch(source(), moved, CPU) as ahead:
        assert next(ahead).number == 0
        for _ in range(2):
            with pytest.raises(InputError, match="gone"):
                next(ahead)


def test_the_thread_ends_with_the_loop_however_that_ends():
    def endless():
        while True:
            yield Item(torch.zeros(()))

    with pytest.raises(ZeroDivisionError), Prefetch(endless(), moved, CPU) as ahead:
        next(ahead)
        raise ZeroDivisionError
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_a_reader_that_is_stuck_does_not_hold_up_the_end(monkeypatch):
    stuck = threading.Event()

    def source():
        yield Item(torch.tensor(0))
        stuck.wait(60)

    ahead = Prefetch(source(), moved, CPU)
    monkeypatch.setattr(ahead.thread, "join", partial(ahead.thread.join, timeout=0.1))
    with ahead:
        next(ahead)
    assert list(ahead) == []
    stuck.set()


def content_of(value: float):
    tensors = {"weight": torch.full((1000,), value), "bias": torch.full((3,), value)}
    return {"model": tensors, "ema": tensors, "opt": {"state": {0: {"step": torch.tensor(value)}}}}


def test_a_checkpoint_holds_the_state_of_its_step_though_training_goes_on(tmp_path):
    saver = Saver(tmp_path, ALONE, keep_last=0, milestone_every=0)
    for step in (1, 2):
        content = content_of(float(step))
        saver.save(step, content)
        content["model"]["weight"].fill_(-1.0)  # the next step
    saver.wait()
    for step in (1, 2):
        found = checkpoint.read(tmp_path / "checkpoints" / f"{step:07d}.pt")
        assert found.step == step and (found.model["weight"] == step).all()
        assert found.opt["state"][0]["step"] == step


def test_saving_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    written, begin = threading.Event(), threading.Event()

    def slow(path, content):
        begin.set()
        assert written.wait(10)

    monkeypatch.setattr(checkpoint, "save", slow)
    saver = Saver(tmp_path, ALONE, keep_last=0, milestone_every=0)
    saver.save(1, content_of(1.0))
    assert begin.wait(10)
    saver.check()  # returns although nothing is written yet
    written.set()
    saver.wait()


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path):
    saver = Saver(tmp_path, ALONE, keep_last=0, milestone_every=0)
    saver.save(1, content_of(1.0))
    saver.wait()
    with full_disk(after=2000):
        saver.save(2, content_of(2.0))
        with pytest.raises(LocalError, match="0000002.pt could not be written .*--resume auto"):
            saver.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000001.pt"]


IN_A_JOB = """
import sys, time
from pathlib import Path
import torch
from runtime import checkpoint, distributed
from runtime.entry import run
from runtime.errors import InputError, LocalError
from runtime.files import atomic_write
from runtime.saver import Saver

folder = Path(sys.argv[1])

def slow(path, content, save=checkpoint.save):
    time.sleep(2)
    save(path, content)

def saves(ranks):
    checkpoint.save = slow
    saver = Saver(folder, ranks, keep_last=0, milestone_every=0)
    saver.save(1, {"model": {"weight": torch.ones(3)}, "ema": {}, "opt": {}})
    ranks.barrier()
    if ranks.rank == 1:
        raise LocalError("bad input of rank 1")
    ranks.barrier()  # waits for rank 1 for ever

def writes(ranks):
    if ranks.rank == 1:
        time.sleep(1)
        raise InputError("a file that only rank 1 lacks")
    with atomic_write(folder / "file") as file:
        file.write(b"half")
        file.flush()
        time.sleep(100)

run(lambda: globals()[sys.argv[2]](distributed.start("cpu")))
"""


def job(folder, what):
    """Two processes of a job in which rank 1 fails."""
    (folder / "job.py").write_text(IN_A_JOB)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *words, folder / "job.py", folder, what], capture_output=True, text=True,
        timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0 and done.stderr.count("exitcode  : 2") == 2, done.stderr
    return done.stderr


def test_a_checkpoint_being_written_survives_the_failure_of_another_rank(tmp_path):
    assert job(tmp_path, "saves").count("error: bad input of rank 1") == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000001.pt"]


def test_what_one_rank_alone_finds_wrong_is_said_and_nothing_stays_half_written(tmp_path):
    """Even if it seemed to be of the kind that every rank sees."""
    assert job(tmp_path, "writes").count("error: a file that only rank 1 lacks") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["job.py"]
