"""Instruments rendered in MTG-Jamendo's layout, and a small VAE of their sound.

python -m experiments.instruments render --out data/instruments
python -m experiments.instruments vae --data data/instruments --out vae/instruments
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import domains
from domains.codecs import PIXELS
from domains.oobleck import OobleckCodec
from domains.reading import read
from domains.sound import save_sounds
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.random import generator

from . import rendering, vae
from .midi import INSTRUMENTS


@dataclass(frozen=True)
class Render:
    """Render phrases of eight instruments to mp3 files in MTG-Jamendo's layout.

    Needs FluidSynth and a General MIDI sound font: apt-get install fluidsynth fluid-soundfont-gm.
    The same seed gives the same music.
    """

    out: Path  # the folder to write, --data-path of train.py
    train: int = 100  # tracks per instrument
    validation: int = 4  # of these, too
    test: int = 16  # and of these, which training never hears
    seconds: float = 2.048  # of a track: the default is one crop of --dataset_name instruments
    seed: int = 0  # of the phrases
    sound_font: Path = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")  # of General MIDI
    jobs: int = os.cpu_count() or 1  # tracks at the same time


@dataclass(frozen=True)
class Vae:
    """Train a small AutoencoderOobleck on rendered instruments, with latents of unit variance.

    Its reconstruction error on held-out tracks is printed and written beside it, with the sounds
    of an original and its reconstruction for every instrument and a sheet of their spectrograms.
    """

    data: Path  # a folder of `render`
    out: Path  # the folder to write, --vae of train.py
    steps: int = 2000  # of the optimizer
    batch: int = 4  # crops per step
    length: int = 4096  # samples of a crop, a quarter of a second
    lr: float = 4e-3  # of Adam, decaying to 0
    log_every: int = 100  # steps per log line
    seed: int = 0  # of the weights and crops


def check_counts(flags: Render | Vae, *names: str) -> None:
    for name in names:
        if getattr(flags, name) <= 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(flags, name)}: give more than 0")


def render(flags: Render) -> None:
    counts = {part: getattr(flags, part) for part in ("train", "validation", "test")}
    check_counts(flags, *counts, "seconds", "jobs")
    count = rendering.render(
        flags.out, flags.sound_font, counts, flags.seconds, flags.seed, flags.jobs
    )
    print(f"{flags.out}: {count} tracks of {flags.seconds:g} s")


def train_vae(flags: Vae) -> None:
    check_counts(flags, "steps", "batch", "lr", "log_every")
    begin = time.monotonic()
    domain = domains.build("instruments", data_path=str(flags.data), vae=PIXELS)
    samples = domain.raw_shape[1]
    if not max(vae.WINDOWS) <= flags.length <= samples:
        raise InputError(f"--length {flags.length}: give {max(vae.WINDOWS)} to {samples} samples")
    network = vae.build(domain.rate, flags.seed)
    held_out = all_sounds(domain.held_out_set())
    real = all_sounds(domain.train_set())
    losses = vae.train(
        network, real, steps=flags.steps, batch=flags.batch, length=flags.length, lr=flags.lr,
        seed=flags.seed,
    )  # fmt: skip
    for step in losses:
        if step.number % flags.log_every == 0:
            print(
                f"step {step.number}: samples {step.samples:.3f}, spectra {step.spectra:.3f}, "
                f"KL {step.kl:.2f}, {time.monotonic() - begin:.0f} s",
                flush=True,
            )
    vae.to_unit_variance(network, real)
    network.save_pretrained(flags.out)
    report(OobleckCodec(network, str(flags.out)), held_out, domain.rate, flags.out)


def all_sounds(found: domains.DataSet) -> Tensor:
    """A crop of every track, int16 (N, 2, samples)."""
    batches = read(found, range(len(found)), 64, torch.device("cpu"))
    return torch.cat([batch.raw for batch in batches])


def report(codec: OobleckCodec, sounds: Tensor, rate: int, out: Path) -> None:
    """reconstruction.json, .png and -NN.wav: an original, then its reconstruction, and so on."""
    moments = codec.encode(sounds)
    _, std = moments.chunk(2, dim=1)
    noise = torch.randn(std.shape, generator=generator("cpu", "reconstruction"))
    latents = codec.to_input(moments, noise)
    heard = codec.decode(latents)
    found = vae.errors(sounds, heard)
    content = {
        "held_out_sounds": len(sounds),
        "samples_per_second": rate,
        "snr_db": found.snr.mean().item(),
        "log_spectral_distance_db": found.spectral.mean().item(),
        "latents_mean": latents.mean(dim=(0, 2)).abs().max().item(),  # of the channels' means
        "latents_std": latents.std(dim=(0, 2)).mean().item(),
        "posterior_std": std.mean().item(),
    }
    write_json(out / "reconstruction.json", content)
    pairs = torch.stack([sounds, heard], 1)[: len(INSTRUMENTS)].flatten(0, 1)
    save_sounds(pairs, out / "reconstruction.png", rate, columns=4)
    for name, value in content.items():
        print(f"{name.replace('_', ' ')}: {value:.4g}")
    print(out / "reconstruction.png")


def main() -> None:
    flags = tyro.cli(Render | Vae, console_outputs=speaks())
    {Render: render, Vae: train_vae}[type(flags)](flags)


if __name__ == "__main__":
    run(main)
