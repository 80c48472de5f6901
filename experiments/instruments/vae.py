"""A small Oobleck VAE, diffusers' AutoencoderOobleck, trained on a CPU and measured on held-out
sounds.

python -m experiments.instruments vae --data data/instruments --out vae/instruments
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from domains.oobleck import OobleckCodec
from runtime.errors import InputError
from runtime.random import generator, seed_of

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck

LATENTS = 8  # channels; with a hop of 64, an eighth of the samples of one side
WINDOWS = (128, 512, 2048)  # samples of the spectra that are compared
QUIET = 1e-3  # amplitude below which spectra are not told apart: 60 dB under full scale
SPECTRA = 0.3  # weight of their distance beside that of the samples
KL = 1e-2  # weight of the posterior's distance from a standard normal
WARM_UP = 50  # steps until the learning rate is at its highest; it ends at 0


def build(rate: int, seed: int) -> "AutoencoderOobleck":
    """Stable Audio Open's VAE with two stages instead of five and 16 channels instead of 128, which
    starts near a linear map: so it learns in minutes.

    Raises:
        InputError: no diffusers here.
    """
    try:
        from diffusers import AutoencoderOobleck
        from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit, Snake1d
    except ImportError as error:
        raise InputError(f"the VAE needs diffusers ({error}): pip install '.[vae]'") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "oobleck"))
        vae = AutoencoderOobleck(
            encoder_hidden_size=2 * LATENTS, downsampling_ratios=[8, 8], channel_multiples=[2, 4],
            decoder_channels=16, decoder_input_channels=LATENTS, audio_channels=2,
            sampling_rate=rate,
        )  # fmt: skip
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, Snake1d):
                module.beta.fill_(1.0)  # x + exp(-beta) sin(x)^2
            elif isinstance(module, OobleckResidualUnit):
                module.conv2.weight_g.mul_(0.1)
                module.conv2.bias.zero_()
        last = vae.encoder.conv2
        last.weight_g[:LATENTS] *= 10  # the means are heard through the posterior's noise
        last.bias[LATENTS:] = -4  # of a deviation of softplus(-4) = 0.02
    return vae


class Step(NamedTuple):
    number: int
    samples: float  # mean absolute error over that of silence
    spectra: float
    kl: float  # twice the nats per latent, as diffusers has it


def train(
    vae: "AutoencoderOobleck", sounds: Tensor, *, steps: int, batch: int, length: int, lr: float,
    seed: int,
) -> Iterator[Step]:  # fmt: skip
    """Reconstruct crops of int16 sounds (N, 2, samples); yields the losses of every step."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda done: min(1, (done + 1) / WARM_UP) * (1 + math.cos(math.pi * done / steps)) / 2,
    )
    random = generator("cpu", seed, "vae")
    vae.train()
    for number in range(1, steps + 1):
        x = crops(sounds, batch, length, random)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=random)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        error = (y - x).abs().mean() / x.abs().mean().clamp(min=QUIET)
        spectra, kl = spectral_distance(x, y), posterior.kl() / LATENTS
        optimizer.zero_grad()
        (error + SPECTRA * spectra + KL * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        yield Step(number, error.item(), spectra.item(), kl.item())
    vae.eval()


def crops(sounds: Tensor, batch: int, length: int, random: torch.Generator) -> Tensor:
    """float (batch, 2, length) of sounds and places drawn at random."""
    chosen = torch.randint(len(sounds), (batch,), generator=random)
    starts = torch.randint(sounds.shape[2] - length + 1, (batch,), generator=random)
    parts = [
        sounds[one, :, start : start + length]
        for one, start in zip(chosen.tolist(), starts.tolist(), strict=True)
    ]
    return torch.stack(parts).float() / 32768


def spectral_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean over WINDOWS of the spectral convergence and the distance of log amplitudes."""
    distance = torch.zeros(())
    for size in WINDOWS:
        a, b = amplitudes(x, size), amplitudes(y, size)
        distance = distance + (a - b).norm() / a.norm().clamp(min=QUIET)
        distance = distance + (a.clamp(min=QUIET) / b.clamp(min=QUIET)).log().abs().mean()
    return distance / len(WINDOWS)


def amplitudes(x: Tensor, size: int) -> Tensor:
    """float (B, channels, samples) -> (B * channels, frequencies, times); 1 is a sine at full
    scale."""
    window = torch.hann_window(size)
    spectrum = torch.stft(x.flatten(0, 1), size, size // 4, window=window, return_complex=True)
    return spectrum.abs() * 2 / window.sum()


@torch.no_grad()
def to_unit_variance(vae: "AutoencoderOobleck", sounds: Tensor) -> None:
    """Scale every channel of the latents to variance 1 over these sounds, as flow matching wants
    it: the encoder's last layer is divided by the deviations, the decoder's first one multiplied
    by them, and what the decoder makes of a latent stays the same."""
    moments = OobleckCodec(vae, "").encode(sounds)
    mean, std = moments.chunk(2, dim=1)
    scale = (mean.var(dim=(0, 2)) + std.square().mean(dim=(0, 2))).sqrt()
    last, first = vae.encoder.conv2, vae.decoder.conv1
    last.weight_g[:LATENTS] /= scale[:, None, None]
    last.bias[:LATENTS] /= scale
    # The deviation is softplus of this, which is exp where it is small.
    last.bias[LATENTS:] -= scale.log()
    weight = torch._weight_norm(first.weight_v, first.weight_g) * scale[:, None]
    first.weight_v.copy_(weight)
    first.weight_g.copy_(torch.norm_except_dim(weight))


class Errors(NamedTuple):
    """Of reconstructions, one per sound."""

    snr: Tensor  # signal to noise, in dB
    spectral: Tensor  # log-spectral distance, in dB


def errors(x: Tensor, y: Tensor) -> Errors:
    """Of int16 sounds (B, channels, samples) and their reconstructions."""
    x, y = x.float() / 32768, y.float() / 32768
    noise = (x - y).square().sum((1, 2)).clamp(min=1e-12)
    levels = [20 * amplitudes(sound.mean(1, keepdim=True), 1024).clamp(min=QUIET).log10()
              for sound in (x, y)]  # fmt: skip
    spectral = (levels[0] - levels[1]).square().mean(1).sqrt().mean(1)
    return Errors(10 * (x.square().sum((1, 2)) / noise).log10(), spectral)
