"""How raw images become model inputs and back: pixels, or the latents of an AutoencoderKL.

A codec has three verbs: raw -> stored, stored -> model input, model output -> raw."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime import hub
from runtime.errors import InputError
from runtime.untrusted import json_of, shown

PIXELS = "none"  # --vae none
MOST_CHANNELS = 4096  # of latents
VAES = {  # name -> hub id, latent channels, downsampling
    "ema": ("stabilityai/sd-vae-ft-ema", 4, 8),
    "mse": ("stabilityai/sd-vae-ft-mse", 4, 8),
}


class Codec(Protocol):
    identity: dict  # plain data for the protocol JSON
    uses_noise: bool  # whether `to_input` is a draw

    def encode(self, raw: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> what a cache would store."""

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        """Stored -> model input x, float32; noise has x's shape and comes from the caller, who may
        leave it out where the codec does not use it."""

    def decode(self, x: Tensor) -> Tensor:
        """Model output -> uint8 (B, C, H, W)."""

    def to(self, device: torch.device | str) -> "Codec": ...


def to_float(raw: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return raw.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """-1..1 -> 0..255 by SiT's rule: 127.5 x + 128, clamped, truncated."""
    return (127.5 * x.float() + 128).clamp(0, 255).to(torch.uint8)


class PixelCodec:
    """The model sees the pixels themselves; the noise of `to_input` is not used."""

    identity = {"name": "pixels"}
    uses_noise = False

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return to_float(stored)

    def decode(self, x: Tensor) -> Tensor:
        return to_uint8(x)

    def to(self, device: torch.device | str) -> "PixelCodec":
        return self


class VAECodec:
    """Latents of a Stable Diffusion VAE; stored are its moments, mean beside std (B, 2C, h, w).

    `to_input` is a draw from the posterior, (mean + std noise - shift) scale, with the caller's
    noise, so that training is a function of its seeds and not of the VAE's generator.
    """

    uses_noise = True
    chunk = 8  # images the VAE works on at once; more only costs memory

    def __init__(self, vae, name: str) -> None:
        self.vae, self.name = vae.eval().requires_grad_(False), name
        self.scale = vae.config.scaling_factor
        self.shift = getattr(vae.config, "shift_factor", None) or 0.0

    @classmethod
    def load(cls, name: str, cache_dir: str | None = None) -> "VAECodec":
        """Open "ema", "mse", a hub id or a local folder (its safetensors; nothing is unpickled).

        Looked up in `cache_dir`, then in Hugging Face's own cache, then on the hub.

        Raises:
            InputError: not to be had here, not an AutoencoderKL, or incomplete.
        """
        autoencoder = autoencoder_class(name)
        vae = whole_vae(autoencoder, name, cache_dir, partial(absent, name, cache_dir))
        return cls(vae, hub_id(name))

    @cached_property
    def identity(self) -> dict:
        weights = fingerprint(self.vae.state_dict())
        return {"name": self.name, "scale": self.scale, "shift": self.shift, "sha256": weights}

    @torch.no_grad()
    def encode(self, raw: Tensor) -> Tensor:
        parts = []
        # In float32 (its products in TF32 under --precision tf32), also under bf16 autocast:
        # latents are made once, and trained on for weeks.
        with torch.autocast(self.vae.device.type, enabled=False):
            for part in raw.to(self.vae.device).split(self.chunk):
                posterior = self.vae.encode(to_float(part)).latent_dist
                parts.append(torch.cat([posterior.mean, posterior.std], dim=1))
        return torch.cat(parts)

    def to_input(self, stored: Tensor, noise: Tensor) -> Tensor:
        return (posterior_draw(stored, noise) - self.shift) * self.scale

    def decode(self, x: Tensor) -> Tensor:
        return self.pictures(x.float() / self.scale + self.shift)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """The VAE's own latents (B, C, h, w), without scale and shift -> uint8 (B, 3, H, W).

        Decodes in the caller's arithmetic: under sample_ddp.py --bf16 in bfloat16."""
        parts = latents.to(self.vae.device, torch.float32).split(self.chunk)
        return torch.cat([to_uint8(self.vae.decode(z).sample) for z in parts])

    def to(self, device: torch.device | str) -> "VAECodec":
        self.vae.to(device)
        return self


def first_difference(one: dict, other: dict) -> str | None:
    """The first thing that makes the latents of two codecs unlike, by their identities.

    Not the name, for a folder may have moved; nor what one of them does not say.
    """
    shared = (key for key in one if key != "name" and key in other)
    return next((key for key in shared if one[key] != other[key]), None)


def posterior_draw(moments: Tensor, noise: Tensor) -> Tensor:
    """Mean beside std (B, 2C, h, w) and standard normal noise (B, C, h, w) -> float32 latents."""
    mean, std = moments.float().chunk(2, dim=1)
    return mean + std * noise


def latent_shape(name: str, image_size: int, cache_dir: str | None = None) -> tuple[int, ...]:
    """The model's input (C, h, w) for `image_size`, from the VAE's config; loads no weights."""
    if name in VAES:
        _, channels, down = VAES[name]
    else:
        config = read_config(name, cache_dir)
        try:
            channels, down = config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
            if type(channels) is not int or not 0 < channels <= MOST_CHANNELS or down > image_size:
                raise ValueError(f"{shown(channels)} channels, downsampled by {shown(down)}")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--vae {name}: its config.json is not that of an AutoencoderKL ({error})"
            ) from error
    if image_size % down:
        raise InputError(
            f"--image-size {image_size} is no multiple of {down}, by which --vae {name} downsamples"
        )
    return (channels, image_size // down, image_size // down)


def fingerprint(state: dict[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and bytes of a state dict, in sorted order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def hub_id(name: str) -> str:
    return VAES[name][0] if name in VAES else name


def short_name(name: str) -> str:
    """The inverse of `hub_id`: "ema" and "mse" by the names that --vae knows without a look-up."""
    return next((short for short in VAES if hub_id(short) == name), name)


def is_path(name: str) -> bool:
    return name not in VAES and hub.is_folder(name)


def autoencoder_class(name: str):
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise InputError(
            f"--vae {name} needs diffusers ({error}): pip install '.[vae]', or use --vae {PIXELS}"
        ) from error
    return AutoencoderKL


def read_config(name: str, cache_dir: str | None) -> dict:
    """The config.json of a local folder or of a hub id."""
    try:
        if is_path(name):
            return json_of(Path(name) / "config.json")
    except (OSError, ValueError) as error:
        raise absent(name, cache_dir, error) from error
    load = autoencoder_class(name).load_config
    try:
        return looked_up(load, name, cache_dir)
    except (OSError, ValueError) as error:
        raise absent(name, cache_dir, error) from error


def looked_up(load: Callable, name: str, cache_dir: str | None, **options):
    """As the hub's, of "ema" and "mse" too: in `cache_dir`, then in Hugging Face's own cache.

    Raises:
        OSError: it is nowhere.
    """
    return hub.looked_up(load, hub_id(name), (cache_dir, None), **options)


def whole_vae(
    autoencoder: Any, name: str, cache_dir: str | None,
    refuse: Callable[[Exception], InputError], **options: str,
) -> Any:  # fmt: skip
    """A VAE of one of diffusers' classes, from its safetensors, with every tensor.

    Args:
        refuse: makes the sentence where there is none, or it cannot be read.
        options: more of `from_pretrained`, as the subfolder in a pipeline.

    Raises:
        InputError: not to be had here, of another class, or incomplete.
    """
    from safetensors import SafetensorError

    options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        vae, report = looked_up(autoencoder.from_pretrained, name, cache_dir, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise refuse(error) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])[0]
        raise InputError(f"--vae {name} is incomplete: it has no tensor {missing}")
    return vae


def absent(
    name: str, cache_dir: str | None, error: Exception, kind: str = "AutoencoderKL"
) -> InputError:
    reason = " ".join(str(error).split())[:160]
    if is_path(name):
        return InputError(
            f"--vae {name}: no {kind} (config.json and safetensors weights, as its "
            f"save_pretrained writes them) can be read from this folder ({reason})"
        )
    from huggingface_hub import constants

    looked = " and ".join(filter(None, [cache_dir, constants.HF_HUB_CACHE]))
    return InputError(
        f"--vae {name}: {hub_id(name)} is not in {looked}, and not to be had from the hub here "
        f"({reason}). Give --vae the folder of a saved {kind}, or set HF_HOME to the cache "
        "that has it"
    )
