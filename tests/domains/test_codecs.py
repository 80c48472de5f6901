"""Codecs: pixels, and a small but real AutoencoderKL."""

import json
import shutil
import sys
import time

import pytest
import torch

import domains
from domains.codecs import PixelCodec, VAECodec, fingerprint, hub_id, latent_shape
from runtime.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved AutoencoderKL: 3 channels down to 4, half the size, scale 0.5, shift 0.25."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16,
        scaling_factor=0.5, shift_factor=0.25,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(path)
    return str(path)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def codec(folder):
    return VAECodec.load(folder)


def pictures(count, size=16):
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)


def test_pixels_survive_the_round_trip_for_every_value():
    codec, raw = PixelCodec(), torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = codec.to_input(codec.encode(raw), noise=None)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    assert codec.decode(x).equal(raw)
    assert codec.to("cpu").identity == {"name": "pixels"}


def test_decoded_values_are_clamped_and_truncated_as_in_sit():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.0117, 1.0, 3.0])
    expected = [0, 0, 128, 129, 255, 255]  # 127.5 x + 128 = ..., 0.5, 128, 129.49, 255.5, ...
    assert PixelCodec().decode(x.view(1, 1, 1, 6)).flatten().tolist() == expected


def test_stored_moments_are_mean_beside_standard_deviation(codec):
    raw = pictures(3)
    stored = codec.encode(raw)
    posterior = codec.vae.encode(raw.float() / 127.5 - 1).latent_dist
    assert stored.shape == (3, 8, 8, 8) and stored.dtype == torch.float32
    torch.testing.assert_close(stored, torch.cat([posterior.mean, posterior.std], 1))


def test_the_input_is_the_shifted_scaled_posterior_draw_of_the_callers_noise(codec):
    stored = codec.encode(pictures(2))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    x = codec.to_input(stored, noise)
    assert torch.get_rng_state().equal(state)
    torch.testing.assert_close(x, (stored[:, :4] + stored[:, 4:] * noise - 0.25) * 0.5)
    assert not x.requires_grad and codec.to_input(stored, noise).equal(x)


def test_without_noise_the_input_is_the_mean(codec):
    raw = pictures(2)
    mean = codec.vae.encode(raw.float() / 127.5 - 1).latent_dist.mean
    x = codec.to_input(codec.encode(raw), torch.zeros(2, 4, 8, 8))
    torch.testing.assert_close(x, (mean - 0.25) * 0.5)


def test_decoding_undoes_scale_and_shift(codec):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    image = codec.vae.decode(z).sample
    expected = (127.5 * image + 128).clamp(0, 255).to(torch.uint8)
    ours = codec.decode((z - 0.25) * 0.5)
    assert ours.shape == (2, 3, 16, 16) and ours.dtype == torch.uint8
    assert (ours.int() - expected.int()).abs().max() <= 1


def test_chunks_give_what_the_whole_batch_gives(codec, monkeypatch):
    raw, x = pictures(5), torch.randn(5, 4, 8, 8)
    stored, images = codec.encode(raw), codec.decode(x)
    monkeypatch.setattr(VAECodec, "chunk", 2)
    torch.testing.assert_close(codec.encode(raw), stored)
    assert (codec.decode(x).int() - images.int()).abs().max() <= 1


def test_latents_are_made_in_float32_and_decoded_in_the_callers_arithmetic(codec):
    raw, x = pictures(2), torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        stored, images = codec.encode(raw), codec.decode(x)
        latents = codec.to_input(stored, x)
    assert stored.dtype == latents.dtype == torch.float32
    assert stored.equal(codec.encode(raw))
    difference = (images.int() - codec.decode(x).int()).abs()
    assert 0 < difference.max() <= 8  # bfloat16 has 8 bits


def test_training_can_differentiate_through_what_the_codec_gives(codec):
    x = codec.to_input(codec.encode(pictures(1)), torch.zeros(1, 4, 8, 8))
    weight = torch.ones(1, requires_grad=True)
    (x * weight).square().sum().backward()
    assert weight.grad is not None


def test_shapes_of_a_local_vae_come_from_its_config_alone(copy):
    for weights in copy.glob("*.safetensors"):
        weights.unlink()
    domain = domains.build("imagenet-1k", image_size=32, vae=str(copy))
    assert domain.shape == (4, 16, 16) and domain.guided_channels == 3
    with pytest.raises(InputError, match="no multiple of 2"):
        domains.build("imagenet-1k", image_size=33, vae=str(copy))


def test_the_domain_opens_its_vae_when_it_is_first_used(folder):
    domain = domains.build("imagenet-1k", image_size=16, vae=folder)
    assert domain.codec is domain.codec and domain.codec.name == folder
    stored = domain.codec.encode(pictures(1))
    assert domain.codec.to_input(stored, torch.zeros(1, *domain.shape)).shape[1:] == domain.shape


def test_the_identity_is_plain_data_and_changes_with_any_weight(folder):
    one, other = VAECodec.load(folder), VAECodec.load(folder)
    next(other.vae.parameters()).view(-1)[0] += 1
    assert json.loads(json.dumps(one.identity)) == one.identity
    assert (one.identity["scale"], one.identity["shift"]) == (0.5, 0.25)
    assert one.identity["sha256"] == VAECodec.load(folder).identity["sha256"]
    assert one.identity["sha256"] != other.identity["sha256"]


def test_fingerprints_tell_names_shapes_and_types_apart():
    states = [
        {"a": torch.zeros(4)}, {"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(8, dtype=torch.bfloat16)}, {"a": torch.tensor(0.0)}, {},
    ]  # fmt: skip
    assert len({fingerprint(state) for state in states}) == len(states)


def test_a_folder_without_a_vae_is_refused_by_name(tmp_path):
    for call in (VAECodec.load, lambda name: latent_shape(name, 16)):
        with pytest.raises(InputError) as error:
            call(str(tmp_path))
        assert f"--vae {tmp_path}" in str(error.value)
        assert "save_pretrained" in str(error.value)


def test_damaged_weights_are_refused_by_name(copy):
    weights = copy / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"junk" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=f"--vae {copy}"):
            VAECodec.load(str(copy))


def test_pickled_weights_are_not_opened(copy):
    (copy / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, copy / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        VAECodec.load(str(copy))


def test_incomplete_weights_are_refused_instead_of_filled_at_random(copy):
    from safetensors.torch import load_file, save_file

    weights = copy / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state.pop("decoder.conv_out.weight")
    save_file(state, weights)
    with pytest.raises(InputError, match="no tensor decoder.conv_out.weight"):
        VAECodec.load(str(copy))


def test_a_config_of_something_else_is_refused(copy):
    (copy / "config.json").write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(InputError, match="not that of an AutoencoderKL \\('latent_channels'"):
        latent_shape(str(copy), 16)
    (copy / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not that of an AutoencoderKL"):
        latent_shape(str(copy), 16)
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=f"--vae {copy}"):
        latent_shape(str(copy), 16)


def test_a_folder_that_happens_to_be_called_ema_is_not_the_vae(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "ema")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="stabilityai/sd-vae-ft-ema"):
        VAECodec.load("ema", str(tmp_path / "empty"))
    assert VAECodec.load("./ema").scale == 0.5


def test_without_diffusers_the_sentence_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for call in (lambda: VAECodec.load(folder), lambda: latent_shape("owner/vae", 16)):
        with pytest.raises(InputError, match=r"needs diffusers .*\[vae\].*--vae none") as error:
            call()
        assert "--vae" in str(error.value) and "HF_HOME" not in str(error.value)


@pytest.mark.parametrize("offline", [True, False])
def test_an_absent_vae_is_refused_within_seconds(tmp_path, monkeypatch, offline):
    """Offline by HF_HUB_OFFLINE, and by an address where nobody answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    domain = domains.build("imagenet-1k", cache_dir="my-cache")
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        _ = domain.codec
    assert time.monotonic() - start < 8
    for words in ("--vae ema", "stabilityai/sd-vae-ft-ema", "my-cache", str(tmp_path), "HF_HOME"):
        assert words in str(error.value)


def test_a_vae_in_the_hugging_face_cache_is_found_offline(folder, tmp_path):
    """Laid out as the hub's client lays it out: a snapshot folder and a reference to it."""
    repository = tmp_path / f"models--{hub_id('ema').replace('/', '--')}"
    commit = "a" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert VAECodec.load("ema", str(tmp_path)).name == "stabilityai/sd-vae-ft-ema"
