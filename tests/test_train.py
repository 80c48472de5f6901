"""train.py as a person runs it: real data, real processes, real files."""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
import training
from domains.order import GlobalBatches
from runtime import checkpoint
from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.draws import draws_of_step
from tests.commands import (
    ROOT,
    assert_same_state,
    call,
    checkpoint_of,
    flat,
    launch,
    launched,
    refused,
    score_rows,
    succeed,
    torchrun,
)

# Digits: 1,297 training images are 3 steps of 400 an epoch, so that 4 + 4 steps stop in mid-epoch
# and cross into new epochs.
TINY = (
    "--dataset_name digits --model SiT-Ti/4 --depth 4 --hidden-size 32 --num-heads 2 --lr 1e-3 "
    "--ema-decay 0.9 --num-workers 0 --log-every 2 --sample-every 0 --no-tensorboard"
).split()
EPOCHS = [*TINY, "--global-batch-size", "432"]
BATCH = [*TINY, "--global-batch-size", "12"]


def rows(results: Path) -> list[dict]:
    (path,) = results.glob("*/log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "start, processes",
    [(launch, 1), (torchrun, 2), pytest.param(launch, 3, marks=pytest.mark.slow)],
)
def test_resume_is_exact(tmp_path, start, processes):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    words, run = [*EPOCHS, "--max-steps", 8, "--ckpt-every", 4], dict(processes=processes)
    done = start("train", *words, "--results-dir", straight, **run)
    assert done.code == 0, done.err
    shutil.copytree(straight, stopped)  # as if it had ended before its second checkpoint
    (last,) = stopped.glob("*/checkpoints/0000008.pt")
    last.unlink()
    launched("train", *words, "--results-dir", stopped, "--resume", "auto", **run)
    assert_same_state(checkpoint_of(straight, 8), checkpoint_of(stopped, 8))
    numbers = ("step", "loss", "velocity", "reg", "grad_norm")
    for one, other in zip(rows(straight), rows(stopped), strict=True):
        assert [one[key] for key in numbers] == [other[key] for key in numbers]


def test_resume_is_exact_with_micro_batches_workers_and_a_schedule(tmp_path):
    flags = [*EPOCHS, "--grad-accum", 3, "--clip-grad-norm", 0.5, "--precision", "bf16"]
    flags += ["--reg-schedule", "cosine", "--reg-schedule-steps", 7]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    succeed("train", *flags, "--results-dir", straight, "--max-steps", 6)
    succeed("train", *flags, "--results-dir", stopped, "--max-steps", 2)
    resume = ["--max-steps", 6, "--resume", "auto", "--num-workers", 1]
    succeed("train", *flags, "--results-dir", stopped, *resume)
    assert_same_state(checkpoint_of(straight, 6), checkpoint_of(stopped, 6))


@pytest.fixture(scope="module")
def one_and_two_ranks(tmp_path_factory):
    folders = {n: tmp_path_factory.mktemp(f"ranks{n}") for n in (1, 2)}
    words = [*BATCH, "--max-steps", 2, "--log-every", 1, "--ckpt-every", 1]
    succeed("train", *words, "--results-dir", folders[1])
    launched("train", *words, "--results-dir", folders[2], processes=2)
    return folders


def test_two_ranks_average_to_the_gradient_of_the_joint_batch(one_and_two_ranks):
    """After one step AdamW's first moment is 0.1 of the gradient."""
    one, two = (checkpoint_of(folder, 1)["opt"]["state"] for folder in one_and_two_ranks.values())
    gradients = [state["exp_avg"] for state in one.values()]
    assert max(g.abs().max() for g in gradients) > 1e-3
    for ours, joint in zip(two.values(), gradients, strict=True):
        torch.testing.assert_close(ours["exp_avg"], joint, rtol=1e-4, atol=1e-8)


def test_logged_parts_add_up_and_are_averages_over_ranks(one_and_two_ranks):
    one, two = (rows(folder) for folder in one_and_two_ranks.values())
    for alone, joined in zip(one, two, strict=True):
        total = joined["velocity"] + joined["reg_weight"] * joined["reg"]
        assert joined["loss"] == pytest.approx(total, rel=1e-5)
        for name in ("loss", "velocity", "reg", "grad_norm"):
            assert joined[name] == pytest.approx(alone[name], rel=1e-4)


def test_noise_times_drops_and_data_do_not_depend_on_the_number_of_ranks():
    config = TrainConfig(global_batch_size=12)

    def draws_of(step):
        asked = dict(posterior=True, teacher=True)
        return draws_of_step(config, (1, 8, 8), step, torch.device("cpu"), **asked)

    draws, again, other = draws_of(7), draws_of(7), draws_of(8)
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert not torch.equal(draws.noise, other.noise)

    def joined(ranks, micro_batches):
        samplers = [
            GlobalBatches(
                100, 12, seed=0, start=7, stop=8, rank=r, ranks=ranks, micro_batches=micro_batches
            )
            for r in range(ranks)
        ]
        parts = [part for sampler in samplers for part in sampler]
        return [draw for part in parts for draw in zip(*part, strict=True)]

    assert joined(1, 1) == joined(2, 1) == joined(3, 2) == joined(4, 3)


def test_gradient_accumulation_is_the_joint_batch(tmp_path):
    for name, parts in (("one", 1), ("three", 3)):
        arguments = ["--results-dir", tmp_path / name, "--max-steps", 1, "--grad-accum", parts]
        succeed("train", *BATCH, *arguments)
    one, three = (checkpoint_of(tmp_path / name, 1)["opt"]["state"] for name in ("one", "three"))
    for a, b in zip(one.values(), three.values(), strict=True):
        torch.testing.assert_close(a["exp_avg"], b["exp_avg"], rtol=1e-4, atol=1e-8)


def test_weight_zero_is_vanilla_bit_for_bit(tmp_path):
    for name, flags in (("zero", ["--reg-weight", 0]), ("vanilla", ["--loss-type", "vanilla"])):
        succeed("train", *BATCH, "--results-dir", tmp_path / name, "--max-steps", 3, *flags)
    assert_same_state(checkpoint_of(tmp_path / "zero", 3), checkpoint_of(tmp_path / "vanilla", 3))


def test_the_term_changes_the_weights(tmp_path):
    for name, weight in (("off", 0), ("on", 0.5)):
        flags = ["--results-dir", tmp_path / name, "--max-steps", 3, "--reg-weight", weight]
        succeed("train", *BATCH, *flags)
    off, on = (flat(checkpoint_of(tmp_path / name, 3)["model"]) for name in ("off", "on"))
    assert any(not torch.equal(off[key], on[key]) for key in off)


def test_pairs_and_schedule_by_flags(tmp_path):
    flags = ["--loss-type", "multiple_sync", "--multi-blocks-match", "[(1,2),(1,3)]"]
    flags += ["--reg-schedule", "linear", "--reg-schedule-steps", 4, "--reg-weight", 0.4]
    result = succeed("train", *BATCH, "--results-dir", tmp_path, "--max-steps", 4, *flags)
    assert "pairs=1:2, 1:3" in result.out
    assert [row["reg_weight"] for row in rows(tmp_path)] == pytest.approx([0.3, 0.1])


def test_published_pair_and_weight_are_the_defaults(tmp_path):
    result = succeed("train", "--model", "SiT-B/2", "--dry-run", "--results-dir", tmp_path)
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert (lines["encoder_depth"], lines["gt_encoder_depth"]) == ("4", "7")
    assert lines["reg_weight"] == "0.3" and lines["parameters"] == "130,512,416"
    assert not any(tmp_path.iterdir()), "a dry run writes nothing"


def test_a_flag_beats_the_preset_which_beats_the_default(tmp_path):
    flags = ["--preset", "digits", "--lr", 0.5, "--dry-run", "--results-dir", tmp_path]
    lines = dict(line.split(maxsplit=1) for line in succeed("train", *flags).out.splitlines())
    assert lines["lr"] == "0.5" and lines["ema_decay"] == "0.99" and lines["epochs"] == "1400"


def test_underscores_and_hyphens_are_the_same(tmp_path):
    flags = ["--dataset-name", "digits", "--max_steps", 3, "--model", "SiT-Ti/2", "--dry_run"]
    lines = dict(line.split(maxsplit=1) for line in succeed("train", *flags).out.splitlines())
    assert lines["dataset_name"] == "digits" and lines["max_steps"] == "3"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with previews: results folder, and its checkpoint at step 6."""
    results = tmp_path_factory.mktemp("trained")
    flags = ["--max-steps", 6, "--ckpt-every", 2, "--sample-every", 3, "--keep-last", 2]
    result = succeed("train", *BATCH, *flags, "--tensorboard", "--results-dir", results)
    return results, result


def test_a_run_leaves_checkpoints_log_previews_and_events(trained):
    results, result = trained
    (folder,) = results.iterdir()
    assert folder.name == "000-SiT-Ti-4-SiT-Training"
    assert [p.stem for p in checkpoint.files_of(folder)] == ["0000004", "0000006"]
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["0000003.png", "0000006.png"]
    assert Image.open(folder / "samples" / "0000006.png").size[0] > 100
    assert any((folder / "tensorboard").iterdir())
    last = rows(results)[-1]
    assert last["step"] == 6 and last["images_per_second"] > 0 and last["seconds_left"] == 0
    assert "step 6/6  loss" in result.out and "left" in result.out


def test_the_log_says_once_that_a_cosine_near_1_is_no_success(trained, tmp_path):
    results, result = trained
    assert rows(results)[0]["reg"] < -0.95, "after two steps"
    assert result.out.count("reg is minus the cosine") == 1 and "no success" in result.out
    (folder,) = results.iterdir()
    goes_on = ["--ckpt", folder / "checkpoints" / "0000004.pt", "--max-steps", 5]
    for words in (goes_on, ["--loss-type", "vanilla", "--max-steps", 1]):
        assert "no success" not in succeed("train", *BATCH, *words, "--results-dir", tmp_path).out


def test_a_checkpoint_is_plain_data_and_a_plain_sit(trained):
    results, _ = trained
    content = checkpoint_of(results, 6)  # weights_only=True
    assert {"model", "ema", "opt", "args"} <= set(content)
    assert isinstance(content["args"], dict) and content["args"]["dataset_name"] == "digits"
    assert set(content["model"]) == set(models.SiT(**content["architecture"]).state_dict())
    assert not content["regulariser"], "LayerSync adds no parameters"


def test_ema_lags_the_weights_by_its_decay(tmp_path):
    flags = ["--max-steps", 1, "--ema-decay", 0.75]
    succeed("train", *BATCH, *flags, "--results-dir", tmp_path)
    content = checkpoint_of(tmp_path, 1)
    torch.manual_seed(0)
    fresh = models.SiT(**content["architecture"], class_dropout_prob=0.0).state_dict()
    for name, value in content["ema"].items():
        torch.testing.assert_close(value, 0.75 * fresh[name] + 0.25 * content["model"][name])


def test_a_finished_run_is_left_alone(trained):
    results, _ = trained
    again = succeed("train", *BATCH, "--max-steps", 6, "--resume", "auto", "--results-dir", results)
    assert "is finished: step 6" in again.out
    assert len(list(results.iterdir())) == 1


def test_resuming_with_other_flags_is_refused_and_named(trained):
    results, _ = trained
    resume = ["--max-steps", 8, "--resume", "auto", "--results-dir", results]
    said = refused("train", *BATCH, *resume, "--lr", "0.1", "--reg-weight", "0.9")
    assert "--lr 0.001 -> 0.1" in said and "--reg-weight 0.2 -> 0.9" in said
    assert "--resume-anyway" in said


def test_resuming_where_an_image_is_gone_is_refused_since_the_order_is_another(tmp_path):
    images(tmp_path / "images", classes=1, each=13, size=8)
    words = [*BATCH, "--dataset_name", "folder", "--data-path", tmp_path / "images"]
    words += ["--image-size", 8, "--vae", "none", "--results-dir", tmp_path / "results"]
    succeed("train", *words, "--max-steps", 1)
    assert checkpoint_of(tmp_path / "results", 1)["images"] == 13
    (tmp_path / "images/class0/3.png").unlink()
    resume = [*words, "--resume", "auto", "--max-steps", 2]
    said = refused("train", *resume)
    assert "was trained on 13 images, and now the data have 12" in said
    assert "--resume-anyway" in said
    succeed("train", *resume, "--resume-anyway")
    assert checkpoint_of(tmp_path / "results", 2)["images"] == 12


def test_resume_anyway_goes_on(trained, tmp_path):
    results, _ = trained
    (folder,) = results.iterdir()
    flags = ["--ckpt", folder, "--max-steps", 7, "--lr", "0.1", "--results-dir", tmp_path]
    refused("train", *BATCH, *flags)
    older = ["--ckpt", folder / "checkpoints" / "0000004.pt", *flags[2:]]
    succeed("train", *BATCH, *older, "--resume-anyway")
    assert checkpoint_of(tmp_path, 7)["train_steps"] == 7, "an older file branches into a new run"
    assert checkpoint_of(tmp_path, 7)["opt"]["param_groups"][0]["lr"] == 0.1, "the flag counts"


@pytest.mark.parametrize("asked", ["0000006.pt", "."])
def test_a_run_goes_on_from_among_its_own_checkpoints(trained, tmp_path, monkeypatch, asked):
    results, _ = trained
    shutil.copytree(results, tmp_path / "results")
    (folder,) = (tmp_path / "results").iterdir()
    monkeypatch.chdir(folder / "checkpoints")
    succeed("train", *BATCH, "--ckpt", asked, "--max-steps", 7)
    assert checkpoint.files_of(folder)[-1].name == "0000007.pt"
    assert not Path("results").exists(), "no new run"


def test_a_public_training_checkpoint_resumes_with_its_optimizer(trained, tmp_path):
    """SiT's and LayerSync's four keys, flags in a Namespace, the step in the file's name."""
    results, _ = trained
    content = checkpoint_of(results, 6)
    public = {key: content[key] for key in ("model", "ema", "opt")}
    public["args"] = argparse.Namespace(
        model="SiT-Ti/4", global_batch_size=12, image_size=8, loss_type="layer_sync"
    )
    torch.save(public, tmp_path / "0000006.pt")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (folder,) = results.iterdir()
    for source, target in ((folder / "checkpoints/0000004.pt", ours),):
        succeed("train", *BATCH, "--ckpt", source, "--max-steps", 8, "--results-dir", target)
    flags = ["--ckpt", tmp_path / "0000006.pt", "--max-steps", 8, "--results-dir", theirs]
    succeed("train", *BATCH, *flags)
    assert_same_state(checkpoint_of(ours, 8), checkpoint_of(theirs, 8))


# All that the public train.py puts into its files, under its defaults where a method is not named.
PUBLIC = dict(
    dataset_name="digits", results_dir="results", model="SiT-Ti/4", image_size=8, num_classes=10,
    encoder_depth=1, gt_encoder_depth=2, epochs=1400, global_batch_size=12, global_seed=0,
    vae="none", num_workers=4, log_every=10_000, ckpt_every=10_000, sample_every=10_000,
    cfg_scale=4.0, reg_weight=0.2, loss_type="layer_sync", cache_dir="./cache/", wandb=False,
    wandb_run_name="SiT-Training", multi_blocks_match=[], ckpt=None, fine_tune=False,
    path_type="Linear", prediction="velocity", loss_weight=None, sample_eps=None, train_eps=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "flags, words, changed",
    [
        ({}, [], "--reg-weight 0.5"),
        ({}, [], "--gt-encoder-depth 3"),
        ({"loss_type": "vanilla"}, ["--loss-type", "vanilla"], "--global-seed 1"),
        (
            {"loss_type": "multiple_sync", "multi_blocks_match": [(1, 2), (1, 3)]},
            ["--loss-type", "multiple_sync", "--multi-blocks-match", "[(1,2),(1,3)]"],
            "--multi-blocks-match [(1,3)]",
        ),
    ],
)
def test_a_public_run_of_each_method_resumes_under_its_own_flags(
    trained, tmp_path, flags, words, changed
):
    results, _ = trained
    content = checkpoint_of(results, 6)
    public = {key: content[key] for key in ("model", "ema", "opt")}
    public["args"] = argparse.Namespace(**PUBLIC | flags)
    torch.save(public, tmp_path / "0000006.pt")
    resume = [*BATCH, *words, "--ckpt", tmp_path / "0000006.pt", "--max-steps", 7]
    resume += ["--results-dir", tmp_path / "results"]
    said = refused("train", *resume, *changed.split())
    name, value = changed.split()
    assert f"({name} " in said and f" -> {value})" in said, "and no other"
    succeed("train", *resume)
    assert checkpoint_of(tmp_path / "results", 7)["train_steps"] == 7


def test_a_run_of_sit_goes_on_without_layer_sync_unless_it_is_asked_for(trained, tmp_path):
    """Its files do not say so: its train.py has no --loss-type."""
    results, _ = trained
    content = checkpoint_of(results, 6)
    sit = {key: content[key] for key in ("model", "ema", "opt")}
    of_sync = {"loss_type", "encoder_depth", "gt_encoder_depth", "reg_weight", "multi_blocks_match"}
    flags = {key: value for key, value in PUBLIC.items() if key not in of_sync}
    sit["args"] = argparse.Namespace(**flags)
    torch.save(sit, tmp_path / "0000006.pt")
    resume = [*BATCH, "--ckpt", tmp_path / "0000006.pt", "--max-steps", 7, "--results-dir"]
    sit["args"].disp = True  # the authors' flag of the Dispersive loss
    torch.save(sit, tmp_path / "disp.pt")
    assert checkpoint.read(tmp_path / "disp.pt").args["loss_type"] == "dispersive"
    said = refused("train", *resume, tmp_path / "refused")
    assert "(--loss-type vanilla -> layer_sync)" in said
    for method, words in (
        ("vanilla", ["--loss-type", "vanilla"]),
        ("layer_sync", ["--resume-anyway"]),
    ):
        succeed("train", *resume, tmp_path / method, *words)
        assert checkpoint_of(tmp_path / method, 7)["args"]["loss_type"] == method


def test_fine_tuning_starts_from_the_ema_with_other_classes_and_sizes(trained, tmp_path):
    results, _ = trained
    (folder,) = results.iterdir()
    images(tmp_path / "images", classes=3, each=6, size=20)
    flags = [*TINY, "--dataset_name", "folder", "--data-path", tmp_path / "images", "--vae", "none"]
    start = ["--image-size", 8, "--fine-tune", "--ckpt", folder, "--results-dir", tmp_path / "no"]
    said = refused("train", *flags, *start, "--global-batch-size", 6, "--max-steps", 1)
    assert "x_embedder.proj.weight" in said, "one channel to three cannot be bridged"

    base, tuned = tmp_path / "base", tmp_path / "tuned"
    flags += ["--global-batch-size", 6, "--max-steps", 1]
    succeed("train", *flags, "--image-size", 8, "--results-dir", base)
    images(tmp_path / "more", classes=5, each=6, size=20)
    flags[flags.index(tmp_path / "images")] = tmp_path / "more"
    (start,) = base.iterdir()
    tune = ["--image-size", 16, "--fine-tune", "--ckpt", start, "--lr", 0, "--results-dir", tuned]
    succeed("train", *flags, *tune)
    old, new = checkpoint_of(base, 1), checkpoint_of(tuned, 1)
    assert new["architecture"]["num_classes"] == 5
    assert new["model"]["pos_embed"].shape == (1, 16, 32)
    for name in ("blocks.0.attn.qkv.weight", "blocks.3.mlp.fc2.bias", "x_embedder.proj.weight"):
        assert torch.equal(new["model"][name], old["ema"][name])
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(new["model"][table][-1], old["ema"][table][-1])


def images(folder: Path, *, classes: int, each: int, size: int) -> None:
    random = np.random.Generator(np.random.PCG64(0))
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")


@pytest.mark.parametrize("classes", [0, 10])
def test_previews_ask_for_the_null_only_where_there_is_a_condition(classes, tmp_path):
    """Of an unconditional model both halves would be the same, at twice the time."""
    flags = dict(dataset_name="digits", model="SiT-Ti/4", depth=2, hidden_size=32, num_heads=2)
    flags |= dict(global_batch_size=64, loss_type="vanilla", max_steps=1)
    config = TrainConfig(**flags, num_classes=classes)
    alone = Ranks(0, 1, torch.device("cpu"))
    trainer = training.Trainer(*training.build(config, alone.device), alone)
    seen = []
    trainer.state.ema.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    trainer.sample(range(3), cfg_scale=4.0)
    assert set(seen) == {6 if classes else 3}
    seen.clear()
    trainer.preview(tmp_path / "sheet.png")
    assert set(seen) == {32 if classes else 16}, "16 pictures, whatever the batch"


def test_alarms_compare_with_the_first_telemetry_of_the_run_not_of_its_process(tmp_path):
    flags = [*BATCH, "--telemetry-every", 1, "--ckpt-every", 2, "--results-dir", tmp_path]
    done = succeed("train", *flags, "--max-steps", 2)
    assert "the teacher collapses" not in done.out
    (log,) = tmp_path.glob("*/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    first = next(line for line in lines if "telemetry" in line)
    first["telemetry"]["teacher_norm 1:2"] = 1e6
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = succeed("train", *flags, "--max-steps", 3, "--resume", "auto")
    assert "1.0e+06 at first: the teacher collapses" in done.out


def test_training_in_the_latents_of_a_vae(tmp_path, tiny_vae):
    images(tmp_path / "images", classes=2, each=4, size=40)
    flags = [*TINY, "--dataset_name", "folder", "--data-path", tmp_path / "images"]
    flags += ["--vae", tiny_vae, "--image-size", 32, "--global-batch-size", 4, "--max-steps", 2]
    flags += ["--num-workers", 1, "--sample-every", 2, "--results-dir", tmp_path / "results"]
    succeed("train", *flags)
    content = checkpoint_of(tmp_path / "results", 2)
    assert content["architecture"]["in_channels"] == 4
    assert content["architecture"]["input_size"] == (16, 16)
    (preview,) = (tmp_path / "results").glob("*/samples/0000002.png")
    assert Image.open(preview).size[0] > 64


def test_corrupt_images_stop_the_run_or_are_counted(tmp_path):
    images(tmp_path / "images", classes=2, each=6, size=8)
    (tmp_path / "images/class1/2.png").write_bytes(b"no image")
    flags = [*TINY, "--dataset_name", "folder", "--data-path", tmp_path / "images", "--vae", "none"]
    flags += ["--image-size", 8, "--global-batch-size", 4, "--max-steps", 3]
    said = refused("train", *flags, "--num-workers", 1, "--results-dir", tmp_path / "a")
    assert "class1/2.png" in said and "--skip-corrupt" in said
    result = succeed("train", *flags, "--skip-corrupt", "--results-dir", tmp_path / "b")
    assert "skipped (1): " in result.err and "class1/2.png" in result.err
    assert rows(tmp_path / "b")[-1]["skipped"] == 1


def test_one_rank_that_meets_a_corrupt_image_ends_the_job(tmp_path):
    images(tmp_path / "images", classes=1, each=4, size=8)
    (tmp_path / "images/class0/2.png").write_bytes(b"no image")
    flags = [*TINY, "--dataset_name", "folder", "--data-path", tmp_path / "images", "--vae", "none"]
    flags += ["--image-size", 8, "--global-batch-size", 4, "--max-steps", 2]
    result = torchrun("train", *flags, "--results-dir", tmp_path / "results", processes=2)
    assert result.code != 0
    assert result.err.count("error: ") == 1 and "class0/2.png" in result.err
    assert 'train.py", line' not in result.err, "no traceback of ours"
    assert result.err.count("exitcode  : 2") == 2 and "exitcode  : -" not in result.err
    assert not (tmp_path / "results").exists()


def test_wandb_offline_needs_no_account(tmp_path):
    pytest.importorskip("wandb")
    flags = ["--max-steps", 2, "--wandb", "--results-dir", tmp_path]
    launched("train", *BATCH, *flags)
    assert list(tmp_path.glob("*/wandb/offline-run-*"))


def test_bf16_trains_with_float32_weights(tmp_path):
    succeed("train", *BATCH, "--precision", "bf16", "--max-steps", 4, "--results-dir", tmp_path)
    content = checkpoint_of(tmp_path, 4)
    assert {value.dtype for value in content["model"].values()} == {torch.float32}
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))


def test_clipping_bounds_the_update_and_logs_the_norm_before_it(tmp_path):
    for name, clip in (("free", 0.0), ("clipped", 1e-3)):
        flags = ["--max-steps", 1, "--clip-grad-norm", clip, "--log-every", 1]
        succeed("train", *BATCH, *flags, "--results-dir", tmp_path / name)
    free, clipped = (checkpoint_of(tmp_path / n, 1)["opt"]["state"] for n in ("free", "clipped"))
    assert rows(tmp_path / "free")[0]["grad_norm"] == rows(tmp_path / "clipped")[0]["grad_norm"]
    norm = sum((s["exp_avg"] * 10).square().sum() for s in clipped.values()).sqrt()
    assert norm == pytest.approx(1e-3, rel=1e-2)
    assert sum((s["exp_avg"] * 10).square().sum() for s in free.values()).sqrt() > 1e-2


def test_the_betas_are_adamws_and_part_of_what_a_resume_compares(trained, tmp_path):
    betas = ["--adam-beta1", 0.5, "--adam-beta2", 0.75]
    succeed("train", *BATCH, *betas, "--max-steps", 1, "--results-dir", tmp_path / "new")
    fresh = checkpoint_of(tmp_path / "new", 1)
    assert fresh["opt"]["param_groups"][0]["betas"] == (0.5, 0.75)

    results, _ = trained
    content = checkpoint_of(results, 6)
    resume = ["--max-steps", 7, "--results-dir", tmp_path / "old", "--ckpt", tmp_path / "6.pt"]
    torch.save(content, tmp_path / "6.pt")
    said = refused("train", *BATCH, *betas, *resume)
    assert "(--adam-beta1 0.9 -> 0.5; --adam-beta2 0.999 -> 0.75)" in said
    for name in ("adam_beta1", "adam_beta2"):  # of before there were these flags
        del content["args"][name]
    torch.save(content, tmp_path / "6.pt")
    assert "--adam-beta1 0.9 -> 0.5" in refused("train", *BATCH, *betas, *resume)
    succeed("train", *BATCH, *resume)
    assert checkpoint_of(tmp_path / "old", 7)["opt"]["param_groups"][0]["betas"] == (0.9, 0.999)


def test_a_run_of_before_there_were_times_is_not_resumed_at_some(trained, tmp_path):
    results, _ = trained
    content = checkpoint_of(results, 6)
    for name in ("sync_t_low", "sync_t_high"):
        del content["args"][name]
    torch.save(content, tmp_path / "6.pt")
    resume = [*BATCH, "--max-steps", 7, "--results-dir", tmp_path / "old", "--ckpt"]
    said = refused("train", *resume, tmp_path / "6.pt", "--sync-t-high", 0.5)
    assert "(--sync-t-high 1.0 -> 0.5)" in said
    succeed("train", *resume, tmp_path / "6.pt")


def test_unconditional_training(tmp_path):
    succeed("train", *BATCH, "--num-classes", 0, "--max-steps", 2, "--results-dir", tmp_path)
    assert not any("y_embedder" in name for name in checkpoint_of(tmp_path, 2)["model"])


def test_a_killed_run_goes_on_exactly_where_its_last_checkpoint_was(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    length = ["--max-steps", 60, "--ckpt-every", 10]
    words = [sys.executable, str(ROOT / "train.py"), *BATCH, *map(str, length)]
    process = subprocess.Popen([*words, "--results-dir", str(killed)], cwd=ROOT, env=os.environ)
    deadline = time.monotonic() + 120
    while not list(killed.glob("*/checkpoints/0000020.pt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    succeed("train", *BATCH, *length, "--results-dir", killed, "--resume", "auto")
    succeed("train", *BATCH, *length, "--results-dir", straight)
    assert_same_state(checkpoint_of(straight, 60), checkpoint_of(killed, 60))
    assert [row["step"] for row in rows(killed)] == [row["step"] for row in rows(straight)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--encoder-depth 2 --gt-encoder-depth 2", ["2:2", "4 blocks"]),
        ("--encoder-depth 3 --gt-encoder-depth 1", ["3:1", "4 blocks"]),
        ("--encoder-depth 2 --gt-encoder-depth 9", ["2:9", "4 blocks"]),
        ("--encoder-depth 0", ["0:", "4 blocks"]),
        ("--loss-type multiple_sync", ["--multi-blocks-match", "[(2,6),(4,8)]"]),
        ("--loss-type multiple_sync --multi-blocks-match __import__('os')", ["names no pairs"]),
        ("--reg-schedule cosine", ["--reg-schedule-steps"]),
        ("--preset nothing", ["unknown preset 'nothing'", "digits"]),
        ("--model SiT-Q/2", ["unknown model 'SiT-Q/2'", "SiT-XL/2"]),
        ("--dataset_name nothing", ["nothing", "digits"]),
        ("--global-batch-size 13 --grad-accum 2", ["--global-batch-size 13", "2 micro-batches"]),
        ("--global-batch-size 4000", ["1297 images", "4000"]),
        ("--global-batch-size 0", ["--global-batch-size 0"]),
        ("--dataset_name folder --data-path /no/such/folder", ["/no/such/folder", "--data-path"]),
        ("--dataset_name folder", ["--data-path"]),
        ("--num-classes 3", ["--num-classes"]),
        ("--image-size 9", ["--image-size 9"]),
        ("--num-heads 7", ["7 heads", "32"]),
        ("--train-eps 0.7", ["--train-eps 0.7"]),
        ("--ckpt /no/such/file.pt", ["/no/such/file.pt"]),
        ("--fine-tune", ["--fine-tune needs --ckpt"]),
        ("--device cuda", ["--device cuda"]),
        ("--keep-last -1", ["--keep-last -1", "0 or more"]),
        ("--lr nan", ["--lr nan"]),
        ("--clip-grad-norm -1", ["--clip-grad-norm -1"]),
        ("--adam-beta2 1", ["--adam-beta2 1", "0 to 0.999999"]),
        ("--max-skipped -1", ["--max-skipped -1"]),
        ("--spike-sigma nan", ["--spike-sigma nan"]),
        ("--hang-timeout -1", ["--hang-timeout -1"]),
        ("--ema-decay 2", ["--ema-decay 2", "0 to 1"]),
        ("--log-every 0", ["--log-every 0", "1 or more"]),
        ("--grad-accum 0", ["--grad-accum 0"]),
        ("--reg-weight inf", ["--reg-weight inf"]),
        ("--wandb-run-name ../x", ["--wandb-run-name"]),
        ("--ckpt=", ["no checkpoint in"]),
        ("--vae /no/such/vae --dataset_name folder --data-path .", ["--vae", "/no/such/vae"]),
    ],
)
def test_bad_flags_get_one_sentence_and_nothing_is_written(tmp_path, flags, words):
    if flags == "--device cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    base = [*TINY, "--global-batch-size", 12, "--max-steps", 1]
    said = refused("train", *base, *flags.split(), "--results-dir", tmp_path / "results")
    assert all(word in said for word in words), said
    assert not (tmp_path / "results").exists()


def test_a_results_folder_in_which_torch_could_not_read_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b"r\xff")
    said = refused("train", *BATCH, "--max-steps", 2, "--results-dir", folder)
    assert "r\\udcff" in said and "has to be text in UTF-8" in said and not folder.exists()


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    flags = ["--max-steps", 1, "--results-dir", tmp_path / "file" / "results"]
    assert "file/results" in refused("train", *BATCH, *flags)
    result = torchrun("train", *BATCH, *flags, processes=2)
    assert result.err.count("error: ") == 1 and "file/results" in result.err
    assert 'train.py", line' not in result.err
    assert result.err.count("exitcode  : 2") == 2


@pytest.mark.parametrize(
    "flags", ["--nonsense 3", "--loss-type layersync", "--path-type linear", "--lr fast", "digits"]
)
def test_unknown_flags_and_values_end_in_tyros_box(tmp_path, flags):
    result = call("train", *BATCH, *flags.split(), "--results-dir", tmp_path / "results")
    assert result.code == 2 and "Traceback" not in result.err
    assert flags.split()[0] in result.err + result.out
    assert not (tmp_path / "results").exists()


def test_under_torchrun_rank_0_speaks_and_all_exit_with_2(tmp_path):
    flags = ["--global-batch-size", 13, "--results-dir", tmp_path / "results"]
    result = torchrun("train", *TINY, *flags, processes=2)
    assert result.err.count("error: --global-batch-size 13 is not divisible by 2 processes") == 1
    assert result.err.count("exitcode  : 2") == 2 and 'train.py", line' not in result.err
    unknown = launch("train", "--nonsense", processes=2)
    assert (unknown.err + unknown.out).count("Unrecognized options: --nonsense") == 1
    assert "exitcode  : 2" in unknown.err
    assert not (tmp_path / "results").exists()


def test_more_processes_than_gpus_is_refused(monkeypatch):
    from runtime import distributed
    from runtime.errors import InputError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes on a host with 2 GPUs.*nproc_per_node=2"):
        distributed.start("cuda")


def test_the_gpu_is_that_of_the_local_rank(monkeypatch):
    """Rank 9 is the second process of the second host of eight GPUs."""
    from runtime import distributed

    chosen, joined = [], {}
    for name, value in (("RANK", 9), ("LOCAL_RANK", 1), ("WORLD_SIZE", 16)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *_, **asked: joined.update(asked)
    )
    monkeypatch.setattr(distributed, "watch_others", lambda rank, size: None)
    ranks = distributed.start("cuda")
    assert chosen == [1]
    assert ranks == Ranks(9, 16, torch.device("cuda:1")) and joined["device_id"] == ranks.device


def test_going_on_with_another_vae_is_refused(tmp_path, tiny_vae):
    """The weights changed under an unchanged path: latents of another kind, and a ruined run."""
    from safetensors.torch import load_file, save_file

    vae = tmp_path / "vae"
    shutil.copytree(tiny_vae, vae)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (16, 16), (number, 9, 9)).save(tmp_path / "images/a" / f"{number}.png")
    flags = ["--dataset_name", "folder", "--data-path", tmp_path / "images", "--vae", vae]
    flags = [*BATCH, *flags, "--image-size", 16, "--results-dir", tmp_path / "results"]
    succeed("train", *flags, "--max-steps", 1)
    (file,) = vae.glob("*.safetensors")
    save_file({name: 1.5 * w for name, w in load_file(file).items()}, file, {"format": "pt"})
    said = refused("train", *flags, "--max-steps", 2, "--resume", "auto")
    assert "it was trained on latents with sha256" in said and str(vae) in said


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory, digits_classifier):
    """50 steps on two ranks with previews, replicated and sharded; the latter is scored, too."""
    folder = tmp_path_factory.mktemp("sharded")
    flags = [*BATCH, "--lr", 1e-4, "--log-every", 1, "--clip-grad-norm", 0.5]
    scored = ["--shard", "--score-every", 50, "--score-samples", 20]
    (folder / "sharded").mkdir()
    shutil.copy(digits_classifier, folder / "sharded")
    for name, more in (("ddp", []), ("sharded", scored)):
        results = ["--results-dir", folder / name, "--max-steps", 50, "--ckpt-every", 20]
        results += ["--sample-every", 25]
        launched("train", *flags, *results, *more, processes=2)
    return folder, flags


def test_sharded_training_is_replicated_training(shared_out):
    folder, _ = shared_out
    losses = [row for row in rows(folder / "sharded") if "loss" in row]
    for one, other in zip(rows(folder / "ddp"), losses, strict=True):
        for name in ("loss", "velocity", "reg", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4)
    one, other = (checkpoint_of(folder / name, 50) for name in ("ddp", "sharded"))
    assert flat(one).keys() == flat(other).keys(), "either reads the other's file"
    for part in ("model", "ema"):
        a, b = (torch.cat([w.flatten() for w in c[part].values()]) for c in (one, other))
        assert (a - b).norm() < 1e-4 * a.norm()


@pytest.mark.parametrize("first, then", [("ddp", "--shard"), ("sharded", "--no-shard")])
def test_replicated_and_sharded_runs_go_on_from_each_others_checkpoints(
    shared_out, tmp_path, first, then
):
    folder, flags = shared_out
    (origin,) = (folder / first).glob("*/checkpoints/0000020.pt")
    results = ["--results-dir", tmp_path, "--max-steps", 24, "--ckpt", origin, then]
    launched("train", *flags, *results, processes=2)
    for one, other in zip(rows(tmp_path), rows(folder / first)[20:24], strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_resume_of_a_sharded_run_is_exact(shared_out, tmp_path):
    folder, flags = shared_out
    (origin,) = (folder / "sharded").glob("*/checkpoints/0000020.pt")
    results = ["--results-dir", tmp_path, "--max-steps", 40, "--ckpt", origin, "--shard"]
    launched("train", *flags, *results, processes=2)
    assert_same_state(checkpoint_of(folder / "sharded", 40), checkpoint_of(tmp_path, 40))


def test_a_sharded_run_makes_previews(shared_out):
    folder, _ = shared_out
    assert len(list((folder / "sharded").glob("*/samples/*.png"))) == 2


def test_compiled_training_is_plain_training(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    for name in ("on", "off"):
        flags = ["--results-dir", tmp_path / name, "--max-steps", 4, "--compile", name]
        succeed("train", *BATCH, *flags, "--log-every", 1)
    for one, other in zip(rows(tmp_path / "on"), rows(tmp_path / "off"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_a_plan_runs_a_few_steps_and_writes_nothing(tmp_path):
    result = succeed("train", *BATCH, "--max-steps", 1000, "--plan", "--results-dir", tmp_path)
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert "images/s" in lines["rate"] and "mean of steps 4 to 13" in lines["rate"]
    assert "process hours" in lines["run"] and "kept at most" in lines["checkpoints"]
    assert not any(tmp_path.iterdir())


def test_a_plan_of_a_resumed_run_costs_what_is_left(tmp_path):
    flags = [*BATCH, "--results-dir", tmp_path, "--milestone-every", 0]
    succeed("train", *flags, "--max-steps", 2)
    for stop, steps in ((3, "1 to 1"), (6, "4 to 4"), (8, "4 to 6")):
        result = succeed("train", *flags, "--max-steps", stop, "--plan", "--resume", "auto")
        assert f"{stop - 2} of {stop} steps" in result.out and f"steps {steps}\n" in result.out
    assert len(list(tmp_path.glob("*/checkpoints/*"))) == 1


def test_recomputed_blocks_use_the_kernel_that_was_asked_for(tmp_path):
    """In the backward pass too, where another kernel would find other tensors saved."""
    flags = ["--activation-checkpointing", "--attention", "math", "--max-steps", 2]
    succeed("train", *BATCH, *flags, "--results-dir", tmp_path)


def test_a_full_disk_ends_training_with_one_sentence_and_the_next_run_goes_on(tmp_path):
    flags = [*BATCH, "--results-dir", tmp_path, "--ckpt-every", 2]
    succeed("train", *flags, "--max-steps", 2)
    (whole,) = tmp_path.glob("*/checkpoints/*.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size // 2, limits[1]))
    try:
        said = refused("train", *flags, "--max-steps", 6, "--resume", "auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not be written" in said and "--resume auto" in said
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]
    succeed("train", *flags, "--max-steps", 6, "--resume", "auto")
    assert checkpoint_of(tmp_path, 6)["train_steps"] == 6


def test_the_ema_model_is_scored_while_it_trains_on_the_same_seeds(tmp_path, digits_classifier):
    """The classifier is given to one process; two train it themselves."""
    (tmp_path / "one").mkdir()
    shutil.copy(digits_classifier, tmp_path / "one")
    flags = [*BATCH, "--score-every", 2, "--score-samples", 20, "--device", "cpu"]
    for name, processes in (("one", 1), ("two", 2)):
        words = [*flags, "--max-steps", 5, "--results-dir", tmp_path / name]
        launched("train", *words, processes=processes)
    one, two = (score_rows(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in one] == [2, 4, 5]
    scores = [row["scores"] for row in one]
    expected = {"fd_classifier", "inception_score", "precision", "recall", "accuracy"}
    assert expected <= scores[0].keys()
    assert scores[0]["fd_classifier"] != scores[1]["fd_classifier"]
    assert one[0]["images"] == 20 and one[0]["extractor"].startswith("classifier:")
    for a, b in zip(one, two, strict=True):
        assert a["extractor"] == b["extractor"]
        assert a["scores"] == pytest.approx(b["scores"], rel=1e-3)


def test_scoring_changes_nothing_and_goes_on_with_the_same_classifier(tmp_path, digits_classifier):
    (tmp_path / "whole").mkdir()
    shutil.copy(digits_classifier, tmp_path / "whole")
    flags = [*BATCH, "--device", "cpu"]
    score = ["--score-every", 2, "--score-samples", 20]
    for name, words, stops in [("plain", [], [4]), ("whole", score, [4]), ("parts", score, [2, 4])]:
        for stop in stops:
            folder = ["--results-dir", tmp_path / name, "--max-steps", stop, "--resume", "auto"]
            succeed("train", *flags, *words, *folder)
    contents = [checkpoint_of(tmp_path / name, 4) for name in ("plain", "whole", "parts")]
    assert_same_state(contents[0], contents[1])
    assert_same_state(contents[0], contents[2])
    whole, parts = (score_rows(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 2


def test_a_sharded_model_is_scored_too(shared_out):
    folder, _ = shared_out
    assert [row["step"] for row in score_rows(folder / "sharded")] == [50]


def test_scores_that_cannot_be_are_refused_before_the_run(tmp_path):
    flags = ["--score-every", 1, "--max-steps", 1, "--results-dir", tmp_path / "results"]
    latents = [*TINY, "--dataset_name", "synthetic", "--image-size", 64, "--global-batch-size", 4]
    assert "give --score-reference" in refused("train", *latents, *flags)
    for words, sentence in [
        (["--num-classes", 0], "give classifier:FILE"),
        (["--score-extractor", "vgg"], "unknown --extractor"),
        (["--score-reference", tmp_path / "gone.npz"], "gone.npz: there is no such file"),
        (["--score-samples", 3], "--score-samples 3: give 4 or more"),
    ]:
        assert sentence in refused("train", *BATCH, *flags, *words)
    assert not (tmp_path / "results").exists()
