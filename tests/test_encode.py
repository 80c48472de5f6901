"""encode.py as a person runs it, and train.py and sample_ddp.py on what it wrote."""

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import domains
from domains import store
from domains.codecs import VAECodec
from domains.image_store import ImageEncoding
from domains.order import Draws
from encode import agreed
from runtime.checkpoint import Checkpoint
from runtime.config import SampleFlags
from runtime.errors import InputError
from sampling import with_data
from tests.commands import (
    ROOT,
    assert_same_state,
    call,
    checkpoint_of,
    launched,
    refused,
    succeed,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of seven pictures each."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.RandomState(0)
    for name in "abc":
        (root / name).mkdir()
        for number in range(7):
            small = Image.fromarray(random.randint(0, 256, (5, 4, 3)).astype(np.uint8))
            small.resize((20, 24)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def flags(photos, tiny_vae):
    return [
        "--dataset_name", "folder", "--data-path", photos, "--image-size", 16, "--vae", tiny_vae,
        "--shard-size", 4, "--batch-size", 3, "--num-workers", 0, "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def encoded(flags, tmp_path_factory):
    """A finished store; tests that damage one make their own."""
    folder = tmp_path_factory.mktemp("encoded") / "store"
    succeed("encode", *flags, "--out", folder)
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def last_line(text):
    return text.strip().splitlines()[-1]


def test_a_store_holds_the_vaes_moments_of_every_image_and_its_mirror_image(
    encoded, photos, tiny_vae
):
    flags = dict(data_path=str(photos), image_size=16)
    images = domains.build("folder", vae=tiny_vae, **flags)
    everything = Draws.plain(range(21))
    raw = images.train_set().__getitems__(everything).checked()
    vae, stored = VAECodec.load(tiny_vae), domains.build("latents", data_path=str(encoded))
    for seed, pictures in ((0, raw.raw), (1, raw.raw.flip(-1))):
        draws = Draws(everything.index, everything.seed + seed)
        batch = stored.train_set().__getitems__(draws).checked()
        torch.testing.assert_close(batch.raw.float(), vae.encode(pictures), rtol=1e-3, atol=1e-3)
        assert batch.y.equal(raw.y)


def test_the_latent_of_a_flipped_image_is_not_the_flipped_latent(encoded):
    images = domains.build("latents", data_path=str(encoded)).train_set()
    plain, mirrored = (
        images.__getitems__(Draws(np.array([0]), np.array([seed]))).raw.float() for seed in (0, 1)
    )
    assert (plain.flip(-1) - mirrored).abs().max() > 10 * 2**-10 * plain.abs().max()


def test_the_files_are_the_same_for_any_number_of_processes(encoded, flags, tmp_path):
    launched("encode", *flags, "--out", tmp_path / "two", processes=2)
    assert files_of(tmp_path / "two") == files_of(encoded)


def test_an_interrupted_encoding_goes_on_where_it_stopped(encoded, flags, tmp_path):
    folder = tmp_path / "store"
    succeed("encode", *flags, "--out", folder)
    kept = {path: path.stat().st_mtime_ns for path in sorted(folder.glob("moments-*"))[:3]}
    for path in [folder / "manifest.json", *sorted(folder.glob("moments-*"))[3:]]:
        path.unlink()
    (folder / ".moments-00003-of-00006.safetensors.1.tmp").write_bytes(b"half")
    assert "is not finished: run encode.py again" in refused("train", "--data-path", folder)
    result = succeed("encode", *flags, "--out", folder)
    assert "9/9" in result.err, "the images of the missing shards and no others"
    assert files_of(folder) == files_of(encoded)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_killed_in_the_middle_it_goes_on_and_writes_the_same_files(flags, tmp_path):
    folder, flags = tmp_path / "store", [*flags, "--shard-size", 1, "--batch-size", 1]  # 21 files
    succeed("encode", *flags, "--out", tmp_path / "whole")
    words = [sys.executable, ROOT / "encode.py", *flags, "--out", folder]
    process = subprocess.Popen([str(word) for word in words], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("moments-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it had not ended by itself"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("moments-*")}
    assert kept and not (folder / "manifest.json").exists()
    succeed("encode", *flags, "--out", folder)
    assert files_of(folder) == files_of(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_finished_store_is_not_encoded_again(encoded, flags):
    before = {path: path.stat().st_mtime_ns for path in encoded.iterdir()}
    result = succeed("encode", *flags, "--out", encoded)
    assert "21 images in 6 shards" in result.out and result.err == ""
    assert {path: path.stat().st_mtime_ns for path in encoded.iterdir()} == before


def test_a_full_disk_leaves_nothing_half_written_and_the_next_run_goes_on(encoded, flags, tmp_path):
    """The kernel lets no file grow beyond 3000 bytes, in place of a disk that is full then."""
    folder = tmp_path / "store"
    words = [sys.executable, ROOT / "encode.py", *flags, "--out", folder]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = last_line(done.stderr)
    assert said.startswith(f"error: {folder}/moments-00000") and "File too large" in said
    assert "run encode.py again with the same flags" in said
    assert list(folder.iterdir()) == []
    succeed("encode", *flags, "--out", folder)
    assert files_of(folder) == files_of(encoded)


def test_other_flags_for_the_same_folder_are_refused(encoded, flags, tmp_path, photos):
    before = files_of(encoded)
    for changed, what in [
        (["--image-size", 12], "image_size"),
        (["--num-classes", 0], "num_classes"),
        (["--shard-size", 7], "shard_size"),
        (["--data-path", photos / "a", "--num-classes", 0], "count"),
        (["--vae", other_vae(tmp_path)], "codec"),
    ]:
        said = refused("encode", *flags, *changed, "--out", encoded)
        assert f"was encoded with another {what}: give another --out" in said
    assert files_of(encoded) == before


def other_vae(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
        scaling_factor=0.18215,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "other-vae")
    return tmp_path / "other-vae"


def test_what_cannot_be_encoded_is_refused(encoded, flags):
    assert "--out is missing" in refused("encode", *flags)
    out = ["--out", encoded / "none"]
    assert "nothing to encode without a VAE" in refused("encode", "--dataset_name", "digits", *out)
    assert "holds latents: there is nothing to encode" in refused(
        "encode", "--data-path", encoded, *out
    )
    assert not (encoded / "none").exists()


def test_a_truncated_shard_stops_the_next_run_by_name(flags, tmp_path):
    folder = tmp_path / "store"
    succeed("encode", *flags, "--out", folder)
    path = sorted(folder.glob("moments-*"))[2]
    path.write_bytes(path.read_bytes()[:100])
    said = refused("encode", *flags, "--out", folder)
    assert f"{path} is truncated" in said and "delete it, and run encode.py again" in said
    path.unlink()
    succeed("encode", *flags, "--out", folder)
    assert "all checksums agree" in succeed("encode", "--verify", folder).out


def test_verifying_finds_a_single_changed_bit(flags, tmp_path):
    folder = tmp_path / "store"
    succeed("encode", *flags, "--out", folder)
    path = sorted(folder.glob("moments-*"))[4]
    change_a_bit(path)
    result = call("encode", "--verify", folder)
    assert result.code == 2
    assert last_line(result.err).startswith(f"error: {path} changed since being encoded")


def change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def test_mending_one_shard_does_not_certify_another_that_is_damaged(flags, tmp_path):
    folder = tmp_path / "store"
    succeed("encode", *flags, "--out", folder)
    one, other = (sorted(folder.glob("moments-*"))[i] for i in (1, 4))
    change_a_bit(one)
    change_a_bit(other)
    said = last_line(call("encode", "--verify", folder).err)
    assert str(one) in said and str(other) in said
    one.unlink()
    succeed("encode", *flags, "--out", folder)
    said = last_line(call("encode", "--verify", folder).err)
    assert str(one) not in said and str(other) in said


@pytest.mark.parametrize("text", ["{", '{"format": 1}', None])
def test_a_wrong_manifest_is_mended_by_the_next_run(encoded, flags, tmp_path, text):
    folder = shutil.copytree(encoded, tmp_path / "store")
    path = folder / "manifest.json"
    path.write_text(text or path.read_text().replace("0.18215", "0.5"))
    train = ["train", "--data-path", folder, "--model", "SiT-Ti/2", "--dry-run"]
    if text:
        assert "run encode.py again" in refused(*train)
    succeed("encode", *flags, "--out", folder)
    assert files_of(folder) == files_of(encoded)
    succeed(*train)


def test_other_images_of_the_same_number_are_not_mixed_in(photos, encoded, flags, tmp_path):
    others = shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(others / "a" / "1.png", others / "a" / "0.png")
    said = refused("encode", *flags, "--data-path", others, "--out", encoded)
    assert "was encoded with another data_set" in said


def test_two_encoders_do_not_write_to_one_folder(encoded, flags):
    with store.locked(encoded):
        assert "another encode.py is writing there" in refused("encode", *flags, "--out", encoded)
    succeed("encode", *flags, "--out", encoded)


def test_ranks_that_see_different_vaes_are_refused(encoded):
    ours = store.Manifest(encoded, ImageEncoding).encoding
    theirs = dataclasses.replace(ours, codec=ours.codec | {"sha256": "0"})
    assert agreed([ours, ours]) == ours
    with pytest.raises(InputError, match="process 2 has another codec than process 0"):
        agreed([ours, ours, theirs])


def test_latents_are_not_written_among_the_images(photos, flags):
    for out in (photos, photos / "latents"):
        assert "lies within --data-path" in refused("encode", *flags, "--out", out)
    assert not (photos / "latents").exists()


def test_the_images_of_a_run_on_stored_latents_are_looked_for_elsewhere(encoded):
    args = dict(dataset_name="imagenet-1k", data_path=str(encoded))
    found = Checkpoint(encoded / "0000001.pt", model={}, ema={}, args=args)
    assert with_data(SampleFlags(), found).data_path is None
    asked = SampleFlags(data_path=str(encoded))
    assert with_data(asked, found).data_path == str(encoded)


def test_a_vae_of_another_scale_is_refused_for_a_store(encoded, tiny_vae, tmp_path):
    other = shutil.copytree(tiny_vae, tmp_path / "vae")
    config = json.loads((other / "config.json").read_text()) | {"scaling_factor": 1.0}
    (other / "config.json").write_text(json.dumps(config))
    train = ["train", "--data-path", encoded, "--model", "SiT-Ti/2", "--dry-run"]
    assert "has another scale than" in refused(*train, "--vae", other)
    succeed(*train, "--vae", tiny_vae)


def test_samples_are_not_decoded_by_a_vae_that_was_replaced(encoded, tiny_vae, tmp_path):
    vae = shutil.copytree(tiny_vae, tmp_path / "vae")
    train = ["--data-path", encoded, "--vae", vae, "--model", "SiT-Ti/2", "--max-steps", 1]
    train += ["--global-batch-size", 4, "--sample-every", 0, "--device", "cpu", "--no-tensorboard"]
    succeed("train", *train, "--results-dir", tmp_path / "results")
    (run,) = (tmp_path / "results").iterdir()
    sample = ["sample", "ODE", "--ckpt", run, "--num-sampling-steps", 2, "--sampling-method"]
    sample += ["euler", "--device", "cpu", "--out", tmp_path / "grid.png"]
    succeed(*sample)
    other_vae(tmp_path)
    shutil.rmtree(vae)
    (tmp_path / "other-vae").rename(vae)
    assert "was trained on latents with sha256" in refused(*sample)
    succeed(*sample, "--vae", vae)  # asked for: a decoder may be trained anew


@pytest.fixture
def corrupt(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "photos")
    (root / "b" / "2.png").write_bytes(b"")
    return root


def test_a_corrupt_image_is_named_and_can_be_skipped(corrupt, flags, tmp_path):
    folder = tmp_path / "store"
    words = [*flags, "--data-path", corrupt, "--out", folder]
    result = call("encode", *words)
    assert result.code == 2 and "b/2.png" in last_line(result.err)
    assert "--skip-corrupt" in last_line(result.err)
    assert len(files_of(folder)) == 2, "what was complete before is kept"
    result = succeed("encode", *words, "--skip-corrupt")
    assert "warning:" in result.err and "b/2.png" in result.err
    batch = domains.build("latents", data_path=str(folder)).train_set()
    nine, ten = batch.__getitems__(Draws.plain([9, 10])).raw
    assert nine.equal(ten), "the next image in its place"
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    assert [shard["replaced"] for shard in shards] == [0, 0, 1, 0, 0, 0]


def test_a_run_on_a_store_resumes_exactly_and_is_sampled_without_the_store(
    flags, tmp_path, tiny_vae
):
    folder = tmp_path / "store"
    succeed("encode", *flags, "--out", folder)
    train = [
        "--dataset_name", "latents", "--data-path", folder, "--model", "SiT-Ti/2",
        "--device", "cpu",
        "--global-batch-size", 8, "--ckpt-every", 2, "--sample-every", 0, "--ema-decay", 0.5,
        "--no-tensorboard",
    ]  # fmt: skip
    succeed("train", *train, "--max-steps", 4, "--results-dir", tmp_path / "whole")
    succeed("train", *train, "--max-steps", 2, "--results-dir", tmp_path / "parts")
    succeed(
        "train", *train, "--max-steps", 4, "--results-dir", tmp_path / "parts", "--resume", "auto"
    )
    whole = checkpoint_of(tmp_path / "whole", 4)
    assert_same_state(whole, checkpoint_of(tmp_path / "parts", 4))
    assert whole["args"]["vae"] == tiny_vae and whole["args"]["num_classes"] == 3
    folder.rename(tmp_path / "elsewhere")
    (run,) = (tmp_path / "whole").iterdir()
    sample = ["--num-fid-samples", 4, "--num-sampling-steps", 3, "--sample-dir", tmp_path / "out"]
    succeed(
        "sample_ddp", "ODE", "--sampling-method", "euler", "--ckpt", run, "--device", "cpu", *sample
    )
    (npz,) = (tmp_path / "out").glob("*.npz")
    assert np.load(npz)["arr_0"].shape == (4, 16, 16, 3)


def test_training_on_a_store_starts_without_diffusers_and_without_the_vae(encoded, tmp_path):
    code = (
        "import sys; sys.modules['diffusers'] = None; import train; from runtime.entry import run; "
        f"sys.argv = ['train.py', '--data-path', {str(encoded)!r}, '--model', 'SiT-Ti/2', "
        f"'--results-dir', {str(tmp_path)!r}, '--global-batch-size', '4', '--max-steps', '1', "
        "'--sample-every', '0', '--device', 'cpu', '--no-tensorboard']; run(train.main)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert checkpoint_of(tmp_path, 1)["args"]["dataset_name"] == "imagenet-1k"


def test_synthetic_latents_go_from_training_to_samples_without_data_or_vae(tmp_path):
    train = ["--dataset_name", "synthetic", "--image-size", 64, "--model", "SiT-Ti/2"]
    train += ["--global-batch-size", 4, "--max-steps", 1, "--device", "cpu", "--no-tensorboard"]
    succeed("train", *train, "--results-dir", tmp_path)
    (run,) = tmp_path.iterdir()
    succeed(
        "sample", "ODE", "--sampling-method", "euler", "--num-sampling-steps", 2, "--ckpt", run,
        "--class-labels", 1, 2, "--device", "cpu", "--out", tmp_path / "grid.png",
    )  # fmt: skip
    assert (tmp_path / "grid.png").exists()
