"""Video through the same commands and flags as pictures: trained, resumed, drawn, scored."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("av")

import av

import domains
import training
from domains import Draws
from evaluations.extractors import classifier as classifiers
from runtime.config import TrainConfig, parse
from runtime.errors import InputError
from runtime.presets import PRESETS
from tests.commands import assert_same_state, call, checkpoint_of, launched, refused, succeed
from tests.domains.videos import frames_of, write_clevrer, write_video

TINY = (
    "--preset t7 --image-size 16 --model SiT-Ti/2x4x4 --depth 4 --hidden-size 32 --num-heads 2 "
    "--encoder-depth 1 --gt-encoder-depth 2 --global-batch-size 4 --num-workers 0 --log-every 1 "
    "--no-tensorboard --device cpu --sample-every 0 --lr 1e-3"
).split()
FEW = ["--sampling-method", "heun2", "--num-sampling-steps", 3, "--device", "cpu"]
SCORE = "evaluations.images.__main__"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """As CLEVRER's: 128 frames of 480x320 pixels, 25 a second."""
    return write_clevrer(tmp_path_factory.mktemp("clevrer"), count=128, size=(320, 480))


@pytest.fixture(scope="module")
def flags(root, tiny_vae):
    return [*TINY, "--data-path", root, "--vae", tiny_vae]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    succeed("train", *flags, "--max-steps", 3, "--sample-every", 3, "--results-dir", results)
    (folder,) = results.iterdir()
    return folder


def rows(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_it_trains_with_layer_sync_on_latents_of_frames_and_shows_what_it_draws(run):
    lines = rows(run)
    assert len(lines) == 3 and all(np.isfinite(line["loss"]) for line in lines)
    assert lines[0]["reg"] == pytest.approx(-1, abs=1e-4)  # adaLN-zero: all blocks are equal
    assert "pairs=1:2" in (run / "log.txt").read_text()
    stored = checkpoint_of(run.parent, 3)
    assert stored["architecture"]["input_size"] == (16, 8, 8)  # frames, latents of 16 pixels
    assert stored["architecture"]["patch_size"] == (2, 4, 4)
    assert stored["model"]["x_embedder.proj.weight"].shape == (32, 4, 2, 4, 4)
    assert stored["args"]["num_frames"] == 16 and stored["args"]["frame_stride"] == 3
    with av.open(str(run / "samples" / "0000003.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 16
    assert (run / "samples" / "0000003.png").stat().st_size > 5000


def test_resume_is_exact_on_clips(flags, tmp_path):
    succeed("train", *flags, "--max-steps", 4, "--results-dir", tmp_path / "whole")
    for stop in (2, 4):
        words = ["--max-steps", stop, "--resume", "auto", "--results-dir", tmp_path / "parts"]
        succeed("train", *flags, *words)
    assert_same_state(*(checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts")))
    words = ["--max-steps", 6, "--resume", "auto", "--results-dir", tmp_path / "parts"]
    said = refused("train", *flags, *words, "--frame-stride", 2)
    assert "--frame-stride 3 -> 2" in said


def test_two_processes_see_the_same_clips(flags, tmp_path):
    words = [*flags, "--max-steps", 2, "--results-dir"]
    launched("train", *words, tmp_path / "two", processes=2)
    succeed("train", *words, tmp_path / "one")
    one, two = (checkpoint_of(tmp_path / name, 2)["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)


def test_trd_compares_the_frames_of_a_clip(flags, tmp_path):
    words = ["--similarity", "trd", "--reg-weight", 0.5, "--max-steps", 3]
    succeed("train", *flags, *words, "--results-dir", tmp_path)
    (folder,) = tmp_path.iterdir()
    reg = [line["reg"] for line in rows(folder)]
    assert reg[0] == pytest.approx(0, abs=1e-6) and 0 < reg[2] < 1
    config = parse(TrainConfig, PRESETS, list(map(str, [*flags, *words])))
    *_, method = training.build(config, torch.device("cpu"))
    assert method.regulariser.similarity.keywords["frames"] == 8  # 16, two to a token


def test_samples_are_clips_for_any_batch(run, tmp_path):
    words = ["--ckpt", run, *FEW]
    for name, size in (("a", 4), ("b", 2)):
        succeed("sample_ddp", "ODE", *words, "--num-fid-samples", 4, "--per-proc-batch-size", size,
                "--sample-dir", tmp_path, "--name", name)  # fmt: skip
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a.files == ["arr_0"] and a["arr_0"].shape == (4, 16, 16, 16, 3)
        assert a["arr_0"].dtype == np.uint8
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
    protocol = json.loads((tmp_path / "a.json").read_text())
    assert protocol["num_frames"] == 16 and protocol["frame_stride"] == 3 and protocol["uint8"]
    said = refused("sample_ddp", "ODE", *words, "--pngs", "--sample-dir", tmp_path)
    assert "--pngs: samples of clevrer are no pictures" in said


def test_a_sheet_and_a_video_are_drawn_from_a_checkpoint(run, tmp_path):
    words = ["--ckpt", run, *FEW, "--class-labels", 0, 0, "--out", tmp_path / "s.png"]
    succeed("sample", "ODE", *words)
    with av.open(str(tmp_path / "s.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 16
    said = refused("sample", "ODE", *words, "--model", "SiT-Ti/2")
    assert "--model SiT-Ti/2, but" in said and "(2, 4, 4)" in said


def test_the_held_out_loss_is_measured_on_clips(run, root):
    words = [run, "--data-path", root, "--device", "cpu"]
    assert "2 held-out images of clevrer" in succeed("evaluations.heldout", *words).out


def test_blocks_are_looked_at_on_clips_as_on_pictures(run, root, tmp_path):
    """CLEVRER has no classes: what is told without them is told."""
    words = [run, "--data-path", root, "--device", "cpu", "--out", tmp_path]
    succeed("evaluations.similarity", *words, "--val-path", root)
    found = json.loads((tmp_path / "similarity.json").read_text())
    assert np.diag(found["cka"]) == pytest.approx(1, abs=1e-5)
    for command in ("suggest_pairs", "progress"):
        said = refused(f"evaluations.{command}", *words)
        assert "a probe reads classes, and clevrer has none" in said
    said = refused("evaluations.maps", *words)
    assert "is a model of clevrer: this command is for pictures" in said


def test_short_videos_of_ssv2_and_pixels_train_too(tmp_path):
    from tests.domains.videos import write_numbered_ssv2

    root = write_numbered_ssv2(tmp_path / "ssv2", "labels/{}.json")
    words = ["--dataset_name", "ssv2", "--vae", "none", "--num-frames", 34, "--max-steps", 1]
    words += ["--global-batch-size", 2, "--data-path", root, "--results-dir", tmp_path / "r"]
    succeed("train", *TINY, *words)
    assert checkpoint_of(tmp_path / "r", 1)["architecture"]["input_size"] == (34, 16, 16)


# A classifier of clips


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    """A bar that moves to the left, or to the right: every frame alone could be of either."""
    root = tmp_path_factory.mktemp("turning")
    random = np.random.RandomState(0)
    labels = {}
    for part, first, count in (("train", 0, 40), ("validation", 10_000, 16)):
        for number in range(first, first + count):
            label, start, name = number % 2, random.randint(16), f"video_{number:05d}"
            frames = [np.zeros((16, 16, 3), np.uint8) for _ in range(6)]
            for time, frame in enumerate(frames):
                place = start + (2 * label - 1) * 2 * time
                frame[:, [place % 16, (place + 1) % 16]] = random.randint(150, 256)
            write_video(root / f"video_{part}" / f"{name}.mp4", frames)
            labels[name] = label
    (root / "labels.json").write_text(json.dumps({"classes": ["left", "right"], "videos": labels}))
    return root


def test_probes_read_clips_as_the_network_cuts_them(turning, tmp_path):
    tiny = ["--preset", "moving", "--data-path", turning, "--image-size", 16, "--num-frames", 4]
    tiny += ["--frame-stride", 1, "--depth", 2, "--hidden-size", 16, "--num-heads", 2]
    tiny += ["--max-steps", 2, "--loss-type", "vanilla", "--sample-every", 0, "--no-tensorboard"]
    succeed("train", *tiny, "--results-dir", tmp_path / "r", "--device", "cpu")
    (run,) = (tmp_path / "r").iterdir()
    words = [run, "--device", "cpu", "--out", tmp_path, "--num-workers", 0]
    succeed("evaluations.classification", *words, "--epochs", 1, "--probe-batch", 8)
    found = json.loads((tmp_path / "classification.json").read_text())
    assert (found["train_images"], found["test_images"]) == (40, 16)
    assert found["data"] == "moving" and len(found["ridge"]) == 2
    succeed("evaluations.features.__main__", *words, "--pool", "none")
    assert np.load(tmp_path / "block_02.npy").shape == (40, 32, 16)  # 2 x 4 x 4 tokens


def test_clips_are_scored_by_a_classifier_that_sees_motion(turning, tmp_path):
    where = dict(data_path=str(turning), image_size=16, num_frames=4, frame_stride=1)
    domain = domains.build("moving", **where)
    classifier = classifiers.train(domain, steps=60, batch=32)
    assert classifier.accuracy > 0.9 and classifier.config["frames"] == 4
    with pytest.raises(InputError, match="--num-frames 2 or more"):
        classifiers.train(domains.build("moving", **where | {"num_frames": 1}))
    classifier.save(tmp_path / "clf.pt")
    batch = domain.held_out_set().__getitems__(Draws.plain(range(16))).checked()
    good = domain.arrays(batch.raw)
    found = {}
    for name, clips in (("good", good), ("still", good[:, :1].repeat(4, axis=1))):
        np.savez(tmp_path / f"{name}.npz", arr_0=clips, arr_1=batch.y.numpy())
        words = ["moving", tmp_path / f"{name}.npz", "--extractor", f"classifier:{tmp_path}/clf.pt"]
        words += ["--data-path", turning, "--frame-stride", 1, "--device", "cpu"]
        words += ["--num-workers", 0]
        succeed(SCORE, *words)
        found[name] = json.loads((tmp_path / f"{name}.score.json").read_text())["scores"]
    assert found["good"]["fd_classifier"] < 0.2 * found["still"]["fd_classifier"]
    assert found["good"]["accuracy"] > 0.9 > found["still"]["accuracy"]
    succeed(SCORE, *words, "--held-out")
    result = json.loads((tmp_path / "still.score.json").read_text())
    assert result["reference"]["name"] == "moving, held out" and result["floor"] is None
    said = refused(SCORE, *words[1:2], *words[1:], "--held-out")
    assert "--held-out:" in said and "is a file; name a data set" in said
    wrong = call(SCORE, *words, "--num-frames", 3)
    assert wrong.code == 2 and "has clips of 4 frames" in wrong.err


# What is wrong


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--vae none", "--dataset_name clevrer needs --data-path FOLDER"),
        ("--vae none --data-path .", "has no video of CLEVRER: expected video_train"),
        ("--vae none --dataset_name ssv2 --num-frames 32 --data-path .", "has no list of SSv2"),
        ("--vae none --num-frames 15", "patch (2, 4, 4) does not divide the input (15, 16, 16)"),
        ("--vae none --num-frames 0", "--num-frames 0: give 1 or more"),
        ("--preset moving --loss-type repa", "repa sees images, and moving has none"),
        ("--vae none --model SiT-Ti/2 --num-frames 3", "does not divide the input"),
        ("--preset digits --model SiT-Ti/1x2x2", "with patch (1, 2, 2): give both"),
        ("--preset digits --num-frames 4", "--num-frames 4: digits has no frames, leave it out"),
    ],
)
def test_what_video_lacks_is_one_sentence(tmp_path, words, sentence):
    flags = words.split() if "--preset" in words else [*TINY, *words.split()]
    said = refused("train", *flags, "--device", "cpu", "--results-dir", tmp_path / "r")
    assert sentence in said and not (tmp_path / "r").exists()


def test_a_video_that_cannot_be_decoded_ends_the_run_with_its_name(tmp_path):
    for number in range(4):
        write_video(tmp_path / f"video_0000{number}.mp4", frames_of(50 if number else 7))
    words = ["--data-path", tmp_path, "--vae", "none", "--results-dir", tmp_path / "r"]
    said = refused("train", *TINY, "--max-steps", 1, *words)
    assert "video_00000.mp4 has 7 frames" in said
