"""Videos encoded once: all frames by an image's VAE, or a captioned clip by a causal VAE."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("diffusers")

import domains
from domains import Draws
from domains.clips import Cut, whole
from domains.codecs import VAECodec
from runtime.errors import InputError
from tests.commands import assert_same_state, call, checkpoint_of, launched, refused, succeed
from tests.domains.videos import frames_of, write_clevrer, write_numbered_ssv2, write_video
from tests.pipelines import SAVES
from tests.ssv2 import CAPTIONS, write_ssv2

TINY = (
    "--preset t7 --image-size 16 --model SiT-Ti/2x4x4 --depth 4 --hidden-size 32 --num-heads 2 "
    "--encoder-depth 1 --gt-encoder-depth 2 --global-batch-size 2 --num-workers 0 --log-every 1 "
    "--no-tensorboard --device cpu --sample-every 0 --lr 1e-3"
).split()
CAPTIONED = (
    "--global-batch-size 2 --lora-rank 2 --encoder-depth 2 --gt-encoder-depth 4 --num-workers 0 "
    "--log-every 1 --no-tensorboard --device cpu --precision fp32 --max-steps 2"
).split()
LOCAL = ["--num-workers", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three videos of several lengths, and two for validation."""
    root = write_clevrer(tmp_path_factory.mktemp("clevrer"), train=3)
    write_video(next(root.rglob("video_00001.mp4")), frames_of(57))
    return root


@pytest.fixture(scope="module")
def flags(root, tiny_vae):
    words = ["--dataset_name", "clevrer", "--data-path", root, "--vae", tiny_vae, *LOCAL]
    return [*words, "--image-size", 16, "--shard-size", 2, "--batch-size", 16]


@pytest.fixture(scope="module")
def encoded(flags, tmp_path_factory):
    """A finished store; tests that damage one make their own."""
    folder = tmp_path_factory.mktemp("encoded") / "store"
    said = succeed("encode", *flags, "--out", folder)
    assert "5 videos in 3 shards" in said.out
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def losses(results):
    (run,) = results.iterdir()
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["velocity"] for line in lines if "velocity" in line]


def built(path, name="clevrer", **flags):
    return domains.build(name, data_path=str(path), **flags)


def drawn(domain, index, seeds, *, held_out=False):
    clips = domain.held_out_set() if held_out else domain.train_set()
    return clips.__getitems__(Draws(np.array(index), np.array(seeds))).checked()


def assert_same_clips(stored, online, index, seeds, **part):
    """Moments to the rounding of float16, all else to the bit."""
    one, other = (drawn(domain, index, seeds, **part) for domain in (stored, online))
    moments = online.codec.encode(other.raw)
    assert one.raw.dtype == torch.float16 and one.raw.shape == moments.shape
    torch.testing.assert_close(one.raw.float(), moments, rtol=1e-3, atol=1e-4)
    noise = torch.randn(len(index), *online.shape)
    x, y = (d.codec.to_input(m, noise) for d, m in ((stored, one.raw), (online, moments)))
    torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)
    assert one.y.equal(other.y) and one.index.equal(other.index)
    assert (one.null is None) == (other.null is None)


# All frames


@pytest.mark.parametrize(("frames", "stride"), [(16, 3), (5, 2), (50, 1)])
def test_clips_of_any_frames_are_cut_as_from_the_files(encoded, root, tiny_vae, frames, stride):
    free = dict(num_frames=frames, frame_stride=stride)
    stored, online = built(encoded, **free), built(root, vae=tiny_vae, image_size=16, **free)
    assert (stored.shape, stored.raw_shape) == (online.shape, online.raw_shape)
    assert stored.vae == tiny_vae and stored.num_classes == 0
    assert stored.fps == online.fps == 25
    assert_same_clips(stored, online, [0, 1, 1, 2], [5, 6, 7, 8])
    assert_same_clips(stored, online, [0, 1], [0, 9], held_out=True)


def test_another_seed_is_another_clip(encoded):
    one, same, other = (drawn(built(encoded), [0], [seed]).raw for seed in (1, 1, 3))
    assert one.equal(same) and not one.equal(other)
    assert not built(encoded).train_set().decodes


def test_training_from_the_store_is_training_from_the_files(encoded, flags, tmp_path):
    where = {"store": ["--data-path", encoded], "files": [*flags[2:6]]}
    for name, words in where.items():
        succeed("train", *TINY, *words, "--max-steps", 3, "--results-dir", tmp_path / name)
    ours, theirs = (losses(tmp_path / name) for name in where)
    assert len(ours) == 3
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert (
        checkpoint_of(tmp_path / "store", 3)["codec"]
        == checkpoint_of(tmp_path / "files", 3)["codec"]
    )
    again = [*TINY, *where["store"], "--resume", "auto", "--results-dir", tmp_path / "parts"]
    for stop in (1, 3):
        succeed("train", *again, "--max-steps", stop)
    assert_same_state(*(checkpoint_of(tmp_path / name, 3) for name in ("store", "parts")))
    few = ["--sampling-method", "heun2", "--num-sampling-steps", 3, "--device", "cpu"]
    (run,) = (tmp_path / "store").iterdir()
    words = ["--ckpt", run, "--data-path", encoded, *few, "--out", tmp_path / "s.png"]
    succeed("sample", "ODE", *words, "--class-labels", 0)
    assert (tmp_path / "s.mp4").stat().st_size > 500


def test_the_files_are_the_same_for_two_processes_and_after_an_end_in_the_middle(
    encoded, flags, tmp_path
):
    launched("encode", *flags, "--num-workers", 1, "--out", tmp_path / "two", processes=2)
    assert files_of(tmp_path / "two") == files_of(encoded)
    (tmp_path / "two/manifest.json").unlink()
    sorted((tmp_path / "two").glob("frames-*"))[1].unlink()
    assert "is not finished: run encode.py again" in refused(
        "train", *TINY, "--data-path", tmp_path / "two"
    )
    succeed("encode", *flags, "--out", tmp_path / "two")
    assert files_of(tmp_path / "two") == files_of(encoded)
    assert "5 videos, all checksums agree" in succeed("encode", "--verify", encoded).out


def test_a_damaged_video_is_named_and_can_be_left_out(root, encoded, flags, tmp_path):
    copied = shutil.copytree(root, tmp_path / "clevrer")
    path = next(copied.rglob("video_00001.mp4"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    words = [*flags, "--data-path", copied, "--out", tmp_path / "store"]
    said = call("encode", *words).err.strip().splitlines()[-1]
    assert "video_00001.mp4 cannot be decoded" in said
    assert "--skip-corrupt goes on without such videos" in said
    result = succeed("encode", *words, "--skip-corrupt")
    assert "unreadable and left out: 1, video_train/" in result.out
    rest = built(tmp_path / "store", num_frames=50, frame_stride=1)
    whole = built(encoded, num_frames=50, frame_stride=1)
    assert len(rest.train_set()) == 2
    assert drawn(rest, [0, 1], [0, 0]).raw.equal(drawn(whole, [0, 2], [0, 0]).raw)


def test_videos_shorter_than_a_clip_are_counted_before_training(encoded):
    with pytest.raises(InputError, match="2 of 3 videos are too short; .*00000.mp4 has 50 frames"):
        built(encoded, num_frames=18).train_set()
    assert len(built(encoded, num_frames=17).train_set()) == 3


def test_short_videos_of_ssv2_hold_the_frame_that_files_hold(tiny_vae, tmp_path):
    root = write_numbered_ssv2(tmp_path / "ssv2", "labels/{}.json")
    words = ["--dataset_name", "ssv2", "--data-path", root, "--vae", tiny_vae, *LOCAL]
    succeed("encode", *words, "--image-size", 16, "--out", tmp_path / "store")
    shape = dict(num_frames=12, frame_stride=3)  # of 20 frames the last that is taken is the 19th
    stored = built(tmp_path / "store", "ssv2", **shape)
    online = built(root, "ssv2", vae=tiny_vae, image_size=16, **shape)
    assert_same_clips(stored, online, [0, 1], [3, 4])


def test_classes_are_stored_when_they_are_asked_for(root, tiny_vae, flags, tmp_path):
    copied = shutil.copytree(root, tmp_path / "clevrer")
    labels = {path.stem: number % 2 for number, path in enumerate(sorted(copied.rglob("*.mp4")))}
    content = {"classes": ["a", "b"], "videos": labels}
    (copied / "labels.json").write_text(json.dumps(content))
    words = [*flags, "--data-path", copied, "--num-classes", 2]
    succeed("encode", *words, "--out", tmp_path / "store")
    domain = built(tmp_path / "store")
    assert domain.num_classes == 2 and drawn(domain, [0, 1, 2], [0, 0, 0]).y.tolist() == [0, 1, 0]
    assert drawn(domain, [0, 1], [0, 0], held_out=True).y.tolist() == [1, 0]
    free = built(tmp_path / "store", num_classes=0)
    assert free.num_classes == 0 and drawn(free, [1], [0]).y.tolist() == [0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--num-frames 8", "--num-frames 8: clevrer is encoded whole"),
        ("--frame-stride 2", "--frame-stride 2: clevrer is encoded whole"),
        ("--vae none", "--vae none: there is nothing to encode without a VAE"),
        ("--dataset_name moving --vae none", "there is nothing to encode without a VAE"),
        ("--dataset_name moving", "needs color videos"),
        ("--pretrained some/pipeline", "clevrer has no texts, leave it out"),
    ],
)
def test_what_encoding_does_not_take_is_one_sentence(flags, tmp_path, words, sentence):
    said = refused("encode", *flags, *words.split(), "--out", tmp_path / "store")
    assert sentence in said and not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--image-size 32", "--image-size 32, but --data-path"),
        ("--dataset_name ssv2", "holds videos of clevrer: give --dataset_name clevrer"),
        ("--num-classes 2", "has no classes"),
        ("--num-frames 20", "3 of 3 videos are too short"),
        ("--vae none", "holds latents"),
    ],
)
def test_what_a_store_of_frames_does_not_have_is_one_sentence(encoded, tmp_path, words, sentence):
    words = [*TINY, "--data-path", encoded, *words.split(), "--max-steps", 1]
    assert sentence in refused("train", *words, "--results-dir", tmp_path)


# Clips with captions


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory):
    return write_ssv2(tmp_path_factory.mktemp("ssv2") / "data", frames=14)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: save(root / kind) for kind, save in SAVES.items()}


@pytest.fixture(scope="module")
def clips(ssv2, pipelines, tmp_path_factory):
    """A store for each network."""
    root = tmp_path_factory.mktemp("clips")
    for kind, pipeline in pipelines.items():
        words = ["--dataset_name", "ssv2", "--data-path", ssv2, "--pretrained", pipeline, *LOCAL]
        shape = ["--num-frames", 9, "--image-size", 48, "--shard-size", 3]
        said = succeed("encode", *words, *shape, "--out", root / kind)
        assert "8 clips in 3 shards" in said.out
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("kind", SAVES)
def test_a_stored_clip_is_the_one_that_evaluation_sees_of_the_file(
    kind, clips, ssv2, pipelines, cache
):
    own = dict(pretrained=str(pipelines[kind]), cache_dir=cache)
    stored = built(clips / kind, "ssv2", **own)
    online = built(ssv2, "ssv2", num_frames=9, image_size=48, **own)
    assert (stored.shape, stored.raw_shape) == (online.shape, online.raw_shape)
    assert (stored.num_frames, stored.frame_stride) == (9, 1) and stored.vae == online.vae
    assert stored.fps == online.fps == 12
    assert stored.codec.uses_noise == online.codec.uses_noise == (kind == "CogVideoX")
    assert stored.identity == online.identity
    assert_same_clips(stored, online, [0, 2, 5], [0, 0, 0])
    assert_same_clips(stored, online, [0, 1], [0, 0], held_out=True)
    assert stored.titles(torch.arange(stored.choices)) == CAPTIONS["validation"]
    torch.testing.assert_close(
        stored.condition(torch.tensor([1]))["y"], online.condition(torch.tensor([1]))["y"]
    )


def test_training_on_stored_clips_needs_neither_videos_nor_vae(clips, pipelines, cache, tmp_path):
    bare = shutil.copytree(pipelines["CogVideoX"], tmp_path / "pipeline")
    next((bare / "vae").glob("*.safetensors")).unlink()
    words = ["--preset", "cogvideox-ssv2", *CAPTIONED, "--data-path", clips / "CogVideoX"]
    words += ["--pretrained", bare, "--cache-dir", cache, "--results-dir", tmp_path / "r"]
    succeed("train", *words)
    args = checkpoint_of(tmp_path / "r", 2)["args"]
    assert (args["num_frames"], args["frame_stride"], args["image_size"]) == (9, 1, 48)
    assert len(losses(tmp_path / "r")) == 2 and np.isfinite(losses(tmp_path / "r")).all()


def test_what_a_store_of_clips_does_not_have_is_one_sentence(clips, pipelines, cache, tmp_path):
    words = ["--preset", "wan-ssv2", *CAPTIONED, "--data-path", clips / "Wan2.1", "--cache-dir"]
    words += [cache, "--results-dir", tmp_path, "--pretrained", pipelines["Wan2.1"]]
    for flags, sentence in [
        (["--num-frames", 13], "--num-frames 13, but --data-path"),
        (["--frame-stride", 2], "holds clips of --frame-stride 1"),
        (["--image-size", 64], "holds latents of 48 pixels"),
        (["--text-encoder", "none"], "takes captions, leave it out"),
        (["--data-path", clips / "CogVideoX"], "holds latents of an AutoencoderKLCogVideoX"),
        (["--num-classes", 3], "has captions, not classes"),
    ]:
        assert sentence in refused("train", *words, *flags)


def test_a_clip_that_is_left_out_keeps_its_caption_for_samples(ssv2, pipelines, cache, tmp_path):
    copied = shutil.copytree(ssv2, tmp_path / "ssv2")
    for number in (2, 8):  # the second to train on, and the last one
        (copied / "20bn-something-something-v2" / f"{number}.webm").write_bytes(b"no video" * 99)
    words = ["--dataset_name", "ssv2", "--data-path", copied, "--pretrained", pipelines["Wan2.1"]]
    words += ["--num-frames", 5, "--image-size", 16, *LOCAL, "--skip-corrupt"]
    succeed("encode", *words, "--out", tmp_path / "store")
    own = dict(pretrained=str(pipelines["Wan2.1"]), cache_dir=cache)
    domain = built(tmp_path / "store", "ssv2", **own)
    train = domain.train_set()
    assert [caption.decode() for caption in train.captions] == [
        caption for number, caption in enumerate(CAPTIONS["train"]) if number != 1
    ]
    assert len(train) == 5 and len(domain.held_out_set()) == 1 and domain.choices == 2


def test_the_moments_of_long_videos_are_made_a_few_frames_at_a_time(encoded, root, tiny_vae):
    """16 frames at a time, as the store was encoded, give what all at once give."""
    path = next(root.rglob("video_00001.mp4"))
    raw = torch.from_numpy(whole(path, Cut(1, 1, (16, 16))))
    assert raw.shape == (3, 57, 16, 16)
    expected = VAECodec.load(tiny_vae).encode(raw.transpose(0, 1))
    found = built(encoded).source.rows(1)
    torch.testing.assert_close(torch.tensor(found).float(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("frames", dict(held_out=5), "some of the samples are to train on"),
        ("frames", dict(latent_shape=[4, 8]), "another crop or shape"),
        ("frames", dict(class_names=["a"]), "disagree about the class_names"),
        ("clips", dict(size=[48]), "another crop or shape"),
        ("clips", dict(num_frames=0), "sizes are 1 or more"),
        ("clips", dict(draws=True), "disagree about the draws"),
    ],
)
def test_a_manifest_that_lies_is_refused(encoded, clips, cache, tmp_path, kind, change, words):
    store, name = {"frames": (encoded, "clevrer"), "clips": (clips / "Wan2.1", "ssv2")}[kind]
    shutil.copytree(store, tmp_path / "store")
    path = tmp_path / "store/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["encoding"].update(change)
    path.write_text(json.dumps(manifest))
    own = dict(text_encoder="any", cache_dir=cache) if kind == "clips" else {}
    with pytest.raises(InputError, match=words):
        built(tmp_path / "store", name, **own).source.lengths.sum()
