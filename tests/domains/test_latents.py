"""Stored latents: what a store holds, how it is read, and what a wrong one is answered."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import domains
from domains import store
from domains.codecs import VAECodec
from domains.domain import fingerprint_of
from domains.image_store import ImageEncoding, MomentStore, content_of
from domains.order import Draws, GlobalBatches
from runtime.errors import InputError

COUNT, SHARD = 50, 16  # three full shards and one of two images


@pytest.fixture(scope="module")
def encoding(tiny_vae):
    codec = VAECodec.load(tiny_vae).identity
    return ImageEncoding(codec, "folder", COUNT, 3, 16, (4, 8, 8), SHARD, "images")


@pytest.fixture(scope="module")
def content():
    """Moments (N, 2, 2C, h, w) and labels (N,) of all images."""
    random = torch.Generator().manual_seed(1)
    moments = torch.randn(COUNT, 2, 8, 8, 8, generator=random)
    moments[:, :, 4:] = moments[:, :, 4:].abs()
    return moments.half(), torch.arange(COUNT) % 3


@pytest.fixture
def folder(tmp_path, encoding, content):
    """A finished store that a test may damage."""
    moments, labels = content
    for shard in encoding.shards:
        part = slice(shard.start, shard.stop)
        store.write_shard(tmp_path, encoding, shard, content_of(moments[part], labels[part]))
    store.write_manifest(tmp_path, encoding)
    return tmp_path


def opened(folder, **flags):
    return domains.build("latents", data_path=str(folder), **flags)


def refused(folder, **flags):
    with pytest.raises(InputError) as error:
        opened(folder, **flags).train_set().__getitems__(Draws.plain([0]))
    return str(error.value)


def test_a_batch_is_what_was_stored_of_its_images_and_their_flips(folder, content):
    moments, labels = content
    random = np.random.default_rng(2)
    draws = Draws(random.integers(0, COUNT, 40), random.integers(0, 2**62, 40))
    batch = opened(folder).train_set().__getitems__(draws).checked()
    expected = moments[draws.index, draws.seed % 2]
    assert batch.raw.dtype == torch.float16 and batch.raw.equal(expected)
    assert batch.y.equal(labels[draws.index]) and batch.index.tolist() == draws.index.tolist()
    assert np.array_equal(batch.flipped, draws.flipped)
    assert 0 < draws.flipped.sum() < 40 and batch.problems == []
    plain = opened(folder).train_set(augment=False).__getitems__(draws)
    assert plain.raw.equal(moments[draws.index, 0])


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_number_of_ranks_reads_the_same_global_batches(folder, ranks):
    images = opened(folder).train_set()

    def joined(ranks):
        parts = [
            GlobalBatches(COUNT, 16, seed=0, start=2, stop=5, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        steps = zip(*parts, strict=True)
        return torch.cat([images.__getitems__(draws).raw for step in steps for draws in step])

    assert joined(ranks).equal(joined(1))


def test_shards_are_mapped_into_memory_not_read(folder):
    images = opened(folder).train_set()
    images.__getitems__(Draws.plain([0]))
    mapped = open("/proc/self/maps").read()
    assert all(str(path) in mapped for path in folder.glob("moments-*"))
    assert not images.decodes, "no worker processes for a gather from maps"


def test_an_input_is_the_draw_that_the_vae_itself_would_give(folder, content, tiny_vae):
    vae, codec = VAECodec.load(tiny_vae), opened(folder).codec
    moments, noise = content[0][:, 0], torch.randn(COUNT, 4, 8, 8)
    assert codec.uses_noise and codec.encode(moments) is moments
    x = codec.to_input(moments, noise)
    assert x.dtype == torch.float32 and x.equal(vae.to_input(moments.float(), noise))
    assert not codec.to_input(moments, torch.randn(COUNT, 4, 8, 8)).equal(x)
    assert codec.decode(x).equal(vae.decode(x))
    assert codec.identity == vae.identity


def test_float16_keeps_means_that_bfloat16_would_move_by_more_than_their_deviation():
    mean, std = 10.0 * torch.rand(1000), 0.01
    error = {
        dtype: (mean - mean.to(dtype).float()).abs().max() for dtype in (torch.half, torch.bfloat16)
    }
    assert error[torch.half] < std < error[torch.bfloat16]


def test_the_vae_is_opened_for_pictures_only(folder, encoding, content, tmp_path):
    """It may be gone: training goes on, and a picture is refused with one sentence."""
    gone = dataclasses.replace(encoding, codec=encoding.codec | {"name": "/gone"})
    moments, labels = content
    other = tmp_path / "other"
    for shard in gone.shards:
        part = slice(shard.start, shard.stop)
        store.write_shard(other, gone, shard, content_of(moments[part], labels[part]))
    store.write_manifest(other, gone)
    domain = opened(other)
    codec = domain.codec.to("cpu")
    assert domain.vae == "/gone"
    assert codec.to_input(moments[:, 0], torch.zeros(COUNT, 4, 8, 8)).isfinite().all()
    with pytest.raises(InputError, match="--vae /gone: no AutoencoderKL"):
        codec.decode(torch.zeros(1, 4, 8, 8))


def test_shape_size_classes_and_vae_come_from_the_manifest(folder, tiny_vae):
    domain = opened(folder)
    assert domain.shape == (4, 8, 8) and domain.raw_shape == (3, 16, 16)
    assert domain.num_classes == 3 and domain.vae == tiny_vae and domain.guided_channels == 3
    assert len(domain.train_set()) == COUNT
    assert opened(folder, image_size=16, num_classes=5, vae=tiny_vae).num_classes == 5
    free = opened(folder, num_classes=0).train_set().__getitems__(Draws.plain(range(5)))
    assert free.y.tolist() == [0] * 5


def test_a_store_is_recognized_under_the_name_of_its_data_set(folder):
    domain = domains.build("imagenet-1k", data_path=str(folder))
    assert domain.name == "imagenet-1k" and len(domain.train_set()) == COUNT
    with pytest.raises(InputError, match="leave out --data-path"):
        domains.build("digits", data_path=str(folder))


def test_a_model_trained_on_a_store_is_sampled_without_it(tiny_vae, folder):
    trained = opened(folder)
    flags = dict(image_size=16, num_classes=3, vae=trained.vae)
    domain = domains.build("latents", **flags)
    assert domain.shape == trained.shape and domain.codec.identity == trained.codec.identity
    with pytest.raises(InputError, match="give the folder that encode.py"):
        domain.train_set()


def test_the_usual_vae_is_recorded_by_its_short_name(folder):
    manifest = MomentStore(str(folder))
    manifest.identity = manifest.identity | {"name": "stabilityai/sd-vae-ft-ema"}
    for asked in (None, "ema", "stabilityai/sd-vae-ft-ema"):
        assert manifest.vae(asked, None) == "ema"


def test_stored_latents_have_no_held_out_part(folder):
    with pytest.raises(domains.NoHeldOut, match="no held-out"):
        opened(folder).held_out_set()


# What is wrong, in one sentence


def other_vae(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "other-vae")
    return str(tmp_path / "other-vae")


def test_flags_that_disagree_with_the_manifest_are_refused(folder, tmp_path):
    assert "--image-size 32, but --data-path" in refused(folder, image_size=32)
    assert "has 3 classes, but --num-classes is 2" in refused(folder, num_classes=2)
    assert "--num-classes -1" in refused(folder, num_classes=-1)
    assert "--vae none, but --data-path" in refused(folder, vae="none")
    assert "has another sha256 than" in refused(folder, vae=other_vae(tmp_path))


def test_a_vae_that_changed_in_its_folder_is_refused_when_it_decodes(folder, tmp_path):
    source = MomentStore(str(folder))
    with pytest.raises(InputError, match="has sha256 .*, but the VAE that made these latents had"):
        source.codec(other_vae(tmp_path), None).decode(torch.zeros(1, 4, 8, 8))


def test_a_truncated_shard_is_named(folder):
    path = sorted(folder.glob("moments-*"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    said = refused(folder)
    assert str(path) in said and "manifest.json says" in said and "run encode.py again" in said


def test_a_missing_shard_is_named(folder):
    path = sorted(folder.glob("moments-*"))[2]
    path.unlink()
    assert f"{path} is missing: run encode.py again" in refused(folder)


def test_two_shards_with_exchanged_names_are_refused(folder):
    one, other, *_ = sorted(folder.glob("moments-*"))
    one.rename(folder / "kept")
    other.rename(one)
    (folder / "kept").rename(other)
    assert f"{one} is {other.name}" in refused(folder)


def test_a_folder_without_manifest_is_not_finished(folder):
    (folder / "manifest.json").unlink()
    assert "is not finished: run encode.py again" in refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["encoding"]["codec"].update(scale=1.0), "disagree about the codec"),
        (lambda m: m["encoding"]["codec"].update(sha256="0"), "disagree about the codec"),
        (lambda m: m["encoding"].update(image_size=32), "disagree about the image_size"),
        (lambda m: m["encoding"].update(latent_shape=[4, 8, 4]), "disagree about the latent_shape"),
        (lambda m: m["encoding"].update(latent_shape="abc"), "is no manifest of latents"),
        (lambda m: m["encoding"].update(shard_size=10), "its shards do not fit its counts"),
        (lambda m: m["encoding"].update(shard_size=0), "1 or more"),
        (lambda m: m["encoding"].update(count=10**15), "its shards do not fit its counts"),
        (lambda m: m["encoding"].update(count=float("inf")), "is no manifest of latents"),
        (lambda m: m["encoding"].update(crop="random"), "another crop"),
        (lambda m: m["encoding"].pop("codec"), "is no manifest of latents"),
        (lambda m: m["shards"].reverse(), "its shards do not fit its counts"),
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), "do not fit its counts"),
        (lambda m: m.update(format="layersync latents 2"), "its format is 'layersync latents 2'"),
    ],
)
def test_a_manifest_that_lies_is_refused(folder, change, words):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert words in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 1}'])
def test_a_manifest_that_is_none_is_named(folder, text):
    (folder / "manifest.json").write_text(text)
    assert "manifest.json is no manifest of latents" in refused(folder)


def test_classes_beyond_the_manifest_are_refused(tmp_path, encoding, content):
    moments, labels = content
    for shard in encoding.shards:
        part = slice(shard.start, shard.stop)
        store.write_shard(tmp_path, encoding, shard, content_of(moments[part], labels[part] + 1))
    store.write_manifest(tmp_path, encoding)
    assert "class ids 1 to 3, but its manifest.json says 3 classes" in refused(tmp_path)


# Synthetic latents


def test_synthetic_latents_have_the_shape_and_size_of_imagenet_without_any_data():
    domain = domains.build("synthetic")
    assert domain.data_set is None, "they were made of nothing"
    assert fingerprint_of(domain.train_set()) == fingerprint_of(domain.train_set(augment=False))
    images = domain.train_set()
    assert domain.shape == (4, 32, 32) and domain.num_classes == 1000
    assert len(images) == 1_281_167 and not images.decodes
    batch = images.__getitems__(Draws.plain([0, 7, 7 + images.source.distinct, 1_281_166]))
    assert batch.raw.shape == (4, 8, 32, 32) and batch.raw.dtype == torch.float16
    assert batch.raw[1].equal(batch.raw[2]) and not batch.raw[0].equal(batch.raw[1])
    x = domain.codec.to_input(batch.raw, torch.randn(4, 4, 32, 32))
    assert 0.8 < x.std() < 1.2, "as Stable Diffusion's latents after their scale"
    assert domain.codec.decode(x).shape == (4, 3, 32, 32), "no VAE is needed to go through it all"
    again = domains.build("synthetic").train_set().__getitems__(Draws.plain([7]))
    assert again.raw[0].equal(batch.raw[1])


def test_synthetic_latents_come_in_every_size_of_the_vae():
    assert domains.build("synthetic", image_size=512).shape == (4, 64, 64)
    for flags, words in [
        (dict(image_size=100), "no multiple of 8"),
        (dict(vae="ema"), "leave out --vae"),
        (dict(data_path="x"), "leave out --data-path"),
        (dict(num_classes=10), "has 1000 classes"),
    ]:
        with pytest.raises(InputError, match=words):
            domains.build("synthetic", **flags).train_set()
