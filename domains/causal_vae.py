"""Clips as latents of the causal 3-D VAEs of Wan and CogVideoX: 4 frames to one after the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.hub import FINETUNE
from runtime.untrusted import json_of, shown

from .codecs import (
    MOST_CHANNELS,
    fingerprint,
    looked_up,
    posterior_draw,
    to_float,
    to_uint8,
    whole_vae,
)


@dataclass(frozen=True)
class Layout:
    """What a VAE makes of a clip; of its config alone."""

    kind: str  # its class in diffusers
    channels: int
    frames: int  # of a clip to one latent frame, all but the first
    step: int  # a clip has one frame more than a multiple of it
    pixels: int  # along a side of a frame to one latent
    native: tuple[int, int]  # height and width that its network was trained at

    def latents(self, name: str, frames: int, size: tuple[int, int]) -> tuple[int, ...]:
        """The shape (C, frames, h, w) of a clip's latents.

        Raises:
            InputError: a clip that it cannot encode.
        """
        if rest := (frames - 1) % self.step:
            raise InputError(
                f"--num-frames {frames}: --vae {name} takes one frame and then {self.step} at a "
                f"time, give {frames - rest} or {frames - rest + self.step}"
            )
        if any(side % self.pixels for side in size):
            raise InputError(
                f"--image-size {size[0]} is no multiple of {self.pixels}, by which --vae {name} "
                "downsamples"
            )
        return (
            self.channels, 1 + (frames - 1) // self.frames, *(side // self.pixels for side in size),
        )  # fmt: skip

    def size(self, height: int | None) -> tuple[int, int]:
        """Height and width of frames: the native ones, or of their proportions as near as whole
        patches of 2x2 latents allow."""
        high, wide = self.native
        if height in (None, high):
            return self.native
        step = 2 * self.pixels
        return height, max(step, round(height * wide / high / step) * step)


def wan_layout(config: dict) -> Layout:
    down, frames = config.get("scale_factor_spatial", 8), config.get("scale_factor_temporal", 4)
    return Layout("AutoencoderKLWan", config["z_dim"], frames, frames, down, (480, 832))


def cogvideox_layout(config: dict) -> Layout:
    down = 2 ** (len(config["block_out_channels"]) - 1)
    frames = int(config["temporal_compression_ratio"])
    channels = config["latent_channels"]
    # Of an even number of latent frames it does not decode the first as one frame.
    return Layout("AutoencoderKLCogVideoX", channels, frames, 2 * frames, down, (480, 720))


LAYOUTS = {"AutoencoderKLWan": wan_layout, "AutoencoderKLCogVideoX": cogvideox_layout}


def layout_of(name: str, cache_dir: str | None) -> Layout:
    """
    Args:
        name: a hub id or folder, of a pipeline or of its VAE.

    Raises:
        InputError: no such VAE there.
    """
    from_config = autoencoder_class("AutoencoderKLWan", name).load_config
    try:
        config = looked_up(from_config, name, cache_dir, **inside(name))
        layout = LAYOUTS[config["_class_name"]](config)
        sizes = (layout.channels, layout.frames, layout.step, layout.pixels)
        if any(type(size) is not int or not 0 < size <= MOST_CHANNELS for size in sizes):
            raise ValueError(f"channels, frames and pixels are {shown(sizes)}")
        return layout
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise absent(name, error) from error


class Units:
    """From the VAE's posterior to the units that its network was trained in, and back.

    Args:
        shift, scale: of each channel, or one number for all.
        draws: whether the network's latents are draws from the posterior, else they are its means.
    """

    def __init__(self, shift: Sequence[float], scale: Sequence[float], *, draws: bool) -> None:
        self.shift, self.scale = (
            torch.tensor(values).view(-1, 1, 1, 1) for values in (shift, scale)
        )
        self.draws = draws

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        """Means, beside deviations where there is a draw (B, kC, frames, h, w)."""
        latents = posterior_draw(stored, noise) if self.draws else stored.float()
        return (latents - self.shift) * self.scale

    def to_latents(self, x: Tensor) -> Tensor:
        return x.float() / self.scale + self.shift

    def to(self, device: torch.device | str) -> None:
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)


class CausalVAECodec:
    """Latents (B, C, frames, h, w) in the units that the VAE's network was trained in.

    Wan's are the posterior's mean, CogVideoX's a draw from it, as their authors train; stored are
    the means, beside deviations where there is a draw.
    """

    def __init__(self, vae, name: str) -> None:
        self.vae, self.name = vae.eval().requires_grad_(False), name
        config = vae.config
        self.uses_noise = "scaling_factor" in config  # CogVideoX's
        if self.uses_noise:
            shift, scale = [0.0], [config.scaling_factor]
        else:
            shift, scale = config.latents_mean, (1 / torch.tensor(config.latents_std)).tolist()
        self.units = Units(shift, scale, draws=self.uses_noise)

    @classmethod
    def load(cls, name: str, cache_dir: str | None = None) -> "CausalVAECodec":
        """
        Raises:
            InputError: not to be had here, another VAE, or incomplete.
        """
        autoencoder = autoencoder_class(layout_of(name, cache_dir).kind, name)
        found = whole_vae(autoencoder, name, cache_dir, partial(absent, name), **inside(name))
        return cls(found, name)

    @cached_property
    def identity(self) -> dict:
        weights = fingerprint(self.vae.state_dict())
        shift, scale = (part.flatten().tolist() for part in (self.units.shift, self.units.scale))
        return {"name": self.name, "scale": scale, "shift": shift, "sha256": weights}

    @torch.no_grad()
    def encode(self, raw: Tensor) -> Tensor:
        """uint8 (B, 3, T, H, W), a clip at a time, in float32."""
        parts = []
        with torch.autocast(self.vae.device.type, enabled=False):
            for clip in raw.to(self.vae.device).split(1):
                posterior = self.vae.encode(to_float(clip)).latent_dist
                moments = [posterior.mean, posterior.std] if self.uses_noise else [posterior.mean]
                parts.append(torch.cat(moments, dim=1))
        return torch.cat(parts)

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return self.units.to_input(stored, noise)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        latents = self.units.to_latents(x).to(self.vae.device)
        return torch.cat([to_uint8(self.vae.decode(clip).sample) for clip in latents.split(1)])

    def to(self, device: torch.device | str) -> "CausalVAECodec":
        self.vae.to(device)
        self.units.to(device)
        return self


def inside(name: str) -> dict[str, str]:
    """Where in a hub's or a local pipeline the VAE is; a folder may be the VAE's own."""
    try:
        own = json_of(Path(name) / "config.json")["_class_name"] in LAYOUTS
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    return {} if own else {"subfolder": "vae"}


def autoencoder_class(kind: str, name: str):
    try:
        import diffusers

        return getattr(diffusers, kind)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--vae {name} needs diffusers ({error}): {FINETUNE}") from error


def absent(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:160]
    return InputError(
        f"--vae {name}: no {' or '.join(LAYOUTS)} can be read here or be had from the hub "
        f"({reason}): give the hub id or the folder of a pipeline of Wan or CogVideoX"
    )
