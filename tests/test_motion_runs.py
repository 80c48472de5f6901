"""Motion through the same commands and flags as pictures: trained, resumed, drawn."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import domains
import sampling
import training
from runtime.config import SampleFlags, TrainConfig, parse
from runtime.distributed import Ranks
from runtime.presets import PRESETS
from tests.commands import assert_same_state, checkpoint_of, launched, refused, succeed
from tests.domains.motions import save_clip, write_humanml3d

TINY = (
    "--preset t4 --hidden-size 32 --num-heads 2 --image-size 48 --global-batch-size 4 --lr 1e-3 "
    "--num-workers 0 --log-every 1 --no-tensorboard --device cpu --sample-every 0"
).split()


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion")
    root = write_humanml3d(folder / "HumanML3D")
    where = ["--data-path", root, "--text-encoder", save_clip(folder / "clip")]
    return [*TINY, *where, "--cache-dir", folder / "cache"]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    succeed("train", *flags, "--max-steps", 3, "--sample-every", 3, "--results-dir", results)
    (folder,) = results.iterdir()
    return folder


@pytest.fixture(scope="module")
def data(flags):
    words = dict(zip(flags, flags[1:], strict=False))
    return ["--data-path", words["--data-path"], "--cache-dir", words["--cache-dir"]]


def test_it_trains_with_layer_sync_and_shows_stick_figures(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 3 and all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert -1 < lines[0]["reg"] < 0 and "pairs=3:6" in (run / "log.txt").read_text()
    stored = checkpoint_of(run.parent, 3)
    assert stored["architecture"]["text_width"] == 12 and stored["architecture"]["steps"] == 1000
    assert stored["args"]["path_type"] == "Cosine-1000" and stored["args"]["prediction"] == "data"
    assert torch.equal(stored["model"]["embed_text.weight"], stored["ema"]["embed_text.weight"])
    from PIL import Image

    with Image.open(run / "samples" / "0000003.gif") as animation:
        assert animation.n_frames >= 36
    assert (run / "samples" / "0000003.png").stat().st_size > 2000


def test_resume_is_exact_with_dropout(flags, tmp_path):
    succeed("train", *flags, "--max-steps", 4, "--results-dir", tmp_path / "whole")
    for stop in (2, 4):
        words = ["--max-steps", stop, "--resume", "auto", "--results-dir", tmp_path / "parts"]
        succeed("train", *flags, *words)
    assert_same_state(*(checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts")))


def test_two_processes_see_the_same_motions(flags, tmp_path):
    """Without dropout, whose masks are drawn per process."""
    words = [*flags, "--dropout", 0, "--max-steps", 2, "--results-dir"]
    launched("train", *words, tmp_path / "two", processes=2)
    succeed("train", *words, tmp_path / "one")
    one, two = (checkpoint_of(tmp_path / name, 2)["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)


def first_step(flags, folder, *words):
    succeed("train", *flags, "--max-steps", 1, "--dropout", 0, *words, "--results-dir", folder)
    (log,) = folder.glob("*/log.jsonl")
    return json.loads(log.read_text().splitlines()[0])


def test_captions_are_encoded_where_the_command_computes(flags, data, run):
    here, elsewhere = torch.device("cpu"), torch.device("meta")
    config = parse(TrainConfig, PRESETS, list(map(str, flags)))
    _, domain, *_ = training.build(config, elsewhere)
    assert domain.device == elsewhere
    asked = SampleFlags(ckpt=str(run), data_path=str(data[1]), compile="off")
    opened = sampling.open_checkpoint(asked, here)
    assert opened.domain.device == here
    domain = sampling.domain_of(asked, opened.checkpoint, opened.network.model, elsewhere)
    assert domain.device == elsewhere


def test_padding_enters_neither_loss_nor_cosine(flags):
    """With masked attention the network does not see it either: whatever stands there, both terms
    and all gradients stay as they are."""
    words = [*map(str, flags), "--image-size", "80", "--mask-frames", "--dropout", "0"]
    config = parse(TrainConfig, PRESETS, words)
    config, domain, transport, model, method = training.build(config, torch.device("cpu"))
    alone = Ranks(0, 1, torch.device("cpu"))
    trainer = training.Trainer(config, domain, transport, model, method, alone)
    batch = domain.train_set().__getitems__(domains.Draws.plain(range(4)))
    assert not batch.mask.all()
    inputs = trainer.inputs(batch, trainer.step_draws(0))
    found = []
    for rubbish in (0.0, 1e3):
        x, noise = (torch.where(batch.mask, inputs[name], rubbish) for name in ("x", "noise"))
        losses = trainer.training_step(**inputs | {"x": x, "noise": noise}, **trainer.weights(0))
        losses.total.backward()
        found.append([*losses, *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    # Every valid frame counts once: the mean over the frames of all four clips.
    pred = model(transport.path.sample(inputs["x"], inputs["noise"], inputs["t"])[0], inputs["t"],
                 **inputs["cond"]).pred  # fmt: skip
    error = ((pred - inputs["x"]) ** 2).mean(1, keepdim=True)
    by_hand = [(error[i, batch.mask[i]]).mean() for i in range(4)]
    torch.testing.assert_close(found[0][1], torch.stack(by_hand).mean().detach())


@pytest.mark.parametrize("tokens", ["padded", "all"])
def test_what_the_term_counts_is_a_flag(flags, tmp_path, tokens):
    valid = first_step(flags, tmp_path / "valid", "--image-size", 80)
    other = first_step(flags, tmp_path / tokens, "--sync-tokens", tokens, "--image-size", 80)
    assert valid["velocity"] == other["velocity"] and valid["reg"] != other["reg"]


@pytest.mark.parametrize("tokens", ["valid", "padded", "all"])
def test_a_random_teacher_is_compared_on_the_same_tokens(flags, tmp_path, tokens):
    found = first_step(flags, tmp_path, "--sync-tokens", tokens, "--teacher", "random")
    assert np.isfinite(found["loss"]) and abs(found["reg"]) < 0.9


def test_sit_is_not_for_samples_of_many_lengths(flags, tmp_path):
    words = ["--text-encoder", "none", "--model", "SiT-Ti/4", "--results-dir", tmp_path / "r"]
    said = refused("train", *flags, *words)
    assert "the data are padded: give --model MDM" in said and not (tmp_path / "r").exists()


def test_samples_are_motions_of_captions_and_lengths(run, data, tmp_path):
    words = ["--ckpt", run, *data, "--device", "cpu", "--num-sampling-steps", 4]
    for name, size in (("a", 6), ("b", 2)):
        count = ["--num-fid-samples", 6, "--per-proc-batch-size", size]
        where = ["--sample-dir", tmp_path, "--name", name]
        succeed("sample_ddp", "DDPM", *words, "--cfg-scale", 2.5, *count, *where)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a["arr_0"].shape == (6, 48, 263) and a["arr_0"].dtype == np.float32
        assert a["arr_1"].shape == (6, 2) and set(a["arr_1"][:, 1]) <= set(range(36, 52, 4))
        assert np.array_equal(a["arr_1"], b["arr_1"])
        np.testing.assert_allclose(a["arr_0"], b["arr_0"], rtol=1e-3, atol=1e-3)
    protocol = json.loads((tmp_path / "a.json").read_text())
    assert protocol["sampler"]["mode"] == "DDPM" and protocol["guidance"]["scale"] == 2.5
    assert protocol["network_calls"]["max"] == 4 and "float32" in protocol


def test_words_become_stick_figures(run, data, tmp_path):
    words = ["--ckpt", run, *data, "--device", "cpu", "--num-sampling-steps", 3]
    out = tmp_path / "s.png"
    prompts = ["--prompts", "a person walks", "a person waves", "--num-frames", 40]
    succeed("sample", "DDPM", *words, *prompts, "--out", out)
    from PIL import Image

    with Image.open(out.with_suffix(".gif")) as animation:
        assert animation.n_frames == 40
    assert out.stat().st_size > 2000
    said = refused("sample", "DDPM", *words, *prompts[:-1], 400, "--out", out)
    assert "--num-frames 400: the model has 48 or fewer" in said
    assert "give both" in refused("sample", "DDPM", *words, "--num-frames", 40, "--out", out)
    both = [*prompts, "--class-labels", 1, "--out", out]
    assert "do not go together" in refused("sample", "DDPM", *words, *both)
    said = refused("sample", "ODE", *words, "--out", out)
    assert "Cosine-1000 is a discrete diffusion: sample it by DDPM" in said


def test_a_released_mdm_is_sampled(flags, data, tmp_path):
    """A bare state dict and args.json, as MDM's repository writes them."""
    from models import MDM

    torch.manual_seed(0)
    model = MDM(input_size=(196,), hidden_size=32, depth=2, text_width=12)
    torch.save(model.state_dict(), tmp_path / "model000000100.pt")
    (tmp_path / "args.json").write_text(json.dumps({"diffusion_steps": 50, "dataset": "humanml"}))
    clip = dict(zip(flags, flags[1:], strict=False))["--text-encoder"]
    words = ["--ckpt", tmp_path / "model000000100.pt", "--text-encoder", clip, *data]
    succeed("sample_ddp", "--protocol", "mdm", *words, "--num-fid-samples", 2, "--device", "cpu",
            "--sample-dir", tmp_path, "--name", "s")  # fmt: skip
    with np.load(tmp_path / "s.npz") as samples:
        assert samples["arr_0"].shape == (2, 196, 263) and np.isfinite(samples["arr_0"]).all()
    protocol = json.loads((tmp_path / "s.json").read_text())
    assert protocol["sampler"]["path_type"] == "Cosine-50"
    assert protocol["network_calls"]["max"] == 50


def test_a_network_is_checked_by_its_name_whatever_its_dropout_was(flags, data, tmp_path):
    from models import MDM

    clip = dict(zip(flags, flags[1:], strict=False))["--text-encoder"]
    args = {"dataset_name": "humanml3d", "text_encoder": str(clip), "image_size": 48}
    args |= {"path_type": "Cosine-1000", "prediction": "data"}
    words = [*data, "--device", "cpu", "--num-sampling-steps", 2, "--out", tmp_path / "s.png"]
    for name, size in (("named", {}), ("other", {"depth": 2})):
        model = MDM(input_size=(48,), text_width=12, dropout=0.0, **size)
        content = {"ema": model.state_dict(), "args": args, "architecture": model.config}
        torch.save(content, tmp_path / f"{name}.pt")
    asked = ["--model", "MDM", "--prompts", "a person walks", *words]
    succeed("sample", "DDPM", "--ckpt", tmp_path / "named.pt", *asked)
    said = refused("sample", "DDPM", "--ckpt", tmp_path / "other.pt", *asked)
    assert "--model MDM, but" in said and "'depth': 2" in said
    said = refused("sample", "DDPM", "--ckpt", tmp_path / "named.pt", "--model", "SiT-S/1", *words)
    assert "--model SiT-S/1, but" in said


def test_a_sit_of_the_size_of_mdm_is_no_mdm(tmp_path):
    from models import SiT

    size = dict(hidden_size=512, depth=8, num_heads=4, num_classes=10)
    model = SiT(input_size=8, in_channels=1, **size)
    args = {"dataset_name": "digits", "vae": "none", "image_size": 8}
    content = {"ema": model.state_dict(), "args": args, "architecture": model.config}
    torch.save(content, tmp_path / "sit.pt")
    words = ["--ckpt", tmp_path / "sit.pt", "--device", "cpu", "--out", tmp_path / "s.png"]
    assert "--model MDM, but" in refused("sample", *words, "--model", "MDM")


def test_the_held_out_loss_and_a_flow_are_for_motion_too(flags, data, tmp_path):
    """MDM on the paths of SiT: the same network, a velocity, the ODE."""
    words = ["--path-type", "Linear", "--prediction", "velocity", "--max-steps", 2]
    succeed("train", *flags, *words, "--results-dir", tmp_path)
    (run,) = tmp_path.iterdir()
    found = succeed("evaluations.heldout", run, *data[:2], "--device", "cpu")
    assert "4 held-out images of humanml3d" in found.out
    few = ["--sampling-method", "heun2", "--num-sampling-steps", 3, "--device", "cpu"]
    succeed("sample", "ODE", "--ckpt", run, *data, *few, "--out", tmp_path / "s.png")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--dataset_name humanml3d --model MDM", "needs --data-path FOLDER with new_joint_vecs"),
        ("--preset t4 --data-path . --text-encoder none", "expected HumanML3D's"),
        ("--preset t4 --text-encoder .", "is no folder of transformers' CLIPTextModel"),
        ("--preset t4 --model SiT-S/1", "give --model MDM"),
        ("--preset digits --model MDM", "conditioned on texts"),
        ("--preset t4 --loss-type dispersive", "those of humanml3d are padded"),
        ("--preset t4 --prediction velocity", "predict data or noise"),
    ],
)
def test_what_motion_lacks_is_one_sentence(tmp_path, words, sentence):
    said = refused("train", *words.split(), "--device", "cpu", "--results-dir", tmp_path / "r")
    assert sentence in said and not (tmp_path / "r").exists()


@pytest.fixture
def own(flags, tmp_path):
    """A copy of data and text encoder that a test may spoil, and the flags that name it."""
    words = list(map(str, flags))
    for flag in ("--data-path", "--text-encoder"):
        at = words.index(flag) + 1
        words[at] = str(shutil.copytree(words[at], tmp_path / flag.strip("-")))
    return words, tmp_path / "data-path", tmp_path / "text-encoder"


def test_without_a_test_split_a_run_has_no_previews_and_does_not_die_of_it(own, tmp_path):
    words, data, _ = own
    (data / "test.txt").unlink()
    done = succeed("train", *words, "--sample-every", 1, "--max-steps", 2,
                   "--results-dir", tmp_path / "r")  # fmt: skip
    assert "no previews" in done.out and "test.txt cannot be read" in done.out
    assert checkpoint_of(tmp_path / "r", 2)["train_steps"] == 2


def test_the_text_encoder_belongs_to_the_model(own, tmp_path):
    words, data, clip = own
    run = ["--results-dir", tmp_path / "r"]
    succeed("train", *words, "--max-steps", 1, *run)
    shutil.rmtree(clip)
    save_clip(clip, seed=1)
    said = refused("train", *words, "--max-steps", 2, "--resume", "auto", *run)
    assert "it was trained with another text encoder: give --text-encoder the one of then" in said
    (folder,) = (tmp_path / "r").iterdir()
    sample = ["--ckpt", folder, "--data-path", data, "--out", tmp_path / "s.png", "--device", "cpu"]
    assert "another text encoder" in refused("sample", "DDPM", *sample)
    shutil.rmtree(clip)
    save_clip(clip, width=6)
    said = refused("sample", "DDPM", *sample)
    assert "takes texts of 12 numbers, and those of --text-encoder" in said


def test_the_evaluators_statistics_are_not_the_datas(own, tmp_path):
    words, data, _ = own
    std = np.load(data / "Std.npy")
    std[[0, 1, 2, 3, -4, -3, -2, -1]] /= 25
    np.save(data / "Std.npy", std)
    said = refused("train", *words, "--max-steps", 1, "--results-dir", tmp_path / "r")
    assert "it is the evaluator's t2m_std.npy; take HumanML3D's own" in said


def test_samples_are_of_one_list_of_captions(run, own, tmp_path):
    _, data, clip = own
    words = ["--ckpt", run, "--data-path", data, "--num-sampling-steps", 2, "--device", "cpu"]
    words += ["--num-fid-samples", 2, "--sample-dir", tmp_path, "--name", "s"]
    succeed("sample_ddp", "DDPM", *words)
    names = (data / "test.txt").read_text().split()
    (data / "test.txt").write_text("\n".join(names[::-1]))
    assert "was drawn with another captions" in refused("sample_ddp", "DDPM", *words)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"noise_schedule": "linear"}, "has noise_schedule 'linear': only 'cosine' is sampled"),
        ({"diffusion_steps": [1]}, "has diffusion_steps [1]: only 1000 and 50"),
        ({"sigma_small": False}, "has sigma_small False"),
    ],
)
def test_a_released_mdm_of_another_diffusion_is_refused(tmp_path, args, sentence):
    from models import MDM

    torch.save(MDM(hidden_size=16, depth=2).state_dict(), tmp_path / "model000000100.pt")
    (tmp_path / "args.json").write_text(json.dumps(args))
    said = refused("sample", "DDPM", "--ckpt", tmp_path / "model000000100.pt", "--device", "cpu")
    assert sentence in said


def test_what_is_for_pictures_is_not_for_motion(run, flags, data, tmp_path):
    words = [run, *data[:2], "--device", "cpu"]
    said = refused("evaluations.similarity", *words)
    assert "is a model of humanml3d, conditioned on texts, which this command does not" in said
    found = succeed("evaluations.drop_blocks", *words, "--images", 2, "--out", tmp_path)
    assert "drop_blocks.json" in found.out and not (tmp_path / "drop_blocks.png").exists()
    for more, sentence in (
        (["--loss-type", "repa"], "repa sees images, and humanml3d has none"),
        (["--loss-type", "sra", "--sra-variant", "cos", "--sra-cos-axis", "tokens"], "are padded"),
        (["--similarity", "trd", "--trd-pool", 2], "give --sync-tokens padded"),
        (["--similarity", "trd", "--trd-pool", 2, "--sync-tokens", "all"], "--sync-tokens padded"),
    ):
        assert sentence in refused("train", *flags, *more, "--results-dir", tmp_path / "r")


def test_motions_are_scored_in_training_by_an_evaluator(flags, tmp_path):
    words = [*flags, "--score-every", 10, "--max-steps", 1, "--results-dir", tmp_path / "r"]
    assert "give --score-reference FOLDER, T2M's" in refused("train", *words)
    said = refused("train", *words, "--score-extractor", "inception")
    assert "motions are scored by the evaluator of --score-reference, leave it out" in said
    words += ["--score-reference", tmp_path]
    assert "--score-samples 500: motions are scored by 32" in refused("train", *words)
    few = refused("train", *words, "--score-samples", 32)
    assert "clips in its test split, and R-precision is among 32" in few
    assert not (tmp_path / "r").exists()
