"""sample.py and sample_ddp.py as a person runs them."""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
import sample_ddp
import sampling
from runtime import checkpoint
from runtime.config import SampleFlags
from runtime.random import SampleStreams
from tests.commands import ROOT, call, launch, launched, refused, succeed
from tests.evaluations.lab import DIGITS, digits_run, picture_folder
from transport import Guidance, Sampler, create_transport

SMALL = ["--num-fid-samples", 20, "--per-proc-batch-size", 6]


@pytest.fixture(scope="module")
def model(perturb):
    """A model of digits that has not been trained but does something in every block."""
    model = models.SiT(
        input_size=8, in_channels=1, hidden_size=32, depth=3, num_heads=2, num_classes=10
    )
    return perturb(model, 0.1).eval()


@pytest.fixture(scope="module")
def ckpt(model, tmp_path_factory):
    """The checkpoint that train.py would write of it; the EMA differs from the raw weights."""
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "0000042.pt"
    path.parent.mkdir()
    raw = {name: value + 0.01 for name, value in model.state_dict().items()}
    args = dict(dataset_name="digits", model="SiT-Ti/2", image_size=8, vae="none")
    torch.save(
        {
            "model": raw, "ema": model.state_dict(), "opt": {}, "args": args,
            "train_steps": 42, "architecture": model.config, "regulariser": {},
        },
        path,
    )  # fmt: skip
    return path


def npz_of(folder: Path) -> Path:
    (path,) = folder.glob("*.npz")
    return path


def protocol_of(folder: Path) -> dict:
    return json.loads(npz_of(folder).with_suffix(".json").read_text())


SOLVERS = {
    "heun": "ODE --sampling-method heun2 --num-sampling-steps 5",
    "dopri5": "ODE --sampling-method dopri5",
    "sde": "SDE --num-sampling-steps 6 --cfg-scale 2.0",
}


@pytest.mark.parametrize("solver", ["heun", "sde", pytest.param("dopri5", marks=pytest.mark.slow)])
def test_samples_do_not_depend_on_the_number_of_processes(tmp_path, ckpt, solver):
    files = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        mode, *flags = SOLVERS[solver].split()
        flags += ["--ckpt", ckpt, *SMALL, "--sample-dir", folder]
        launched("sample_ddp", mode, *flags, processes=processes)
        files.append(npz_of(folder).read_bytes())
    assert files[0] == files[1] == files[2]


def test_one_rank_compares_the_checksums_of_a_checkpoint(tmp_path, ckpt):
    """Of 11 GB for XL/2, which are read whole for that, and mapped otherwise."""
    (tmp_path / "job.py").write_text(
        "import sample_ddp\n"
        "from runtime import checkpoint\n"
        "from runtime.entry import run\n"
        "compare = checkpoint.check_sums\n"
        "checkpoint.check_sums = lambda path: compare(path) or print('compared', flush=True)\n"
        "run(sample_ddp.main)\n"
    )
    words = ["ODE", "--ckpt", ckpt, *SMALL, "--sampling-method", "euler", "--num-sampling-steps", 2]
    words += ["--sample-dir", tmp_path]
    assert launched(tmp_path / "job", *words, processes=2).out.count("compared") == 1


def test_npz_is_what_adm_reads(tmp_path, ckpt):
    flags = ["--sampling-method", "euler", "--num-sampling-steps", 5, "--sample-dir", tmp_path]
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *SMALL, *flags, "--pngs")
    content = np.load(npz_of(tmp_path), allow_pickle=False)
    assert content["arr_0"].dtype == np.uint8 and content["arr_0"].shape == (20, 8, 8, 1)
    assert content["arr_1"].dtype == np.int64 and content["arr_1"].shape == (20,)
    assert len(set(content["arr_1"].tolist())) > 4
    with zipfile.ZipFile(npz_of(tmp_path)) as archive:  # ADM streams the members out of the zip
        assert archive.namelist()[0] == "arr_0.npy"
    pictures = sorted(npz_of(tmp_path).with_suffix("").glob("*.png"))
    assert [p.name for p in pictures] == [f"{i:06d}.png" for i in range(20)]
    assert np.array_equal(np.asarray(Image.open(pictures[7])), content["arr_0"][7, :, :, 0])
    assert not list(tmp_path.glob("*.blocks"))


def test_pictures_can_be_asked_for_afterwards(tmp_path, ckpt):
    flags = ["--sampling-method", "euler", "--num-sampling-steps", 3, "--sample-dir", tmp_path]
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *SMALL, *flags)
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *SMALL, *flags, "--pngs")
    content = np.load(npz_of(tmp_path))["arr_0"]
    pictures = sorted(npz_of(tmp_path).with_suffix("").glob("*.png"))
    assert len(pictures) == len(content) == 20
    assert np.array_equal(np.asarray(Image.open(pictures[7])), content[7, :, :, 0])


def test_pictures_of_a_large_file_are_written_a_block_at_a_time(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (50, 256, 256, 3), np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=images)
    tracemalloc.start()
    sample_ddp.write_pngs_of(tmp_path / "x.npz", tmp_path / "x", 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes / 2
    assert len(list((tmp_path / "x").iterdir())) == 50
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x" / "000049.png")), images[49])


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(tmp_path, ckpt):
    flags = ["--ckpt", ckpt, *SMALL, "--sampling-method", "euler", "--num-sampling-steps", 3]
    flags += ["--sample-dir", tmp_path, "--name", "x"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        result = call("sample_ddp", "ODE", *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = result.err.splitlines()[-1]  # below the progress bar
    assert result.code == 2 and said.startswith(f"error: {tmp_path}")
    assert "Traceback" not in result.err and not list(tmp_path.rglob("*.tmp"))
    succeed("sample_ddp", "ODE", *flags)
    assert len(np.load(tmp_path / "x.npz")["arr_0"]) == 20


def test_sample_i_is_a_function_of_seed_and_i_alone(tmp_path, ckpt, model):
    """Drawn here by hand, one at a time, with the public pieces."""
    flags = ["--sampling-method", "euler", "--num-sampling-steps", 5, "--global-seed", 3]
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *SMALL, *flags, "--sample-dir", tmp_path)
    content = np.load(npz_of(tmp_path))
    sample = Sampler(create_transport()).sample_ode(sampling_method="euler", num_steps=5)
    for index in (0, 7, 19):
        z, y = SampleStreams([index], 3, "cpu").start((1, 8, 8), 10)
        x = sample(z, model, y=y)[-1]
        image = (127.5 * x + 128).clamp(0, 255).to(torch.uint8)[0, 0].numpy()
        assert content["arr_1"][index] == y.item()
        difference = np.abs(content["arr_0"][index, :, :, 0].astype(int) - image.astype(int))
        assert difference.max() <= 1, "the batch's company may change the last bit of a float"


def test_balanced_labels_are_as_many_of_each_class_in_an_order_of_seed_and_index(tmp_path, ckpt):
    words = ["--ckpt", ckpt, "--sampling-method", "euler", "--num-sampling-steps", 2]
    words += ["--labels", "balanced", "--per-proc-batch-size", 6]

    def drawn(name, count, *more):
        folder = tmp_path / name
        succeed("sample_ddp", "ODE", *words, "--num-fid-samples", count, *more,
                "--sample-dir", folder)  # fmt: skip
        return np.load(npz_of(folder))["arr_1"]

    y = drawn("50", 50)
    assert np.bincount(y).tolist() == [5] * 10
    rounds = y.reshape(5, 10)
    assert all(sorted(one) == list(range(10)) != list(one) for one in rounds.tolist())
    assert len({tuple(one) for one in rounds.tolist()}) == 5  # no order comes back
    assert y[:23].tolist() == drawn("23", 23).tolist()
    assert y.tolist() != drawn("seed", 50, "--global-seed", 1).tolist()
    assert protocol_of(tmp_path / "50")["labels"] == "balanced"
    assert "-balanced-" in npz_of(tmp_path / "50").name
    two = [*words, "--num-fid-samples", 50, "--sample-dir", tmp_path / "two"]
    launched("sample_ddp", "ODE", *two, processes=2)
    assert npz_of(tmp_path / "two").read_bytes() == npz_of(tmp_path / "50").read_bytes()
    words[words.index("balanced")] = "random"
    assert drawn("random", 50).tolist() != y.tolist()
    assert "labels" not in protocol_of(tmp_path / "random")
    assert "balanced" not in npz_of(tmp_path / "random").name


def test_what_a_protocol_seldom_names_is_compared_where_it_is_left_out(tmp_path, ckpt):
    words = ["--ckpt", ckpt, *SMALL, "--sampling-method", "euler", "--num-sampling-steps", 2]
    words += ["--sample-dir", tmp_path, "--name", "x"]
    succeed("sample_ddp", "ODE", *words, "--labels", "balanced")
    assert "was drawn with another labels" in refused("sample_ddp", "ODE", *words)


def test_a_file_of_that_name_that_was_not_drawn_here_is_left_alone(tmp_path, ckpt):
    """ADM's reference, say."""
    (tmp_path / "reference.npz").write_bytes(b"of someone else")
    words = ["--ckpt", ckpt, *SMALL, "--sample-dir", tmp_path, "--name", "reference"]
    said = refused("sample_ddp", "ODE", *words)
    assert "no reference.json says that it was drawn here" in said
    assert (tmp_path / "reference.npz").read_bytes() == b"of someone else"


def test_without_a_clock_ddpm_has_its_250_calls_in_its_name(tmp_path, ckpt):
    words = ["--ckpt", ckpt, *SMALL, "--sample-dir", tmp_path, "--num-fid-samples", 2]
    succeed("sample_ddp", "DDPM", *words)
    assert "-DDPM-250-" in npz_of(tmp_path).name
    assert protocol_of(tmp_path)["network_calls"]["mean"] == 250


def test_samples_of_before_a_flag_are_gone_on_with():
    """Their protocols know no --ddim: without it they are the same samples."""
    old, new = {"sampler": {"mode": "DDPM"}}, {"sampler": {"mode": "DDPM", "ddim": False}}
    assert sample_ddp.identity(old) == sample_ddp.identity(new)
    new["sampler"]["ddim"] = True
    assert sample_ddp.identity(old) != sample_ddp.identity(new)


def test_labels_are_balanced_only_where_a_sample_has_a_class(tmp_path, perturb):
    args = DIGITS | dict(num_classes=0)
    path = digits_run(tmp_path, perturb, args=args, num_classes=0)
    words = ["--ckpt", path, *SMALL, "--labels", "balanced", "--sample-dir", tmp_path / "x"]
    assert "of no single class here, leave it out" in refused("sample_ddp", "ODE", *words)


def test_the_protocol_card_says_how_with_the_measured_calls(tmp_path, ckpt):
    flags = ["--sampling-method", "heun2", "--num-sampling-steps", 11, "--cfg-scale", 1.5]
    flags += ["--guidance-low", 0.5, "--sample-dir", tmp_path]
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *SMALL, *flags)
    card = protocol_of(tmp_path)
    assert card["network_calls"] == {"mean": 20, "max": 20}
    # 10 steps of 2 calls; the 5 steps that start at t >= 0.5 see both halves.
    assert card["network_rows_per_sample"] == 10 + 2 * 10
    assert card["checkpoint"]["step"] == 42 and len(card["checkpoint"]["sha256"]) == 64
    assert card["guidance"] == {"scale": 1.5, "channels": "all", "interval_in_t": [0.5, 1.0]}
    assert card["sampler"]["mode"] == "ODE" and card["sampler"]["sampling_method"] == "heun2"
    assert card["seed_scheme"] == "(seed, sample index)" and card["codec"] == {"name": "pixels"}
    assert card["versions"]["torch"] == torch.__version__


def test_published_protocols_by_name(tmp_path, ckpt):
    short = ["--num-sampling-steps", 6, "--num-fid-samples", 4, "--ckpt", ckpt]
    for name in ("paper-ode", "paper-sde", "repa-sde"):
        succeed("sample_ddp", "--protocol", name, *short, "--sample-dir", tmp_path / name)
    ode, paper, repa = (
        protocol_of(tmp_path / name) for name in ("paper-ode", "paper-sde", "repa-sde")
    )
    assert ode["sampler"]["sampling_method"] == "heun2" and ode["guidance"]["scale"] == 1.0
    assert ode["network_calls"]["max"] == 10 and paper["network_calls"]["max"] == 6
    assert paper["guidance"] == {"scale": 1.37, "channels": 3, "interval_in_t": [0.0, 1.0]}
    assert repa["guidance"] == {"scale": 1.8, "channels": "all", "interval_in_t": [0.3, 1.0]}
    assert repa["sampler"]["state"] == "float64"
    assert "is an SDE protocol" in refused("sample_ddp", "ODE", "--protocol", "paper-sde")


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path, ckpt):
    flags = ["ODE", "--ckpt", ckpt, "--sampling-method", "heun2", "--num-sampling-steps", 40]
    flags += ["--num-fid-samples", 60, "--per-proc-batch-size", 4]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    words = [sys.executable, str(ROOT / "sample_ddp.py"), *map(str, flags)]
    process = subprocess.Popen([*words, "--sample-dir", str(killed)], cwd=ROOT, env=os.environ)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("*.blocks/*.npz"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("*.npz"))
    done = {path: path.stat().st_mtime_ns for path in killed.glob("*.blocks/*.npz")}
    assert 3 <= len(done) < 15
    again = launch("sample_ddp", *flags, "--sample-dir", killed)
    assert again.code == 0 and "15/15" in again.err
    succeed("sample_ddp", *flags, "--sample-dir", straight)
    assert npz_of(killed).read_bytes() == npz_of(straight).read_bytes()
    whole = {path.name for path in straight.iterdir()}
    out = npz_of(straight)  # a kill while it was packed, and one while the blocks were deleted
    (straight / f".{out.name}.0123abcd.tmp").write_bytes(b"half")
    shutil.copytree(killed, out.with_suffix(".blocks"))
    finished = succeed("sample_ddp", *flags, "--sample-dir", straight)
    assert "is finished" in finished.out
    assert {path.name for path in straight.iterdir()} == whole


def test_two_checkpoints_never_share_a_file_and_a_name_is_not_overwritten(tmp_path, ckpt, model):
    other = tmp_path / "other" / "0000042.pt"
    other.parent.mkdir()
    content = torch.load(ckpt, weights_only=True)
    content["ema"] = content["model"]
    torch.save(content, other)
    flags = ["--num-fid-samples", 4, "--sampling-method", "euler", "--num-sampling-steps", 3]
    flags += ["--sample-dir", tmp_path / "out"]
    for path in (ckpt, other):
        succeed("sample_ddp", "ODE", "--ckpt", path, *flags)
    one, two = (np.load(path)["arr_0"] for path in (tmp_path / "out").glob("*.npz"))
    assert not np.array_equal(one, two)
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *flags, "--name", "mine")
    said = refused("sample_ddp", "ODE", "--ckpt", other, *flags, "--name", "mine")
    assert "another checkpoint" in said and "mine.json" in said


@pytest.mark.parametrize("size, count", [(1, 5), (2, 11)])
def test_legacy_seeds_are_sits(tmp_path, ckpt, model, size, count):
    """SiT: one stream per rank; noise, then labels; SDE noise on the CPU for both halves. Image i
    of a rank's batch is number i * world + rank after those of earlier batches."""
    flags = ["--legacy-seeds", "--global-seed", 5, "--cfg-scale", 2.0, "--num-sampling-steps", 4]
    flags += ["--num-fid-samples", count, "--per-proc-batch-size", 3, "--sample-dir", tmp_path]
    launched("sample_ddp", "SDE", "--ckpt", ckpt, *flags, processes=size)
    images, labels = torch.empty(6 * size, 1, 8, 8), torch.empty(6 * size, dtype=torch.long)
    for rank in range(size):
        torch.manual_seed(5 * size + rank)
        for total in (0, 3 * size):
            z, y = torch.randn(3, 1, 8, 8), torch.randint(0, 10, (3,))
            sample = Sampler(create_transport()).sample_sde(
                diffusion_form="sigma", num_steps=4,
                guidance=Guidance(2.0, model.null),
                randn=lambda x: torch.randn(2 * len(x), 1, 8, 8)[: len(x)],
            )  # fmt: skip
            numbers = slice(total + rank, total + 3 * size, size)
            images[numbers], labels[numbers] = sample(z, model, y=y)[-1], y
    content = np.load(npz_of(tmp_path))
    expected = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)[:count, 0].numpy()
    assert content["arr_1"].tolist() == labels[:count].tolist()
    assert np.array_equal(content["arr_0"][..., 0], expected)
    assert protocol_of(tmp_path)["seed_scheme"] == "seed * world + rank"


def test_likelihood_is_of_real_images(tmp_path, ckpt):
    flags = ["--likelihood", "--num-fid-samples", 7, "--sample-dir", tmp_path]
    flags += ["--sampling-method", "heun2", "--num-sampling-steps", 8]
    result = succeed("sample_ddp", "ODE", "--ckpt", ckpt, *flags)
    content, card = np.load(npz_of(tmp_path)), protocol_of(tmp_path)
    bits = content["bits_per_dim"]
    assert bits.shape == (7,) and np.isfinite(bits).all()
    np.testing.assert_allclose(bits, -content["log_density"] / (64 * np.log(2)), rtol=1e-5)
    assert card["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-6)
    assert "bits per dimension" in result.out


def test_the_likelihood_keeps_nothing_for_gradients_of_the_weights(ckpt):
    flags = SampleFlags(ckpt=str(ckpt), compile="off")
    opened = sampling.open_checkpoint(flags, torch.device("cpu"))

    def kept():
        sizes = []
        x = torch.zeros(2, *opened.domain.shape, requires_grad=True)
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        )
        with keep:
            opened.network(x, torch.full((2,), 0.5), y=torch.zeros(2, dtype=torch.int64))
        return sum(sizes)

    of_x = kept()
    opened.network.requires_grad_(True)
    assert 0 < of_x < 0.8 * kept()


def test_the_likelihood_is_of_the_folder_that_the_run_was_trained_on(tmp_path, perturb):
    folder = picture_folder(tmp_path / "pictures", [("a", 3), ("b", 2)], broken="a/1.png")
    args = DIGITS | dict(dataset_name="folder", data_path=str(folder), num_classes=2)
    run = digits_run(tmp_path, perturb, args=args, in_channels=3, num_classes=2, depth=1)
    words = ["--likelihood", "--sampling-method", "heun2", "--num-sampling-steps", 3]
    words = ["ODE", "--ckpt", run, *words, "--sample-dir", tmp_path / "out"]
    stopped = call("sample_ddp", *words)
    assert stopped.code == 2 and "--skip-corrupt goes on without" in stopped.err
    assert f"skipped: {folder}/a/1.png" in succeed("sample_ddp", *words, "--skip-corrupt").err
    assert np.load(npz_of(tmp_path / "out"))["bits_per_dim"].shape == (5,)


def test_the_likelihood_of_other_images_is_another_file(tmp_path, perturb):
    one, other = (picture_folder(tmp_path / name, [(name, 3)]) for name in ("a", "b"))
    args = DIGITS | dict(dataset_name="folder", data_path=str(one), num_classes=1)
    run = digits_run(tmp_path, perturb, args=args, in_channels=3, num_classes=1, depth=1)
    words = ["--likelihood", "--sampling-method", "heun2", "--num-sampling-steps", 3]
    words = ["ODE", "--ckpt", run, *words, "--sample-dir", tmp_path / "out"]
    for folder in (one, other):
        succeed("sample_ddp", *words, "--data-path", folder)
    cards = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert len({card["data"]["sha256"] for card in cards}) == 2
    assert [card["data"]["part"] for card in cards] == ["train", "train"]
    succeed("sample_ddp", *words, "--name", "x")
    said = refused("sample_ddp", *words, "--name", "x", "--data-path", other)
    assert "x.json was drawn with another data" in said


def test_reverse_gives_the_noise_that_real_images_come_from(tmp_path, ckpt, model):
    import domains

    flags = ["--reverse", "--num-fid-samples", 4, "--sample-dir", tmp_path]
    flags += ["--sampling-method", "heun2", "--num-sampling-steps", 60]
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *flags)
    noise = torch.from_numpy(np.load(npz_of(tmp_path))["arr_0"])
    domain = domains.build("digits")
    held_out = domain.held_out_set()
    batch = held_out.__getitems__(domains.Draws.plain(range(4))).checked()
    sample = Sampler(create_transport()).sample_ode(sampling_method="heun2", num_steps=60)
    back = domain.codec.decode(sample(noise, model, y=batch.y)[-1])
    assert (back.int() - batch.raw.int()).abs().max() <= 2


def test_a_grid_from_one_checkpoint(tmp_path, ckpt):
    out = tmp_path / "grid.png"
    result = succeed("sample", "--ckpt", ckpt, "--out", out, "--num-sampling-steps", 5)
    assert Image.open(out).size[0] > 100 and "16 samples" in result.out
    folder = ckpt.parent.parent
    flags = ["--num-sampling-steps", 5, "--class-labels", 3, 1, 4, "--cfg-scale", 1]
    succeed("sample", "SDE", "--ckpt", folder, "--out", out, *flags)
    assert Image.open(out).size[0] < 300


def public_layouts(folder: Path, model: models.SiT) -> dict[str, Path]:
    """The same weights as the public codes save them."""
    ema, flags = model.state_dict(), argparse.Namespace(model="SiT-S/2", vae="ema", num_classes=10)
    raw = {name: value + 0.01 for name, value in ema.items()}
    repa = ema | {"projectors.0.0.weight": torch.randn(4, 4)}
    repa_flags = argparse.Namespace(
        model="SiT-S/2", path_type="linear", prediction="v", enc_type="dinov2-vit-b", num_classes=10
    )
    layouts = {
        "train.py": {"model": raw, "ema": ema, "opt": {}, "args": flags},
        "bare": ema,
        "ema-only": {"ema": ema},
        "ddp": {"model": {f"module.{name}": value for name, value in ema.items()}},
        "repa": {"model": repa, "ema": repa, "opt": {}, "args": repa_flags, "steps": 42},
        "repa-stripped": {"ema": ema, "args": repa_flags},
        "half": {name: value.half() for name, value in ema.items()},
    }
    for name, content in layouts.items():
        torch.save(content, folder / f"{name}.pt")
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in ema.items()}, folder / "weights.safetensors")
    paths = {name: folder / f"{name}.pt" for name in layouts}
    return paths | {"safetensors": folder / "weights.safetensors"}


def test_every_public_layout_samples(tmp_path, perturb, tiny_vae):
    """Four-channel latents of 16x16; the tiny VAE stands for Stable Diffusion's."""
    small = models.SiT_models["SiT-S/8"](input_size=16, num_classes=10)
    model = perturb(small, 0.05).eval()
    pictures = {}
    for name, path in public_layouts(tmp_path, model).items():
        out = tmp_path / f"{name}.png"
        flags = ["--vae", tiny_vae, "--image-size", 32, "--num-sampling-steps", 3, "--out", out]
        flags += ["--sampling-method", "euler", "--class-labels", 1, 9, "--cfg-scale", 1.5]
        succeed("sample", "ODE", "--ckpt", path, *flags)
        pictures[name] = np.asarray(Image.open(out))
    first = pictures["bare"]
    assert first.std() > 5
    for name in ("train.py", "ema-only", "ddp", "safetensors"):
        assert np.array_equal(pictures[name], first), name
    assert np.abs(pictures["half"].astype(int) - first).mean() < 2
    assert np.array_equal(pictures["repa"], pictures["repa-stripped"])
    assert not np.array_equal(pictures["repa"], first), "its time runs the other way"


@pytest.mark.parametrize(
    "args, words, model, begins",
    [
        ({}, [], None, "SiT-w-cfg-"),
        ({}, ["--model", "SiT-S/8"], "SiT-S/8", "SiT-S-8-w-cfg-"),
        ({"model": "SiT-mine"}, ["--model", "SiT-S/8"], "SiT-mine", "SiT-mine-w-cfg-"),
    ],
)
def test_weights_that_do_not_name_their_model_go_by_the_flag(
    tmp_path, tiny_vae, args, words, model, begins
):
    weights = models.SiT_models["SiT-S/8"](input_size=16, num_classes=10).state_dict()
    torch.save({"ema": weights, "args": args}, tmp_path / "w.pt")
    words = ["--ckpt", tmp_path / "w.pt", "--vae", tiny_vae, "--image-size", 32, *words]
    words += ["--sampling-method", "euler", "--num-sampling-steps", 2, "--num-fid-samples", 1]
    succeed("sample_ddp", "ODE", *words, "--sample-dir", tmp_path)
    assert npz_of(tmp_path).name.startswith(begins)
    assert protocol_of(tmp_path)["checkpoint"]["model"] == model


@pytest.mark.parametrize(
    "kind, flags, used",
    [
        (argparse.Namespace, {}, 0.0),
        (argparse.Namespace, {"path_type": "GVP", "prediction": "velocity"}, 0.0),
        (argparse.Namespace, {"path_type": "VP", "prediction": "velocity"}, 0.01),
        (argparse.Namespace, {"path_type": "Linear", "prediction": "noise"}, 0.01),
        (dict, {}, 0.01),  # ours obeys the flag
    ],
)
def test_epsilons_that_public_code_was_given_and_ignored_are_ignored(
    tmp_path, ckpt, kind, flags, used
):
    content = torch.load(ckpt, weights_only=True)
    content["args"] = kind(**content["args"], **flags, train_eps=0.02, sample_eps=0.01)
    path = tmp_path / "0000042.pt"
    torch.save(content, path)
    assert checkpoint.read(path).args["train_eps"] == (0.02 if used else None)
    words = ["--sampling-method", "euler", "--num-sampling-steps", 2, "--num-fid-samples", 1]
    succeed("sample_ddp", "ODE", "--ckpt", path, *words, "--sample-dir", tmp_path)
    assert protocol_of(tmp_path)["sampler"]["sample_eps"] == used


def damaged(folder: Path, ckpt: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no checkpoints, and what the refusal must say of them."""

    class Shell:
        def __reduce__(self):
            return os.system, (f"touch {folder}/executed",)

    whole = ckpt.read_bytes()
    paths = {name: folder / f"{name}.pt" for name in ("cut", "empty", "text", "code", "list")}
    paths["cut"].write_bytes(whole[: len(whole) // 2])
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("these are not the weights you are looking for")
    torch.save({"model": Shell()}, paths["code"])
    torch.save([1, 2], paths["list"])
    torch.save({"model": {"x": 3}}, folder / "number.pt")
    torch.save({"model": {"conv.weight": torch.zeros(2)}}, folder / "foreign.pt")
    (folder / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    said = {
        "cut": "damaged or truncated", "empty": "empty.pt", "text": "text.pt",
        "code": "nothing in a checkpoint may be executed", "list": "holds a list",
    }  # fmt: skip
    cases = {name: (paths[name], words) for name, words in said.items()}
    cases["number"] = (folder / "number.pt", "no state dict")
    cases["foreign"] = (folder / "foreign.pt", "not the weights of a SiT")
    cases["cut.safetensors"] = (folder / "cut.safetensors", "damaged")
    cases["missing"] = (folder / "missing.pt", "does not exist")
    return cases


def test_files_that_are_no_checkpoints_get_one_sentence_and_run_nothing(tmp_path, ckpt):
    for path, words in damaged(tmp_path, ckpt).values():
        said = refused("sample", "--ckpt", path, "--out", tmp_path / "x.png")
        assert words in said and path.name in said, said
    assert not (tmp_path / "executed").exists() and not (tmp_path / "x.png").exists()


def test_weights_that_do_not_fit_their_architecture_name_the_first_tensor(tmp_path, ckpt):
    content = torch.load(ckpt, weights_only=True)
    content["ema"]["blocks.1.attn.qkv.weight"] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "0000001.pt")
    said = refused("sample", "--ckpt", tmp_path / "0000001.pt")
    assert "blocks.1.attn.qkv.weight is (3, 3) in the checkpoint and (96, 32)" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--ckpt is missing"),
        ("--ckpt CKPT --class-labels 3 10", "class id 10 is out of range"),
        ("--ckpt CKPT --model SiT-XL/2", "--model SiT-XL/2"),
        ("--ckpt CKPT --num-classes 1000", "--num-classes 1000"),
        ("--ckpt CKPT --image-size 256", "--image-size 256"),
        ("--ckpt CKPT --dataset_name fashion-mnist", "--image-size 8"),
        ("--ckpt CKPT --vae /no/such/vae --dataset_name folder", "/no/such/vae"),
        ("--ckpt CKPT --sampling-method rk99", "unknown ODE sampling method 'rk99'"),
        ("--ckpt CKPT --num-sampling-steps 1", "--num-sampling-steps 1"),
        ("--ckpt CKPT --guidance-low 0.9 --guidance-high 0.1", "interval"),
        ("--ckpt CKPT --cfg-scale nan", "--cfg-scale nan"),
        ("--ckpt CKPT --model SiT-Ti/4", "--model SiT-Ti/4"),
        ("--ckpt CKPT --protocol best", "unknown protocol 'best'"),
    ],
)
def test_bad_flags_of_sampling_get_one_sentence(tmp_path, ckpt, flags, words):
    said = refused("sample", *flags.replace("CKPT", str(ckpt)).split(), "--out", tmp_path / "x.png")
    assert words in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("ODE --sampling-method rk99", "unknown ODE sampling method"),
        ("ODE --guidance-low 0.9 --guidance-high 0.1 --cfg-scale 2", "interval"),
        ("ODE --atol nan", "--atol nan"),
        ("ODE --skip-blocks 2 9", "--skip-blocks: block 9 does not exist"),
        ("SDE --last-step-size 1", "--last-step-size 1"),
        ("SDE --diffusion-norm nan", "--diffusion-norm nan"),
        ("ODE --per-proc-batch-size 0", "--per-proc-batch-size 0"),
        ("ODE --likelihood --pngs", "without --pngs"),
        ("ODE --reverse --cfg-scale 2", "--cfg-scale"),
        ("ODE --likelihood --labels balanced", "--cfg-scale and --labels balanced"),
        ("ODE --attention cudnn --device cpu", "--attention cudnn"),
    ],
)
def test_bad_flags_of_npz_sampling_write_nothing(tmp_path, ckpt, flags, words):
    mode, *rest = flags.split()
    out = ["--ckpt", ckpt, "--num-fid-samples", 4, "--sample-dir", tmp_path / "samples"]
    assert words in refused("sample_ddp", mode, *out, *rest)
    assert not (tmp_path / "samples").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, ckpt):
    (tmp_path / "file").write_text("not a folder")
    flags = ["--ckpt", ckpt, "--num-fid-samples", 4, "--sample-dir", tmp_path / "file" / "x"]
    assert "file/x" in refused("sample_ddp", "ODE", *flags)
    few = ["--num-sampling-steps", 2, "--sampling-method", "euler"]
    assert str(tmp_path) in refused("sample", "--ckpt", ckpt, *few, "--out", tmp_path)


def test_flags_that_a_checkpoint_records_as_not_given_are_the_defaults(tmp_path, ckpt):
    content = torch.load(ckpt, weights_only=True)
    content["args"] |= dict(path_type=None, prediction=None, sample_eps=None, time_shift=None)
    torch.save(content, tmp_path / "0000042.pt")
    few = ["--num-sampling-steps", 3, "--sampling-method", "euler"]
    for number, path in enumerate((ckpt, tmp_path / "0000042.pt")):
        succeed("sample", "--ckpt", path, *few, "--out", tmp_path / f"{number}.png")
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def test_weights_that_are_not_finite_give_no_samples(tmp_path, ckpt):
    content = torch.load(ckpt, weights_only=True)
    content["ema"]["blocks.1.attn.proj.bias"][0] = float("nan")
    torch.save(content, tmp_path / "0000001.pt")
    flags = ["--ckpt", tmp_path / "0000001.pt", "--num-fid-samples", 4, "--sample-dir", tmp_path]
    result = call("sample_ddp", "ODE", *flags, "--sampling-method", "euler")
    assert result.code == 1 and "not finite" in result.err and not list(tmp_path.glob("*.npz"))


def test_a_moved_checkpoint_is_the_same_checkpoint(tmp_path, ckpt):
    flags = ["--num-fid-samples", 4, "--sampling-method", "euler", "--num-sampling-steps", 3]
    flags += ["--sample-dir", tmp_path / "out"]
    succeed("sample_ddp", "ODE", "--ckpt", ckpt, *flags)
    moved = tmp_path / "0000042.pt"
    moved.write_bytes(ckpt.read_bytes())
    assert "is finished" in succeed("sample_ddp", "ODE", "--ckpt", moved, *flags).out


def test_misspelt_flags_are_errors_not_ignored(tmp_path, ckpt):
    for script in ("sample", "sample_ddp"):
        result = call(script, "ODE", "--ckpt", ckpt, "--cfg-scal", "1.5")
        assert result.code == 2 and "--cfg-scal" in result.err + result.out
    for flags in (["--likelihood", "--reverse"], ["--legacy-seeds", "--reverse"]):
        said = refused("sample_ddp", "ODE", "--ckpt", ckpt, *flags, "--sample-dir", tmp_path)
        assert "do not go together" in said
    assert not any(tmp_path.iterdir())
