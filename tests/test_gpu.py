"""What only a GPU can show: `pytest -m gpu` on a machine that has one."""

import json

import numpy as np
import pytest
import torch

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


def test_the_step_never_waits_for_the_device():
    import train
    from runtime.config import TrainConfig

    device = torch.device("cuda", 0)
    config, domain, transport, model, regulariser = train.build(
        TrainConfig(dataset_name="digits", model="SiT-Ti/2", global_batch_size=16), device
    )
    state = train.TrainState(config, model, regulariser, device)
    step = train.TrainingStep(model, transport, regulariser)
    x, y = torch.rand(16, *domain.shape, device=device), torch.zeros(16, device=device).long()
    try:
        for number in range(4):
            # The first steps may wait: libraries load, AdamW makes its moments.
            torch.cuda.set_sync_debug_mode("error" if number >= 2 else "default")
            draws = train.draws_of_step(config, domain.shape, number, device)
            weight = torch.full((), regulariser.weight(number), device=device)
            cond = model.drop({"y": y}, draws.dropped)
            losses = step(x, draws.noise, transport.times(draws.time), cond, weight)
            losses.total.backward()
            state.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
