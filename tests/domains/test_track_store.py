"""Whole tracks encoded in chunks, and crops of what was stored; real mp3 files, a tiny Oobleck."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("av")

import domains
from domains import Draws
from domains.decoding import Unreadable
from domains.oobleck import OVERLAP, OobleckCodec, chunks
from domains.order import GlobalBatches
from domains.sound import whole
from runtime.errors import InputError
from tests.commands import succeed
from tests.domains.music import RATE, save_oobleck, tone, write_jamendo, write_mp3

HOP = 64
REACH = 9  # latents: how far the tiny encoder looks, 8.33, rounded up
SAMPLES = 8192  # of a crop
LENGTH = SAMPLES // HOP


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_oobleck(tmp_path_factory.mktemp("oobleck"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Tracks of several lengths."""
    root = write_jamendo(tmp_path_factory.mktemp("jamendo"), seconds=1.0)
    write_mp3(root / "audio/01/1001.mp3", tone(330, 0.3))
    write_mp3(root / "audio/05/1005.mp3", tone(880, 0.5))
    return root


@pytest.fixture(scope="module")
def encoded(root, vae, tmp_path_factory):
    """A finished store; tests that damage one make their own."""
    folder = tmp_path_factory.mktemp("encoded") / "store"
    succeed(
        "encode", "--dataset_name", "mtg-jamendo", "--data-path", root, "--vae", vae,
        "--out", folder, "--shard-size", 2, "--num-workers", 0, "--device", "cpu",
    )  # fmt: skip
    return folder


@pytest.fixture
def store(encoded, tmp_path):
    return shutil.copytree(encoded, tmp_path / "store")


def opened(folder, name="mtg-jamendo", **flags):
    flags = {"image_size": SAMPLES, **flags}
    return domains.build(name, data_path=str(folder), **flags)


def refused(folder, name="mtg-jamendo", **flags):
    with pytest.raises(InputError) as error:
        opened(folder, name, **flags).train_set()
    return str(error.value)


# Chunks


@pytest.mark.parametrize("length", [1, 31, 32, 33, 127, 128, 129, 160, 224, 225, 5000])
def test_chunks_keep_every_latent_once_and_half_of_each_overlap(length):
    found = list(chunks(length))
    assert [c.first for c in found] == [0, *(c.last for c in found[:-1])]
    assert found[-1].last == found[-1].stop == length
    for chunk in found:
        assert 0 <= chunk.start <= chunk.first < chunk.last <= chunk.stop <= chunk.start + 128
        assert chunk.first - chunk.start == (16 if chunk.start else 0)
        assert chunk.stop - chunk.last == (0 if chunk is found[-1] else 16)


class Double(OobleckCodec):
    """Without the rounding of float32, what is equal is equal."""

    @torch.no_grad()
    def encode(self, raw):
        posterior = self.vae.double().encode(raw.double() / 32768).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)


def test_a_track_in_chunks_is_the_track_in_one_piece(vae):
    """Everywhere, its ends and the seams too, as soon as half the overlap is what the encoder sees
    on one side; one latent less, and the seams show."""
    random = np.random.RandomState(0)
    sound = torch.from_numpy(random.randint(-9000, 9000, (2, 500 * HOP + 37)).astype(np.int16))
    exact = Double(OobleckCodec.load(vae).vae, vae)
    in_one_piece = exact.encode(sound[None])[0]
    for overlap, low, high in [
        (2 * REACH - 2, 1e-10, 1e-6), (2 * REACH, 0, 1e-13), (OVERLAP, 0, 1e-13),
    ]:  # fmt: skip
        found = exact.encode_track(sound, overlap=overlap)
        assert found.shape == (8, 500)
        assert low <= (found - in_one_piece).abs().max() <= high
    usual = OobleckCodec.load(vae)
    in_one_piece = usual.encode(sound[None])[0]
    torch.testing.assert_close(usual.encode_track(sound), in_one_piece, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("ratios", "reach"), [([2, 4, 8], REACH), ([2, 4, 4, 8, 8], 8)], ids=["tiny", "Stable Audio's"]
)
def test_half_the_overlap_is_more_than_the_encoder_sees(ratios, reach):
    """The receptive field is a matter of kernels and strides, not of widths."""
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckEncoder

    encoder = OobleckEncoder(4, 2, ratios, [1] * len(ratios)).double()
    hop, middle = int(np.prod(ratios)), reach
    sound = torch.randn(1, 2, (2 * reach + 1) * hop, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(sound)[0, :, middle].sum(), sound)
    seen = gradient[0].abs().sum(0).nonzero().flatten()
    before, after = middle * hop - seen.min(), seen.max() + 1 - (middle + 1) * hop
    assert (reach - 1) * hop < min(before, after) and max(before, after) < reach * hop
    assert reach <= OVERLAP // 2


# What is stored


def test_a_store_holds_every_track_whole_with_its_labels(encoded, root, vae):
    online = domains.build("mtg-jamendo", data_path=str(root), vae=vae, image_size=SAMPLES)
    stored = opened(encoded)
    codec = OobleckCodec.load(vae)
    for held_out in (False, True):
        files, tracks = (d.source.tracks(held_out=held_out) for d in (online, stored))
        assert tracks.labels.tolist() == files.labels.tolist()
        assert tracks.vocabulary == files.vocabulary and len(tracks) == len(files)
        for index in range(len(files)):
            assert tracks.path(index) == files.paths[index].decode()
            sound = torch.from_numpy(files.whole(index))
            expected = codec.encode(sound[None])[0]
            length = stored.source.lengths[tracks.numbers[index]]
            assert length == sound.shape[1] // HOP == expected.shape[1]
            found = tracks.crop(index, 0.0, length * HOP)
            assert found.dtype == np.float16
            torch.testing.assert_close(
                torch.from_numpy(found).float(), expected, rtol=1e-3, atol=1e-4
            )
    assert stored.num_classes == 4 and stored.multi_label and stored.vae == vae
    assert stored.shape == online.shape and stored.raw_shape == online.raw_shape


def test_a_stored_crop_is_the_encoded_crop_away_from_its_edges(encoded, root, vae):
    domain, codec = opened(encoded), OobleckCodec.load(vae)
    sound = torch.from_numpy(whole(root / "audio/00/1000.mp3", RATE))
    length = sound.shape[1] // HOP
    first = int(0.5 * (length - LENGTH + 1))
    stored = torch.from_numpy(domain.train_tracks.crop(0, 0.5, SAMPLES)).float()
    crop = codec.encode(sound[None, :, first * HOP : first * HOP + SAMPLES])[0]
    error = (stored - crop).abs().amax(0)
    assert error[REACH:-REACH].max() < 1e-3 < min(error[0], error[-1])


def test_crops_begin_anywhere_that_they_fit(encoded):
    tracks = opened(encoded).train_tracks
    everything = tracks.crop(0, 0.0, tracks.store.lengths[0] * HOP)
    last = everything.shape[1] - LENGTH
    for place, first in ((0.0, 0), (0.5, (last + 1) // 2), (1 - 2**-24, last)):
        crop = tracks.crop(0, place, SAMPLES)
        assert np.array_equal(crop, everything[:, first : first + LENGTH])


def test_draws_decide_the_crop_and_the_labels_are_those_of_the_track(encoded):
    images = opened(encoded).train_set()
    same, other = (Draws(np.array([0, 2]), np.array(seeds)) for seeds in ((5, 6), (7, 6)))
    one, again, third = (images.__getitems__(draws).checked() for draws in (same, same, other))
    assert one.raw.equal(again.raw) and not one.raw[0].equal(third.raw[0])
    assert one.raw[1].equal(third.raw[1])
    assert one.raw.shape == (2, 8, LENGTH) and one.raw.dtype == torch.float16
    assert one.y.tolist() == [[0, 1, 0, 1], [1, 0, 0, 0]] and not images.decodes
    free = opened(encoded, num_classes=0).train_set().__getitems__(same)
    assert free.y.tolist() == [0, 0]


def test_two_processes_read_the_batches_of_one(encoded):
    images = opened(encoded).train_set()

    def joined(ranks):
        parts = [
            GlobalBatches(3, 2, seed=0, start=1, stop=4, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        steps = zip(*parts, strict=True)
        return torch.cat([images.__getitems__(draws).raw for step in steps for draws in step])

    assert joined(2).equal(joined(1))


def test_a_sample_gets_the_labels_of_a_stored_track_that_is_held_out(encoded, root, vae):
    domain = opened(encoded)
    rows = domain.condition(torch.arange(domain.choices))["y"]
    held_out = domain.source.tracks(held_out=True)
    assert rows.tolist() == held_out.labels.astype(float).tolist() and len(rows) == 2
    files = domains.build("mtg-jamendo", data_path=str(root), vae=vae, image_size=SAMPLES)
    assert domain.conditions == files.conditions


def test_a_data_set_may_be_trained_on_all_tracks(root, vae, tmp_path):
    """The paper's "over 55,000 songs" are all of MTG-Jamendo's."""
    name, folder = "mtg-jamendo-all", tmp_path / "store"
    files = domains.build(name, data_path=str(root), vae=vae, image_size=SAMPLES)
    assert len(files.train_set()) == files.choices == 5
    assert files.num_classes == 4 and files.shape == (4, SAMPLES // HOP)
    words = ["--dataset_name", name, "--data-path", root, "--vae", vae, "--out", folder]
    succeed("encode", *words, "--num-workers", 0, "--device", "cpu")
    stored = opened(folder, name)
    assert len(stored.train_set()) == 5 and stored.conditions == files.conditions
    with pytest.raises(domains.NoHeldOut, match="tracks of all parts are trained on"):
        files.held_out_set()
    with pytest.raises(domains.NoHeldOut, match="has no held-out track"):
        stored.held_out_set()


def test_the_manifest_says_what_there_is_for_people(encoded):
    manifest = json.loads((encoded / "manifest.json").read_text())
    shards = manifest["shards"]
    assert [path for shard in shards for path in shard["paths"]] == [
        "00/1000.mp3", "01/1001.mp3", "03/1003.mp3", "04/1004.mp3", "05/1005.mp3",
    ]  # fmt: skip
    encoding = manifest["encoding"]
    assert (encoding["count"], encoding["held_out"]) == (5, 2)
    assert encoding["form"] == [2, 4, HOP, RATE]
    assert encoding["vocabulary"][0] == "genre---jazz" and manifest["left_out"] == []


def test_mean_and_deviation_are_those_of_what_a_model_is_given(encoded):
    manifest = json.loads((encoded / "manifest.json").read_text())
    domain = opened(encoded)
    moments = np.concatenate([shard["moments"] for shard in domain.source.manifest.shards])
    stored = torch.from_numpy(moments).T[None]
    random = torch.Generator().manual_seed(0)
    x = domain.codec.to_input(stored, torch.randn(1, 4, len(moments), generator=random))
    assert manifest["mean"] == pytest.approx(x.mean().item(), abs=0.02)
    assert manifest["deviation"] == pytest.approx(x.std().item(), rel=0.02)


# What is wrong, in one sentence


def test_flags_that_disagree_with_a_store_are_refused(encoded, tmp_path):
    assert "holds tracks of mtg-jamendo: give --dataset_name" in refused(encoded, "imagenet-1k")
    assert "has 4 labels, not --num-classes 3" in refused(encoded, num_classes=3)
    assert "a crop is 64 samples or more" in refused(encoded, image_size=63)
    assert "--vae none, but --data-path" in refused(encoded, vae="none")
    other = save_oobleck(tmp_path / "other", seed=1)
    assert "has another sha256 than" in refused(encoded, vae=other)


def test_tracks_shorter_than_the_crop_are_counted_before_training(encoded):
    said = refused(encoded, image_size=RATE // 2)
    assert "1 of 3 tracks are shorter than a crop of 0.5 s, 01/1001.mp3 of 0.3 s the first" in said
    size = int(said.split("--image-size ")[1].split()[0])
    assert len(opened(encoded, image_size=size).train_set()) == 3
    assert "1 of 3" in refused(encoded, image_size=size + HOP)


def test_another_vae_in_the_folder_of_the_first_is_refused_when_it_decodes(encoded, vae, tmp_path):
    source = opened(encoded).source
    source.vae = save_oobleck(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="has sha256 .*, but the VAE that made these latents had"):
        source.codec.decode(torch.zeros(1, 4, 8))
    source = opened(encoded).source
    source.vae = str(tmp_path / "gone")
    with pytest.raises(InputError, match="gone: no AutoencoderOobleck"):
        source.codec.decode(torch.zeros(1, 4, 8))
    source = opened(encoded).source
    assert source.codec.decode(torch.zeros(1, 4, 8)).shape == (1, 2, 8 * HOP)


def test_a_truncated_or_missing_shard_is_named(store):
    path = sorted(store.glob("tracks-*"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in (said := refused(store)) and "run encode.py again" in said
    path.unlink()
    assert f"{path} is missing: run encode.py again" in refused(store)
    (store / "manifest.json").unlink()
    assert "is not finished: run encode.py again" in refused(store)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["encoding"]["codec"].update(sha256="0"), "disagree about the codec"),
        (lambda m: m["encoding"].update(vocabulary=[]), "disagree about the vocabulary"),
        (lambda m: m["encoding"].update(held_out=5), "some of the samples are to train on"),
        (lambda m: m["encoding"].update(form=[2, 4, 0, RATE]), "hop is 0"),
        (lambda m: m["encoding"].update(form=[2, 4, 64]), "is no manifest of latents"),
        (lambda m: m["encoding"].update(count=3), "its shards do not fit its counts"),
        (lambda m: m["shards"][0].update(latents=1), "disagree about its content"),
        (lambda m: m["shards"][0].update(paths=[]), "disagree about its content"),
        (lambda m: m["shards"][0].pop("sum"), "is no manifest of latents"),
        (lambda m: m.update(format="layersync latents 1"), "not 'layersync tracks 1'"),
    ],
)
def test_a_manifest_that_lies_is_refused(store, change, words):
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert words in refused(store)


def test_a_file_that_ends_too_early_is_unreadable(tmp_path):
    path = tmp_path / "x.mp3"
    write_mp3(path, tone(440, 3.0))
    assert abs(whole(path, RATE).shape[1] / RATE - 3) < 0.1
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Unreadable, match="x.mp3 ends after 1.5 s of 3.0 s"):
        whole(path, RATE)
