"""Wan2.1 and CogVideoX fine-tuned on SSv2's layout by the same commands and flags as all else."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("av")

import domains
import models
from domains.causal_vae import CausalVAECodec
from domains.prompts import PromptEncoder, embedded
from runtime import files
from tests.commands import assert_same_state, checkpoint_of, launched, refused, succeed
from tests.pipelines import SAVES, WIDTH, give_sentencepiece
from tests.ssv2 import CAPTIONS, write_ssv2

PRESETS = {"Wan2.1": "wan-ssv2", "CogVideoX": "cogvideox-ssv2"}
TINY = (
    "--num-frames 9 --image-size 48 --global-batch-size 4 --lora-rank 2 --lora-alpha 4 --lr 1e-2 "
    "--encoder-depth 2 --gt-encoder-depth 4 --num-workers 0 --log-every 1 --no-tensorboard "
    "--device cpu"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return ["--data-path", write_ssv2(folder / "ssv2"), "--cache-dir", folder / "cache"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: save(root / kind) for kind, save in SAVES.items()}


class Run(NamedTuple):
    folder: Path
    flags: list


@pytest.fixture(scope="module")
def runs(folders, data, tmp_path_factory):
    """Three steps of each preset, small: by TRD in bfloat16, or by the cosine in float32."""
    found = {}
    cosine = ["--precision", "fp32", "--similarity", "cosine", "--reg-weight", 0.5]
    for kind, words in (("Wan2.1", []), ("CogVideoX", cosine)):
        results = tmp_path_factory.mktemp("results")
        flags = ["--preset", PRESETS[kind], *TINY, "--pretrained", folders[kind], *data, *words]
        flags += ["--max-steps", 3, "--ckpt-every", 1]
        succeed("train", *flags, "--results-dir", results)
        (folder,) = results.iterdir()
        found[kind] = Run(folder, flags)
    return found


@pytest.mark.parametrize("kind", SAVES)
def test_a_run_stores_its_adapters_alone(kind, runs):
    folder = runs[kind].folder
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    low, high = {"Wan2.1": (0, 1), "CogVideoX": (-1, 0)}[kind]
    assert len(losses) == 3 and all(low < row["reg"] < high for row in losses)
    assert all(row["grad_norm"] > 0 for row in losses)
    assert "pairs=2:4, weight=0.5" in (folder / "log.txt").read_text()
    stored = checkpoint_of(runs[kind].folder.parent, 3)
    assert all("lora_" in name for name in stored["model"])
    assert len(stored["opt"]["state"]) == len(stored["model"]) == len(stored["ema"])
    assert stored["architecture"]["lora_alpha"] == 4
    assert any(value.any() for name, value in stored["ema"].items() if "lora_B" in name)


@pytest.mark.parametrize("kind", SAVES)
def test_resume_is_exact(kind, runs, tmp_path):
    folder, flags = runs[kind]
    ckpt = folder / "checkpoints" / "0000001.pt"
    succeed("train", *flags, "--ckpt", ckpt, "--results-dir", tmp_path)
    assert_same_state(*(checkpoint_of(results, 3) for results in (folder.parent, tmp_path)))


@pytest.mark.slow
def test_resume_is_exact_in_two_processes(folders, data, tmp_path):
    """LoRA, TRD, activation checkpointing, bfloat16, clipping, dropped captions and an EMA."""
    flags = ["--preset", "wan-ssv2", *TINY, "--pretrained", folders["Wan2.1"], *data]
    flags += ["--max-steps", 4, "--ckpt-every", 2, "--ema-decay", 0.9]
    launched("train", *flags, "--results-dir", tmp_path / "whole", processes=2)
    (middle,) = (tmp_path / "whole").glob("*/checkpoints/0000002.pt")
    again = ["--results-dir", tmp_path / "parts", "--ckpt", middle]
    launched("train", *flags, *again, processes=2)
    assert_same_state(*(checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts")))


@pytest.mark.parametrize("kind", SAVES)
def test_the_pipeline_with_the_exported_adapters_draws_the_samples_of_our_model(
    kind, runs, folders, data, tmp_path
):
    import diffusers

    said = succeed("export", "--ckpt", runs[kind].folder, "--out", tmp_path)
    assert "load_lora_weights" in said.out
    stored = checkpoint_of(runs[kind].folder.parent, 3)
    model = models.load(stored["ema"], stored["architecture"] | {"bf16": False})
    encoder = PromptEncoder.load(str(folders[kind]), None, "cpu")
    cond = {
        name: torch.cat(
            [one[None], one.new_zeros(1, model.text_tokens - len(one), one.shape[1])], 1
        )
        for name, one in zip(("y", "null"), encoder(["pushing a cup", ""]), strict=True)
    }
    cond = {name: value.float() for name, value in cond.items()}
    z = torch.randn(1, 16, 3, 6, 10)

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders[kind])
    pipeline.set_progress_bar_config(disable=True)
    frames_first = kind == "CogVideoX"

    def drawn():
        return pipeline(
            prompt_embeds=cond["y"], negative_prompt_embeds=cond["null"], num_frames=9, height=48,
            width=80, num_inference_steps=3, guidance_scale=5.0, output_type="latent",
            latents=z.transpose(1, 2) if frames_first else z,
        ).frames  # fmt: skip

    plain = drawn()
    pipeline.load_lora_weights(tmp_path)
    theirs = drawn()

    scheduler, x = pipeline.scheduler, z
    scheduler.set_timesteps(3)
    for tick in scheduler.timesteps:
        t = 1 - (tick + 0.5 * frames_first) / 1000
        pred, uncond = (model(x, t.view(1).float(), **one).pred for one in (cond, model.null(cond)))
        pred = uncond + 5 * (pred - uncond)
        step = scheduler.step(pred if frames_first else -pred, tick, x, return_dict=False)
        x = step[0]
    x = x.transpose(1, 2) if frames_first else x
    torch.testing.assert_close(theirs, x, rtol=1e-3, atol=1e-4)
    assert (theirs - plain).abs().max() > 1e-2


def test_a_network_trained_whole_is_exported_as_a_transformer(folders, data, tmp_path):
    import diffusers

    flags = ["--preset", "cogvideox-ssv2", *TINY, "--pretrained", folders["CogVideoX"], *data]
    flags += ["--lora-rank", 0, "--max-steps", 1, "--results-dir", tmp_path]
    succeed("train", *flags)
    (run,) = tmp_path.iterdir()
    succeed("export", "--ckpt", run, "--out", tmp_path / "transformer")
    kind = diffusers.CogVideoXTransformer3DModel
    found = kind.from_pretrained(tmp_path / "transformer").state_dict()
    before = kind.from_pretrained(folders["CogVideoX"], subfolder="transformer").state_dict()
    stored = checkpoint_of(tmp_path, 1)["ema"]
    assert {f"network.{name}" for name in found} >= stored.keys() and len(stored) > 100
    for name, value in stored.items():
        name = name.removeprefix("network.")
        assert torch.equal(found[name], value)
    assert not torch.equal(found["proj_out.weight"], before["proj_out.weight"])


def test_samples_of_captions_are_drawn_by_our_commands(runs, data, tmp_path):
    few = ["--num-sampling-steps", 3, "--cfg-scale", 3, "--device", "cpu"]
    for kind, mode in (
        ("Wan2.1", ["--protocol", "wan"]),
        ("CogVideoX", ["--protocol", "cogvideox"]),
    ):
        where = ["--ckpt", runs[kind].folder, *data, *few]
        prompts = ["--prompts", "pushing a cup", "holding a box"]
        succeed("sample", *mode, *where, *prompts, "--out", tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.mp4").stat().st_size > 500
        count = ["--num-fid-samples", 3, "--per-proc-batch-size", 2, "--name", kind]
        succeed("sample_ddp", *mode, *where, *count, "--sample-dir", tmp_path)
        with np.load(tmp_path / f"{kind}.npz") as found:
            assert found["arr_0"].shape == (3, 9, 48, 64 if kind == "CogVideoX" else 80, 3)
            assert sorted(found["arr_1"][:2]) == [0, 1] and found["arr_1"].dtype == np.int64
    protocol = json.loads((tmp_path / "Wan2.1.json").read_text())
    assert protocol["time_shift"] == 3.0 and protocol["image_size"] == 48
    assert protocol["network_precision"] == "bf16"
    assert len(protocol["captions"]) == len(protocol["text_encoder"]) == 64
    # CogVideoX's pipeline draws no noise between its steps.
    assert json.loads((tmp_path / "CogVideoX.json").read_text())["sampler"]["ddim"] is True
    ancestral = ["DDPM", *where, *count[:-1], "ancestral"]
    succeed("sample_ddp", *ancestral, "--sample-dir", tmp_path)
    files = [np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("CogVideoX", "ancestral")]
    assert not np.array_equal(*files)
    # Without captions at hand, or with others, they are not taken for finished.
    again = [*mode, "--ckpt", runs[kind].folder, *few, *count, "--sample-dir", tmp_path]
    assert "with the captions of its validation part: give --data-path" in refused(
        "sample_ddp", *again
    )
    captions = CAPTIONS | {"validation": ["pushing a box up", "holding a cup"]}
    others = write_ssv2(tmp_path / "other", captions=captions)
    assert "was drawn with another captions" in refused("sample_ddp", *again, "--data-path", others)


@pytest.mark.parametrize("kind", SAVES)
def test_captions_are_embedded_once_as_the_pipeline_does(kind, folders, tmp_path):
    import diffusers

    texts = sorted(set(CAPTIONS["train"]))
    found = embedded(texts, str(folders[kind]), str(tmp_path), "cpu")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folders[kind], torch_dtype=torch.bfloat16
    )
    length = {"Wan2.1": 512, "CogVideoX": 226}[kind]
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length
        )
    for text, whole in zip(texts, theirs, strict=True):
        ours = found[text]
        assert torch.equal(ours, whole[: len(ours)]) and not whole[len(ours) :].any()
        # Wan's are the words and </s>; CogVideoX has no mask, and padding is part of its text.
        assert len(ours) == (len(text.split()) + 1 if kind == "Wan2.1" else length)
    (path,) = tmp_path.glob("prompts-*/*.safetensors")
    before = path.stat().st_mtime_ns
    embedded(texts[::-1], str(folders[kind]), str(tmp_path), "cpu")
    assert path.stat().st_mtime_ns == before


def test_a_damaged_cache_of_captions_is_one_sentence_to_whoever_draws_samples(runs, data, tmp_path):
    where = ["--ckpt", runs["Wan2.1"].folder, *data[:2], "--cache-dir", tmp_path, "--device", "cpu"]
    words = [*where, "--num-sampling-steps", 2, "--class-labels", 0, "--out", tmp_path / "s.png"]
    succeed("sample", "--protocol", "wan", *words)
    (path,) = tmp_path.glob("prompts-*/*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    said = refused("sample", "--protocol", "wan", *words)
    assert f"{path} is damaged" in said and "delete it, and it is made anew" in said


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_captions_are_encoded_on_the_device_that_is_asked_for(
    folders, data, tmp_path, monkeypatch, device
):
    """Whatever else there is: "meta" stands for one that is not the CPU."""
    devices = []

    def encode(encoder, texts):
        devices.append(encoder.pipeline.device.type)
        return [torch.ones(1, WIDTH, dtype=torch.bfloat16) for _ in texts]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(PromptEncoder, "__call__", encode)
    domain = domains.build(
        "ssv2", data_path=str(data[1]), cache_dir=str(tmp_path), image_size=48, num_frames=9,
        pretrained=str(folders["Wan2.1"]), device=device,
    )  # fmt: skip
    domain.condition(torch.tensor([0]))
    domain.prompted(["pushing a cup"], None)
    assert devices == [device] * 2


def test_captions_whose_file_fails_in_passing_are_read_again(folders, tmp_path, monkeypatch):
    import safetensors

    text, opens = "pushing a cup", []
    found = embedded([text], str(folders["Wan2.1"]), str(tmp_path), "cpu")
    whole, opened = found[text], safetensors.safe_open

    def fails_once(*asked):
        opens.append(asked)
        if len(opens) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(*asked)

    monkeypatch.setattr(files, "PAUSES", (0.0,))
    monkeypatch.setattr(safetensors, "safe_open", fails_once)
    assert torch.equal(found[text], whole) and len(opens) == 2


def test_cogvideox_reads_the_sentencepiece_tokenizer_that_is_published(folders, tmp_path):
    pytest.importorskip("sentencepiece")
    folder = shutil.copytree(folders["CogVideoX"], tmp_path / "CogVideoX")
    give_sentencepiece(folder)
    encoder = PromptEncoder.load(str(folder), None, "cpu")
    one, other, null = encoder(["pushing a cup", "holding a box", ""])
    assert one.shape == other.shape == null.shape == (226, WIDTH)
    assert not torch.equal(one, other) and not torch.equal(one, null)
    tokens = encoder.pipeline.tokenizer("pushing a cup").input_ids
    assert encoder.pipeline.tokenizer.decode(tokens, skip_special_tokens=True) == "pushing a cup"


@pytest.mark.parametrize("kind", SAVES)
def test_latents_are_scaled_as_the_pipeline_scales_them(kind, folders):
    codec = CausalVAECodec.load(str(folders[kind]))
    raw = torch.randint(0, 256, (2, 3, 33, 16, 16), dtype=torch.uint8)
    stored = codec.encode(raw)
    posterior = codec.vae.encode(raw[:1].float() / 127.5 - 1).latent_dist
    noise = torch.randn(2, 16, 9, 2, 2)  # 33 frames are 9
    x = codec.to_input(stored, noise)
    config = codec.vae.config
    if kind == "Wan2.1":
        mean, std = (
            torch.tensor(v).view(1, 16, 1, 1, 1) for v in (config.latents_mean, config.latents_std)
        )
        expected = (posterior.mode() - mean) / std
    else:
        expected = (posterior.mean + posterior.std * noise[:1]) * config.scaling_factor
    assert x.shape == noise.shape
    torch.testing.assert_close(x[:1], expected, rtol=1e-4, atol=1e-4)
    decoded = codec.decode(x)
    assert decoded.shape == raw.shape and decoded.dtype == torch.uint8


def test_clips_come_with_their_captions(folders, data):
    words = dict(zip(data[::2], map(str, data[1::2]), strict=True))
    domain = domains.build(
        "ssv2", data_path=words["--data-path"], cache_dir=words["--cache-dir"], image_size=48,
        num_frames=13, pretrained=str(folders["Wan2.1"]),
    )  # fmt: skip
    batch = domain.train_set().__getitems__(domains.Draws.plain([0, 2])).checked()
    assert batch.raw.shape == (2, 3, 13, 48, 80) and domain.shape == (16, 4, 6, 10)
    # The videos have 8 frames, and the last one stays.
    assert torch.equal(batch.raw[:, :, 8], batch.raw[:, :, 7])
    assert not torch.equal(batch.raw[:, :, 7], batch.raw[:, :, 6])
    assert batch.y.shape == batch.null.shape == (2, 7, 32)  # the longer one's words and </s>
    assert not batch.y[0, 5:].any() and batch.y[0, :5].any()
    assert batch.null[0, 0].any() and not batch.null[:, 1:].any()
    native = domains.build("ssv2", pretrained=str(folders["CogVideoX"]))
    assert native.raw_shape == (3, 33, 480, 720) and native.shape == (16, 9, 60, 90)


def test_with_skip_corrupt_the_next_video_and_its_caption_stand_in(folders, tmp_path):
    root = write_ssv2(tmp_path / "ssv2")
    (root / "20bn-something-something-v2" / "2.webm").write_text("no video")
    flags = dict(data_path=str(root), cache_dir=str(tmp_path), image_size=48, num_frames=9)
    domain = domains.build("ssv2", pretrained=str(folders["Wan2.1"]), **flags)
    assert "2.webm" in domain.train_set().__getitems__(domains.Draws.plain([1])).error
    flags |= dict(pretrained=str(folders["Wan2.1"]), skip_corrupt=True)
    domain = domains.build("ssv2", **flags)
    batch, other = (
        domain.train_set().__getitems__(domains.Draws.plain([number])).checked()
        for number in (1, 2)
    )
    assert batch.index.tolist() == [2] and "2.webm" in batch.problems[0] and not other.problems
    assert torch.equal(batch.raw, other.raw) and torch.equal(batch.y, other.y)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--preset wan-ssv2 --gt-encoder-depth 31", "does not fit this model of 5 blocks"),
        ("--preset wan-ssv2 --num-frames 32", "then 4 at a time, give 29 or 33"),
        ("--preset wan-ssv2 --image-size 50", "is no multiple of 8"),
        ("--preset wan-ssv2 --image-size 40", "cannot be cut into Wan2.1's patches"),
        ("--preset wan-ssv2 --path-type GVP", "--path-type Linear --prediction velocity"),
        ("--preset cogvideox-ssv2", "holds a WanTransformer3DModel"),
        ("--preset wan-ssv2 --dataset_name digits", "for videos with captions"),
        ("--preset wan-ssv2 --depth 3", "--depth: Wan2.1 has none"),
        ("--preset wan-ssv2 --shard", "--lora-rank 0"),
        ("--preset wan-ssv2 --vae no/vae", "no AutoencoderKLWan"),
        ("--preset wan-ssv2 --text-encoder no/text", "tokenizer and text encoder"),
        ("--preset wan-ssv2 --text-encoder none", "takes captions, leave it out"),
        ("--preset digits --lora-rank 2", "--lora-rank: SiT-Ti/2 has none"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(folders, tmp_path, words, sentence):
    where = ["--device", "cpu", "--results-dir", tmp_path / "r"]
    if "digits --lora" not in words:
        where += ["--pretrained", folders["Wan2.1"]]
    said = refused("train", *words.split(), *where)
    assert sentence in said and not (tmp_path / "r").exists()


def test_adapters_belong_to_their_network(runs, folders, data):
    where = [
        "--ckpt",
        runs["Wan2.1"].folder,
        *data,
        "--device",
        "cpu",
        "--prompts",
        "pushing a cup",
    ]
    said = refused("sample", "ODE", *where, "--pretrained", folders["CogVideoX"])
    assert "holds a CogVideoXTransformer3DModel" in said
    said = refused("sample", "ODE", *where, "--pretrained", "no/such")
    assert "--pretrained no/such: no Wan2.1" in said
    said = refused("sample", "ODE", *where, "--num-frames", 8)
    assert "--num-frames 8: the model makes 9" in said


def test_a_network_is_checked_by_its_kind_whatever_its_adapters_and_folder_are(
    runs, folders, data, tmp_path
):
    copy = shutil.copytree(folders["Wan2.1"], tmp_path / "copy")
    words = ["--ckpt", runs["Wan2.1"].folder, *data, "--device", "cpu", "--prompts", "a cup"]
    words += ["--num-sampling-steps", 2, "--out", tmp_path / "s.png"]
    succeed("sample", "--protocol", "wan", *words, "--model", "Wan2.1", "--pretrained", copy)
    said = refused("sample", "--protocol", "wan", *words, "--model", "CogVideoX")
    assert "--model CogVideoX, but" in said and "{'kind': 'Wan2.1'}" in said
    said = refused("sample", "--protocol", "wan", *words, "--model", "MDM")
    assert "--model MDM, but" in said


def test_what_cannot_be_exported_is_one_sentence(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "0000001.pt")
    said = refused("export", "--ckpt", tmp_path / "0000001.pt", "--out", tmp_path / "out")
    assert "these are not the weights of a SiT" in said and not (tmp_path / "out").exists()
