"""Music encoded once, trained on without mp3 files or VAE, drawn, and measured, by the commands."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("av")

import domains
from tests.commands import (
    ROOT,
    assert_same_state,
    call,
    checkpoint_of,
    launched,
    refused,
    succeed,
)  # fmt: skip
from tests.domains.music import save_oobleck, tone, write_jamendo, write_mp3

TINY = (
    "--dataset_name mtg-jamendo --image-size 8192 --model SiT-Ti/1 --depth 4 --hidden-size 32 "
    "--num-heads 2 --no-learn-sigma --global-batch-size 2 --num-workers 0 --log-every 1 "
    "--no-tensorboard --device cpu --cfg-scale 1 --sample-every 0 --lr 1e-3"
).split()
FEW = ["--sampling-method", "heun2", "--num-sampling-steps", 3, "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """JAMENDO with tracks of several lengths, and a VAE."""
    folder = tmp_path_factory.mktemp("music")
    write_jamendo(folder / "jamendo", seconds=0.5)
    write_mp3(folder / "jamendo/audio/01/1001.mp3", tone(330, 0.8))
    save_oobleck(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def flags(folder):
    return [
        "--dataset_name", "mtg-jamendo", "--data-path", folder / "jamendo", "--vae", folder / "vae",
        "--shard-size", 2, "--num-workers", 0, "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def encoded(flags, folder):
    """A finished store; tests that damage one make their own."""
    succeed("encode", *flags, "--out", folder / "store")
    return folder / "store"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def last_line(text):
    return text.strip().splitlines()[-1]


# Encoding


def test_what_was_encoded_is_said_with_the_mean_and_deviation_of_its_latents(encoded, flags):
    said = succeed("encode", *flags, "--out", encoded)
    assert "5 tracks in 3 shards" in said.out and said.err == "", "it is not encoded again"
    assert f"train.py --dataset_name mtg-jamendo --data-path {encoded}" in said.out
    manifest = json.loads((encoded / "manifest.json").read_text())
    mean, deviation = manifest["mean"], manifest["deviation"]
    assert f"latents have mean {mean:.3f} and deviation {deviation:.3f}" in said.out
    assert "5 tracks, all checksums agree" in succeed("encode", "--verify", encoded).out


def test_the_files_are_the_same_for_two_processes(encoded, flags, tmp_path):
    launched("encode", *flags, "--num-workers", 1, "--out", tmp_path / "two", processes=2)
    assert files_of(tmp_path / "two") == files_of(encoded)


def test_killed_in_the_middle_it_goes_on_and_writes_the_same_files(encoded, flags, tmp_path):
    folder = tmp_path / "store"
    words = [sys.executable, ROOT / "encode.py", *flags, "--out", folder]
    process = subprocess.Popen([str(word) for word in words], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("tracks-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it had not ended by itself"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("tracks-*")}
    assert kept and not (folder / "manifest.json").exists()
    assert "is not finished: run encode.py again" in refused(
        "train", *TINY, "--data-path", folder
    )  # fmt: skip
    succeed("encode", *flags, "--out", folder)
    assert files_of(folder) == files_of(encoded)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_verifying_finds_a_single_changed_bit(encoded, flags, tmp_path):
    store = shutil.copytree(encoded, tmp_path / "store")
    path = sorted(store.glob("tracks-*"))[1]
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    said = last_line(call("encode", "--verify", store).err)
    assert said.startswith(f"error: {path} changed since being encoded")
    path.unlink()
    succeed("encode", *flags, "--out", store)
    assert files_of(store) == files_of(encoded)


def test_a_corrupt_track_is_named_and_can_be_left_out(folder, encoded, flags, tmp_path):
    root = shutil.copytree(folder / "jamendo", tmp_path / "jamendo")
    (root / "audio/01/1001.mp3").write_bytes(b"no sound at all" * 50)
    store = tmp_path / "store"
    words = [*flags, "--data-path", root, "--out", store]
    said = last_line(call("encode", *words).err)
    assert "01/1001.mp3 cannot be decoded" in said and "--skip-corrupt goes on without" in said
    result = succeed("encode", *words, "--skip-corrupt")
    assert "warning:" in result.err and "01/1001.mp3" in result.err
    assert "unreadable and left out: 1, 01/1001.mp3 the first" in result.out
    whole, rest = (
        domains.build("mtg-jamendo", data_path=str(path), image_size=8192).train_set()
        for path in (encoded, store)
    )
    one, other = (
        images.__getitems__(domains.Draws.plain([number]))
        for images, number in ((whole, 0), (rest, 0))
    )
    assert (len(whole), len(rest)) == (3, 2) and one.raw.equal(other.raw)
    third, second = (
        images.source.crop(number, 0.5, 8192) for images, number in ((whole, 2), (rest, 1))
    )
    assert np.array_equal(third, second)
    assert rest.source.labels.tolist() == whole.source.labels[[0, 2]].tolist()


def test_other_flags_for_the_same_folder_are_refused(encoded, flags, folder, tmp_path):
    root = shutil.copytree(folder / "jamendo", tmp_path / "jamendo")
    write_mp3(root / "audio/00/1000.mp3", tone(221, 0.7))
    before = files_of(encoded)
    for changed, what in [
        (["--shard-size", 3], "shard_size"),
        (["--data-path", root], "data_set"),
        (["--vae", save_oobleck(tmp_path / "other", seed=1)], "codec"),
    ]:
        said = refused("encode", *flags, *changed, "--out", encoded)
        assert f"was encoded with another {what}: give another --out" in said
    assert files_of(encoded) == before


@pytest.mark.parametrize("flag", ["--image-size", "--num-classes"])
def test_flags_that_tracks_do_not_read_are_refused(flags, tmp_path, flag):
    said = refused("encode", *flags, flag, 8192, "--out", tmp_path / "store")
    assert f"{flag} 8192: mtg-jamendo is encoded whole" in said
    assert not (tmp_path / "store").exists()


def test_pictures_and_tracks_do_not_share_a_folder(encoded, folder, flags, tiny_vae, tmp_path):
    from PIL import Image

    (tmp_path / "photos/a").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "photos/a/0.png")
    photos = ["--dataset_name", "folder", "--data-path", tmp_path / "photos", "--vae", tiny_vae]
    photos += ["--image-size", 16, "--num-workers", 0, "--device", "cpu"]
    said = refused("encode", *photos, "--out", encoded)
    assert "holds no latents of images: give another --out" in said
    succeed("encode", *photos, "--out", tmp_path / "store")
    said = refused("encode", *flags, "--out", tmp_path / "store")
    assert "holds no latents of tracks: give another --out" in said


def test_latents_are_not_encoded_again(encoded, tmp_path):
    words = ["--dataset_name", "mtg-jamendo", "--data-path", encoded, "--out", tmp_path / "again"]
    assert "holds latents: there is nothing to encode" in refused("encode", *words)


# Training


@pytest.fixture(scope="module")
def run(encoded, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    succeed("train", *TINY, "--data-path", encoded, "--max-steps", 4, "--results-dir", results)
    (folder,) = results.iterdir()
    return folder


def test_resume_is_exact_on_stored_tracks(run, encoded, tmp_path):
    for stop in (2, 4):
        words = ["--max-steps", stop, "--resume", "auto", "--results-dir", tmp_path]
        succeed("train", *TINY, "--data-path", encoded, *words)
    assert_same_state(checkpoint_of(run.parent, 4), checkpoint_of(tmp_path, 4))


def test_a_model_learns_what_it_would_from_the_files(run, flags, folder, encoded, tmp_path):
    """Up to the edges of crops and the rounding of float16: with the same noise and labels, and
    tones, which are the same anywhere, the losses are near."""
    where = ["--data-path", folder / "jamendo", "--vae", folder / "vae"]
    succeed("train", *TINY, *where, "--max-steps", 4, "--results-dir", tmp_path)
    (online,) = tmp_path.iterdir()
    losses = [
        [line["velocity"] for line in map(json.loads, lines) if "velocity" in line]
        for lines in ((one / "log.jsonl").read_text().splitlines() for one in (run, online))
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert checkpoint_of(run.parent, 4)["codec"] == checkpoint_of(tmp_path, 4)["codec"]


def test_training_on_a_store_needs_neither_vae_nor_diffusers_nor_decoder(encoded, tmp_path):
    code = (
        "import sys; sys.modules['diffusers'] = sys.modules['av'] = None; import train; "
        f"from runtime.entry import run; sys.argv = ['train.py', *{TINY}, '--data-path', "
        f"{str(encoded)!r}, '--max-steps', '1', '--results-dir', {str(tmp_path)!r}]; "
        "run(train.main)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert checkpoint_of(tmp_path, 1)["args"]["num_classes"] == 4


def test_a_run_is_sampled_without_store_and_with_the_labels_of_its_tracks(run, encoded, tmp_path):
    for name, where in (("bare", []), ("tracks", ["--data-path", encoded])):
        words = ["--ckpt", run, *where, *FEW, "--class-labels", 0, 1]
        succeed("sample", "ODE", *words, "--out", tmp_path / f"{name}.png")
        assert len(list(tmp_path.glob(f"{name}-*.wav"))) == 2


def test_samples_are_not_decoded_by_a_vae_that_was_replaced(run, folder, encoded, tmp_path):
    other = save_oobleck(tmp_path / "other", seed=1)
    sample = [
        "sample",
        "ODE",
        "--ckpt",
        run,
        *FEW,
        "--class-labels",
        0,
        "--out",
        tmp_path / "s.png",
    ]
    said = refused(*sample, "--data-path", encoded, "--vae", other)
    assert f"--vae {other} has another sha256 than" in said
    kept = (folder / "vae").rename(folder / "kept")
    try:
        assert "no folder of diffusers' AutoencoderOobleck" in refused(*sample)
        shutil.copytree(other, folder / "vae")
        assert "was trained on latents with sha256" in refused(*sample)
    finally:
        shutil.rmtree(folder / "vae", ignore_errors=True)
        kept.rename(folder / "vae")
    succeed(*sample)


def test_crops_of_another_length_than_the_models_are_refused(run, encoded, tmp_path):
    sample = ["sample", "ODE", "--ckpt", run, *FEW, "--out", tmp_path / "s.png"]
    said = refused(*sample, "--data-path", encoded, "--image-size", 4096)
    assert "works on inputs of (4, 128), but mtg-jamendo" in said
    train = ["train", *TINY, "--data-path", encoded, "--max-steps", 6, "--resume", "auto"]
    said = refused(*train, "--image-size", 4096, "--results-dir", run.parent)
    assert "was trained with other flags (--image-size 8192 -> 4096)" in said


def test_the_held_out_loss_is_that_of_the_stored_test_tracks(run, encoded):
    words = [run, "--data-path", encoded, "--device", "cpu"]
    assert "2 held-out images of mtg-jamendo" in succeed("evaluations.heldout", *words).out


def test_real_music_to_score_against_is_not_taken_from_latents(encoded, tmp_path):
    words = ["--data-path", encoded, "--max-steps", 2, "--score-every", 1, "--score-samples", 10]
    words += ["--score-extractor", "classifier", "--results-dir", tmp_path]
    said = refused("train", *TINY, *words)
    assert f"{encoded} holds latents: give --score-reference" in said
