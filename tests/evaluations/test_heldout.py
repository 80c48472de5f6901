"""The held-out loss: fixed triples, whatever the batch, and differences that are paired."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from domains import build
from domains.images import ImageDomain
from domains.reading import chosen
from evaluations.heldout import Flags, differences, draws_of, measured
from models import SiT
from runtime import checkpoint
from runtime.errors import InputError
from tests.commands import refused, succeed
from tests.evaluations.lab import DIGITS, digits_run, picture_folder
from transport import create_transport

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints of digits, some steps apart, with weights that differ from the EMA's."""
    folder = tmp_path_factory.mktemp("runs")
    succeed(
        "train", "--preset", "digits", "--depth", 2, "--hidden-size", 16, "--num-heads", 2,
        "--max-steps", 20, "--ckpt-every", 10, "--sample-every", 0, "--no-tensorboard",
        "--device", "cpu", "--results-dir", folder,
    )  # fmt: skip
    return sorted(map(str, folder.glob("*/checkpoints/*.pt")))


def flags(checkpoints, **more):
    return Flags(ckpt=tuple(checkpoints), **{"images": 50, "bins": 3} | more)


def test_it_is_reproducible_for_any_batch_size(checkpoints):
    one = measured(flags(checkpoints), CPU)
    assert measured(flags(checkpoints), CPU) == one
    other = measured(flags(checkpoints, batch_size=7), CPU)
    for a, b in zip(one["checkpoints"], other["checkpoints"], strict=True):
        for weights in ("ema", "model"):
            assert b[weights]["mean"] == pytest.approx(a[weights]["mean"], rel=1e-6)
            assert b[weights]["bins"] == pytest.approx(a[weights]["bins"], rel=1e-6)
    assert measured(flags(checkpoints, seed=1), CPU) != one


def test_an_image_meets_the_same_noises_whoever_else_is_asked_for(checkpoints):
    few, many = flags(checkpoints, images=1), flags(checkpoints)
    for a, b in zip(draws_of(3, few, (1, 8, 8)), draws_of(3, many, (1, 8, 8)), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(draws_of(4, many, (1, 8, 8))[1], draws_of(3, many, (1, 8, 8))[1])


def test_the_loss_is_the_velocity_loss_of_the_stored_weights(checkpoints):
    """Worked out again for one image: times inside their bins, the class of the image kept."""
    asked = flags(checkpoints[-1:], images=1)
    entry = measured(asked, CPU)["checkpoints"][0]
    stored = torch.load(checkpoints[-1], weights_only=True)
    domain = build("digits")
    (number,) = chosen(len(domain.held_out_set()), 1, asked.seed, "held-out images").tolist()
    batch = domain.held_out_set().read(number, False)
    x = torch.from_numpy(batch.raw)[None].float() / 127.5 - 1
    _, noise, uniform = draws_of(number, asked, domain.shape)
    for weights in ("ema", "model"):
        model = SiT(**stored["architecture"], class_dropout_prob=0.0)
        model.load_state_dict(stored[weights])
        model.eval()
        losses = []
        for bin in range(3):
            t = (bin + uniform[bin : bin + 1]) / 3
            assert bin / 3 <= t < (bin + 1) / 3
            e = noise[bin][None]
            with torch.no_grad():
                pred = model(t * x + (1 - t) * e, t, torch.tensor([batch.label])).pred
            losses.append(float(((pred - (x - e)) ** 2).mean()))
        assert entry[weights]["bins"] == pytest.approx(losses, rel=1e-5)
    assert create_transport().times(torch.tensor(0.25)) == 0.25


def test_differences_are_paired(checkpoints, tmp_path):
    out = tmp_path / "heldout.json"
    said = succeed("evaluations.heldout", *checkpoints, "--images", 50, "--out", out).out
    assert "50 held-out images of digits" in said
    first, second = json.loads(out.read_text())["checkpoints"]
    assert "ema_minus_first" not in first
    for weights in ("ema", "model"):
        found = second[f"{weights}_minus_first"]
        assert found["mean"] == pytest.approx(second[weights]["mean"] - first[weights]["mean"])
        assert found["low"] < found["mean"] < found["high"]
        paired, alone = (one["high"] - one["low"] for one in (found, second[weights]))
        assert paired < alone
    same = measured(flags(checkpoints[:1] * 2), CPU)["checkpoints"][1]["ema_minus_first"]
    assert (same["low"], same["mean"], same["high"]) == (0, 0, 0)


def rewritten(path, to, **parts):
    """A copy of a checkpoint with other parts; None takes one out."""
    content = torch.load(path, weights_only=True) | parts
    torch.save({key: value for key, value in content.items() if value is not None}, to)
    return str(to)


def test_differences_are_from_the_first_checkpoint_alone(checkpoints, tmp_path):
    """Where that one has no raw weights, those of the others are compared with nothing."""
    bare = rewritten(checkpoints[0], tmp_path / "bare.pt", model=None)
    second, third = measured(flags([bare, *checkpoints]), CPU)["checkpoints"][1:]
    for entry in (second, third):
        assert "ema_minus_first" in entry and "model_minus_first" not in entry


@pytest.fixture
def pictures(tmp_path):
    """A folder of own images, one of which cannot be read."""
    return picture_folder(tmp_path / "pictures", [("a", 6), ("b", 6)], broken="a/3.png")


def run_on(pictures, name, perturb, **args):
    args = DIGITS | dict(dataset_name="folder", num_classes=2, data_path=str(pictures)) | args
    return digits_run(pictures.parent, perturb, name, args=args, in_channels=3, num_classes=2)


def test_the_images_are_those_that_the_run_was_trained_on(pictures, perturb):
    run = run_on(pictures, "000-own", perturb, skip_corrupt=True)
    done = succeed("evaluations.heldout", run)
    assert f"of 12 training (none are held out) images of folder in {pictures}," in done.out
    assert "note" not in done.out
    assert done.err.startswith(f"skipped: {pictures}/a/3.png cannot be read as an image")
    assert done.err.count("\n") == 1, "it was read twice, by the EMA and by the raw weights"
    moved = pictures.rename(pictures.with_name("moved"))
    said = refused("evaluations.heldout", run)
    assert f"in {pictures}, which is not here: name their folder with --data-path" in said
    said = succeed("evaluations.heldout", run, "--data-path", moved).out
    assert f"images of folder in {moved}," in said
    assert f"note: {run} was trained on folder in {pictures}\n" in said


def test_a_file_is_verified_and_its_data_are_opened_once(checkpoints, monkeypatch):
    """Although two sets of weights are looked at."""
    verified, opened = [], []
    check, held_out_set = checkpoint.check_sums, ImageDomain.held_out_set
    monkeypatch.setattr(checkpoint, "check_sums", lambda path: (verified.append(path), check(path)))
    monkeypatch.setattr(
        ImageDomain, "held_out_set", lambda domain: (opened.append(domain), held_out_set(domain))[1]
    )
    measured(flags(checkpoints), CPU)
    assert list(map(str, verified)) == checkpoints
    assert len(opened) == len(checkpoints)


def test_a_damaged_file_is_refused(checkpoints, tmp_path):
    weights = torch.load(checkpoints[1], weights_only=True)["model"]["pos_embed"]
    damaged = bytearray(Path(checkpoints[1]).read_bytes())
    damaged[damaged.index(weights.numpy().tobytes())] ^= 1
    (tmp_path / "0000020.pt").write_bytes(damaged)
    assert "is damaged" in refused("evaluations.heldout", tmp_path / "0000020.pt")


def test_an_unreadable_image_is_passed_over_where_a_flag_or_the_run_says_so(pictures, perturb):
    run = run_on(pictures, "000-own", perturb)
    said = refused("evaluations.heldout", run)
    assert "a/3.png cannot be read" in said and "--skip-corrupt goes on without" in said
    assert " 12 training" in succeed("evaluations.heldout", run, "--skip-corrupt").out


def test_other_data_than_those_of_the_run_are_said_to_be(checkpoints, pictures, perturb):
    other = run_on(pictures, "000-own", perturb)
    said = refused("evaluations.heldout", checkpoints[0], other)
    assert "was trained on folder, the first checkpoint on digits: name the images with" in said
    said = succeed("evaluations.heldout", digits_run(pictures.parent, perturb, args=DIGITS | dict(
        dataset_name="mine")), "--data", "digits", "--images", 4).out  # fmt: skip
    assert "4 held-out images of digits" in said and "was trained on mine" in said


def test_other_steps_are_no_silent_comparison(checkpoints):
    said = succeed("evaluations.heldout", *checkpoints, "--images", 4).out
    assert "note: the checkpoints are of different steps: 10, 20" in said
    assert "note" not in succeed("evaluations.heldout", *checkpoints[:1] * 2, "--images", 4).out


def test_losses_of_another_kind_are_not_compared(checkpoints, tmp_path):
    args = torch.load(checkpoints[1], weights_only=True)["args"]
    other = rewritten(checkpoints[1], tmp_path / "n.pt", args=args | {"prediction": "noise"})
    said = refused("evaluations.heldout", checkpoints[0], other)
    assert "differ in prediction" in said


def latents_run(pictures, name, perturb, vae):
    args = DIGITS | dict(dataset_name="folder", num_classes=2, data_path=str(pictures))
    args |= dict(vae=vae, image_size=16, skip_corrupt=True)
    return digits_run(pictures.parent, perturb, name, args=args, in_channels=4, num_classes=2)


def test_a_vae_under_two_paths_is_one_vae(pictures, perturb, tiny_vae, tmp_path):
    copy = shutil.copytree(tiny_vae, tmp_path / "vae")
    one = latents_run(pictures, "000-one", perturb, tiny_vae)
    other = latents_run(pictures, "001-other", perturb, str(copy))
    found = measured(flags([str(one), str(other)]), CPU)["checkpoints"][1]
    assert found["ema_minus_first"]["bins"] == [0.0] * 3


def test_losses_in_latents_of_two_vaes_are_not_compared(pictures, perturb, tiny_vae, tmp_path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_vae)
    torch.nn.init.ones_(vae.quant_conv.bias)
    vae.save_pretrained(tmp_path / "vae")
    one = latents_run(pictures, "000-one", perturb, tiny_vae)
    other = latents_run(pictures, "001-other", perturb, str(tmp_path / "vae"))
    with pytest.raises(InputError, match="differ in VAE, so that their losses"):
        measured(flags([str(one), str(other)]), CPU)


def test_pixels_are_no_vae():
    pixels = dict(path="Linear", shape=(3, 8, 8), VAE={"name": "pixels"})
    vae = pixels | {"VAE": {"name": "a", "scale": 1.0, "shift": 0.0, "sha256": "0"}}
    assert differences(pixels, pixels) == [] and differences(vae, vae) == []
    assert differences(pixels, vae) == differences(vae, pixels) == ["VAE"]


def test_the_bins_are_of_t_whatever_training_dwelt_on(checkpoints, tmp_path):
    """A run whose times were shifted to noise is held against others at equal times."""
    args = torch.load(checkpoints[1], weights_only=True)["args"]
    shifted = rewritten(checkpoints[1], tmp_path / "s.pt", args=args | {"time_shift": 5.0})
    found = measured(flags([checkpoints[1], shifted]), CPU)
    assert found["checkpoints"][1]["ema_minus_first"]["bins"] == [0.0] * 3


def test_bad_input_is_one_sentence(checkpoints, tmp_path):
    assert "--bins 0: give 1 or more" in refused("evaluations.heldout", *checkpoints, "--bins", 0)
    assert "does not exist" in refused("evaluations.heldout", tmp_path / "no.pt")
