"""Latents of Stable Audio Open's VAE, diffusers' AutoencoderOobleck."""

import math
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.untrusted import json_of, shown

from .codecs import PIXELS, absent, fingerprint, posterior_draw, whole_vae

STABLE_AUDIO = "stabilityai/stable-audio-open-1.0"
# Latents of a chunk of a track, and how many of them the next chunk has, too. What a chunk's end
# cuts off reaches into 8 latents of Stable Audio's encoder; half the overlap, 16, is thrown away.
CHUNK, OVERLAP = 128, 32

LARGEST = dict(audio_channels=2, channels=4096, hop=2**20, rate=768_000)


class OobleckConfig(NamedTuple):
    audio_channels: int
    channels: int  # of the latents
    hop: int  # samples per latent
    rate: int | None  # samples per second; None: any


SHAPES = {
    STABLE_AUDIO: OobleckConfig(2, 64, 2048, 44_100),
    PIXELS: OobleckConfig(2, 2, 1, None),  # the waveform itself
}


def config_of(vae: str, cache_dir: str | None) -> OobleckConfig:
    """Shapes of a VAE; those of Stable Audio Open need no look-up.

    Raises:
        InputError: a folder without the config of an AutoencoderOobleck.
    """
    if vae in SHAPES:
        return SHAPES[vae]
    path = Path(vae) / "config.json"
    try:
        config = json_of(path)
        if config["_class_name"] != "AutoencoderOobleck":
            raise ValueError(f"it is an {config['_class_name']}")
        form = OobleckConfig(
            int(config["audio_channels"]), int(config["decoder_input_channels"]),
            math.prod(config["downsampling_ratios"]), int(config["sampling_rate"]),
        )  # fmt: skip
        check_form(form)
        return form
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"--vae {vae} is no folder of diffusers' AutoencoderOobleck ({error}): give one, or "
            f"{STABLE_AUDIO}"
        ) from error


def check_form(form: OobleckConfig) -> None:
    """
    Raises:
        ValueError: no VAE is so.
    """
    for name, most in LARGEST.items():
        size = getattr(form, name)
        if type(size) is not int or not 0 < size <= most:
            raise ValueError(f"{name} is {shown(size)}")


class Chunk(NamedTuple):
    """The latents from `start` to `stop` are encoded, those from `first` to `last` are kept."""

    start: int
    stop: int
    first: int
    last: int


def chunks(length: int, chunk: int = CHUNK, overlap: int = OVERLAP) -> Iterator[Chunk]:
    """Of a track of `length` latents: each chunk keeps half of its overlap with the next."""
    half = overlap // 2
    for start in range(0, max(length - overlap, 1), chunk - overlap):
        stop = min(start + chunk, length)
        yield Chunk(
            start, stop, start + half if start else 0, stop - half if stop < length else stop
        )


def to_int16(x: Tensor) -> Tensor:
    """-1..1 -> -32768..32767, rounded."""
    return (32768 * x.float()).round().clamp(-32768, 32767).to(torch.int16)


class SoundCodec:
    """The model hears the waveform itself; the noise of `to_input` is not used."""

    identity = {"name": "waveform"}
    uses_noise = False

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return stored.float() / 32768

    def decode(self, x: Tensor) -> Tensor:
        return to_int16(x)

    def to(self, device: torch.device | str) -> "SoundCodec":
        return self


class OobleckCodec:
    """Stored are the posterior's moments, mean beside deviation (B, 2C, T); `to_input` is a draw
    from it with the caller's noise. Sound is int16 (B, channels, samples)."""

    uses_noise = True

    def __init__(self, vae, name: str) -> None:
        self.vae, self.name = vae.eval().requires_grad_(False), name

    @classmethod
    def load(cls, name: str, cache_dir: str | None = None) -> "OobleckCodec":
        """
        Raises:
            InputError: not to be had here, or incomplete.
        """
        try:
            from diffusers import AutoencoderOobleck
        except ImportError as error:
            raise InputError(
                f"--vae {name} needs diffusers ({error}): pip install '.[vae]'"
            ) from error
        refuse = partial(absent, name, cache_dir, kind="AutoencoderOobleck")
        options = {"subfolder": "vae"} if name == STABLE_AUDIO else {}
        return cls(whole_vae(AutoencoderOobleck, name, cache_dir, refuse, **options), name)

    @cached_property
    def identity(self) -> dict:
        return {"name": self.name, "scale": 1.0, "shift": 0.0,
                "sha256": fingerprint(self.vae.state_dict())}  # fmt: skip

    @torch.no_grad()
    def encode(self, raw: Tensor) -> Tensor:
        device = self.vae.device
        with torch.autocast(device.type, enabled=False):
            parts = []
            for sound in raw.to(device).split(1):  # a few seconds of sound are large inside
                posterior = self.vae.encode(sound.float() / 32768).latent_dist
                parts.append(torch.cat([posterior.mean, posterior.std], dim=1))
        return torch.cat(parts)

    def encode_track(self, sound: Tensor, chunk: int = CHUNK, overlap: int = OVERLAP) -> Tensor:
        """The moments (2C, T) of a whole track (channels, samples), chunk by chunk.

        They are those of the track in one piece wherever the encoder's receptive field is within
        half the overlap: for Stable Audio's, everywhere.
        """
        hop, length = self.vae.hop_length, sound.shape[-1] // self.vae.hop_length
        parts = []
        for start, stop, first, last in chunks(length, chunk, overlap):
            # The last one has the rest of the track that makes no latent.
            end = stop * hop if stop < length else sound.shape[-1]
            moments = self.encode(sound[None, :, start * hop : end])[0]
            parts.append(moments[:, first - start : last - start])
        return torch.cat(parts, dim=1)

    def to_input(self, stored: Tensor, noise: Tensor) -> Tensor:
        return posterior_draw(stored, noise)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        sounds = [self.vae.decode(z).sample for z in x.to(self.vae.device, torch.float32).split(1)]
        return to_int16(torch.cat(sounds))

    def to(self, device: torch.device | str) -> "OobleckCodec":
        self.vae.to(device)
        return self
