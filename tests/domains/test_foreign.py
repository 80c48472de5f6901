"""Latents of other projects are read where they lie, and nothing in them is trusted."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import domains
from domains.codecs import first_difference
from domains.order import Draws
from runtime.errors import InputError, LocalError

# REPA


@pytest.fixture
def repa(tmp_path):
    """As its dataset_tools.py leaves them: images beside vae-sd, a file per image."""
    random = np.random.RandomState(0)
    folder, labels = tmp_path / "vae-sd", []
    moments = random.randn(6, 8, 4, 4).astype(np.float32)
    moments[:, 4:] = np.abs(moments[:, 4:])
    for number, array in enumerate(moments):
        name = f"{number // 4:05d}/img-mean-std-{number:08d}.npy"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array)
        labels.append([name, number % 3])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels[::-1]}))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "dataset.json").write_text('{"labels": [["00000/img00000000.png", 0]]}')
    return tmp_path, moments


def build(folder, name="latents", **flags):
    return domains.build(name, data_path=str(folder), **flags)


def all_of(domain, seed=0):
    images = domain.train_set()
    index = np.arange(len(images))
    return images.__getitems__(Draws(index, np.full_like(index, seed))).checked()


@pytest.mark.parametrize("inner", ["", "vae-sd"])
def test_repas_folder_is_read_in_its_own_order(repa, inner):
    folder, moments = repa
    domain = build(folder / inner)
    batch = all_of(domain)
    assert np.array_equal(batch.raw, moments) and batch.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert domain.shape == (4, 4, 4) and domain.raw_shape == (3, 32, 32)
    assert domain.num_classes == 3 and domain.vae == "mse" and domain.train_set().decodes


def test_repa_trains_without_mirror_images(repa):
    """And says so: features of a mirror image would be no features of these latents."""
    folder, moments = repa
    batch = all_of(build(folder), seed=1)
    assert np.array_equal(batch.raw, moments) and not batch.flipped.any()


def test_repas_moments_become_inputs_as_in_its_sample_posterior(repa):
    folder, moments = repa
    noise = torch.randn(6, 4, 4, 4)
    x = build(folder).codec.to_input(torch.from_numpy(moments), noise)
    mean, std = torch.from_numpy(moments).chunk(2, dim=1)
    torch.testing.assert_close(x, (mean + std * noise) * 0.18215)


def test_a_list_of_images_is_not_taken_for_latents(repa):
    folder, _ = repa
    with pytest.raises(InputError, match="has no class subfolders|has no images"):
        build(folder / "images", "folder", vae="none").train_set()


def damage_text(path):
    path.write_bytes(b"text")


def damage_pickle(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def damage_shape(path):
    np.save(path, np.zeros((8, 4, 5), np.float32))


def damage_length(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_type(path):
    np.save(path, np.ones((8, 4, 4), np.int64))


def damage_number(path):
    np.save(path, np.full((8, 4, 4), np.nan, np.float32))


def damage_deviation(path):
    np.save(path, np.full((8, 4, 4), -1, np.float32))


def remove(path):
    path.unlink()


DAMAGES = [
    damage_text, damage_pickle, damage_shape, damage_length, damage_type, damage_number,
    damage_deviation, remove,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("number", [0, 5])
def test_a_damaged_file_of_repas_is_named(repa, damage, number):
    folder, _ = repa
    path = folder / "vae-sd" / f"{number // 4:05d}" / f"img-mean-std-{number:08d}.npy"
    damage(path)
    with pytest.raises((InputError, LocalError), match="img-mean-std"):
        all_of(build(folder))


@pytest.mark.parametrize(
    "labels",
    [
        "null",
        "[]",
        '[["a.npy", 1.5]]',
        '[["a.npy", 99999999999999999999]]',
        '[["a.npy", 0], ["a.npy", 1]]',
        '[["../secret.npy", 0]]',
        '[["/etc/x.npy", 0]]',
        '[["a.npy", -1]]',
        '["a.npy"]',
    ],
)
def test_labels_that_are_none_of_repas_are_refused(repa, labels):
    folder, _ = repa
    path = folder / "vae-sd" / "dataset.json"
    path.write_text(f'{{"labels": {labels}, "note": ".npy"}}')
    with pytest.raises(InputError, match="dataset.json"):
        build(folder)


# LightningDiT


MEAN, STD = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 4.0])


@pytest.fixture
def lightning(tmp_path):
    """As its extract_features.py leaves them: shards of any lengths and channel statistics."""
    torch.manual_seed(0)
    parts = []
    for name, count in (("latents_rank00_shard000", 4), ("latents_rank01_shard000", 3)):
        shard = {
            "latents": torch.randn(count, 3, 2, 2), "latents_flip": torch.randn(count, 3, 2, 2),
            "labels": torch.arange(count),
        }  # fmt: skip
        save_file(shard, tmp_path / f"{name}.safetensors")
        parts.append(shard)
    statistics = {"mean": MEAN.view(1, 3, 1, 1), "std": STD.view(1, 3, 1, 1)}
    torch.save(statistics, tmp_path / "latents_stats.pt")
    return tmp_path, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(("seed", "array"), [(0, "latents"), (1, "latents_flip")])
def test_lightningdits_shards_are_read_as_one_with_both_flips(lightning, seed, array):
    folder, content = lightning
    domain = build(folder, "lightningdit")
    batch = all_of(domain, seed)
    assert batch.raw.equal(content[array]) and batch.y.equal(content["labels"])
    assert batch.flipped.tolist() == [bool(seed)] * 7
    assert domain.shape == (3, 2, 2) and domain.raw_shape == (3, 32, 32)
    assert domain.num_classes == 4 and domain.guided_channels is None


def test_lightningdits_latents_are_normalized_by_channel_not_drawn(lightning):
    folder, content = lightning
    codec = build(folder, "lightningdit").codec.to("cpu")
    x = codec.to_input(content["latents"], None)
    expected = (content["latents"] - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    torch.testing.assert_close(x, expected)
    assert not codec.uses_noise


def test_lightningdits_samples_decode_by_the_vae_that_is_named(lightning, tiny_vae, tmp_path):
    from domains.codecs import VAECodec

    folder, _ = lightning
    with pytest.raises(InputError, match="do not say which VAE made them: give --vae"):
        build(folder, "lightningdit").codec.decode(torch.zeros(1, 3, 2, 2))
    statistics = {"mean": torch.zeros(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 3.0)}
    wide = {"latents": torch.zeros(2, 4, 2, 2), "latents_flip": torch.zeros(2, 4, 2, 2)}
    other = tmp_path / "other"
    other.mkdir()
    save_file(wide | {"labels": torch.zeros(2, dtype=torch.int64)}, other / "a.safetensors")
    torch.save(statistics, other / "latents_stats.pt")
    x = torch.randn(1, 4, 2, 2)
    shown = build(other, "lightningdit", vae=tiny_vae).codec.decode(x)
    assert shown.equal(VAECodec.load(tiny_vae).pictures(3 * x))


def test_lightningdits_folder_is_needed_by_name_because_sampling_needs_it_too(lightning):
    folder, _ = lightning
    with pytest.raises(InputError, match="use --dataset_name lightningdit"):
        build(folder, "imagenet-1k")
    with pytest.raises(InputError, match="needs --data-path"):
        domains.build("lightningdit", vae="ema")


def test_statistics_that_are_code_are_not_run(lightning):
    folder, _ = lightning

    class Evil:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    for content in (pickle.dumps(Evil()), b"", b"text", pickle.dumps({"mean": 1})):
        (folder / "latents_stats.pt").write_bytes(content)
        with pytest.raises(InputError, match="latents_stats.pt"):
            build(folder, "lightningdit")
    torch.save(Evil(), folder / "latents_stats.pt")
    with pytest.raises(InputError, match="latents_stats.pt"):
        build(folder, "lightningdit")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "statistics",
    [
        {"mean": MEAN, "std": torch.zeros(3)},
        {"mean": MEAN * float("nan"), "std": STD},
        {"mean": MEAN[:2], "std": STD[:2]},
        {"mean": MEAN},
        [1],
    ],
)
def test_statistics_that_cannot_normalize_are_refused(lightning, statistics):
    folder, _ = lightning
    torch.save(statistics, folder / "latents_stats.pt")
    with pytest.raises(InputError, match="latents_stats.pt"):
        build(folder, "lightningdit")


@pytest.mark.parametrize(
    "change",
    [
        dict(latents_flip=torch.zeros(3, 3, 2, 1)),
        dict(latents=torch.zeros(3, 3, 1, 2), latents_flip=torch.zeros(3, 3, 1, 2)),
        dict(labels=torch.zeros(2, dtype=torch.int64)),
        dict(labels=torch.zeros(3)),
        dict(latents=torch.zeros(3, 3, 2, 2, dtype=torch.int8)),
        dict(latents=torch.zeros(3, 3, 2, 2, dtype=torch.float16)),
        dict(
            latents=torch.zeros(0, 3, 2, 2),
            latents_flip=torch.zeros(0, 3, 2, 2),
            labels=torch.zeros(0, dtype=torch.int64),
        ),
        dict(latents=torch.zeros(3, 3, 2, 2, dtype=torch.bfloat16)),
    ],
)
def test_a_wrong_shard_of_lightningdits_is_named(lightning, change):
    folder, content = lightning
    last = {name: tensor[4:].clone() for name, tensor in content.items()}
    save_file(last | change, folder / "latents_rank01_shard000.safetensors")
    with pytest.raises(InputError, match="latents_rank01_shard000.safetensors is no shard"):
        build(folder, "lightningdit")


def test_latents_of_lightningdits_that_are_not_finite_are_named_when_they_are_drawn(lightning):
    folder, content = lightning
    last = {name: tensor[4:].clone() for name, tensor in content.items()}
    last["latents"][1] = float("inf")
    save_file(last, folder / "latents_rank01_shard000.safetensors")
    with pytest.raises(LocalError, match="latents 5 .* not finite"):
        all_of(build(folder, "lightningdit"))


def test_a_run_does_not_go_on_with_another_normalization(lightning):
    folder, _ = lightning
    before = build(folder, "lightningdit").codec.identity
    torch.save({"mean": MEAN + 1, "std": STD}, folder / "latents_stats.pt")
    after = build(folder, "lightningdit").codec.identity
    assert first_difference(before, after) == "mean" and first_difference(before, before) is None


def test_a_truncated_shard_of_lightningdits_is_named(lightning):
    folder, _ = lightning
    path = folder / "latents_rank01_shard000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="latents_rank01_shard000.safetensors is no shard"):
        build(folder, "lightningdit")
