"""Training steps beside the public code's: images/s, MFU, memory; optimizer and EMA by themselves.

OMP_NUM_THREADS=2 python -m benchmarks.train --model SiT-S/2 --batch 8 --against ../LayerSync
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import domains
from benchmarks.autoencoder import random_images, with_autoencoder
from benchmarks.baseline import PublicLoop, public, public_network
from benchmarks.ours import LEAST, StepFlags, batch_of, step_of, trainer_of
from benchmarks.report import Contestant, Measured, beside, cost, interleave, parse, publish
from layersync import default_weight
from models import train_flops
from runtime import distributed
from runtime.entry import run
from runtime.hardware import peak_flops
from runtime.state import TrainState


@dataclass(frozen=True)
class Flags(StepFlags):
    """Measure whole training steps on random latents in memory, interleaved with the public code's.

    On a CPU:
    OMP_NUM_THREADS=2 python -m benchmarks.train --model SiT-S/2 --batch 8

    On one GPU:
    python -m benchmarks.train --model SiT-XL/2 --batch 128 --rounds 10 --calls 20
    --settle 3 --warmup 30
    """

    against: str | None = None  # checkout of the public code; None: the one restated here
    public_batch: int | None = None  # images per public step, where --batch exceeds its memory
    end_to_end: bool = False  # a public row that encodes its images in every step, as published
    vae: str | None = None  # folder of its AutoencoderKL; None: random weights of the same shape


PUBLIC, ENCODING = "public, cached latents", "public, VAE in the step"
VANILLA, SYNCED = "ours, vanilla", "ours, LayerSync"
PAIRS = [(f"{part}, public", f"{part}, ours") for part in ("AdamW", "EMA", "AdamW + EMA")]


def main() -> None:
    flags = parse(Flags, LEAST)
    ranks = distributed.start_alone("benchmarks.train", flags.device)
    code, device = public(flags.against), ranks.device
    trainer = trainer_of(flags, ranks)  # says at once what is wrong with the flags
    model, domain, conditions = trainer.model, trainer.domain, {"attention": trainer.attention}
    del trainer
    size = flags.public_batch or flags.batch

    def loop() -> PublicLoop:
        network = public_network(code, model).to(device)
        return PublicLoop(code, network, weight=default_weight(model.depth))

    contestants = [Contestant(PUBLIC, lambda: cached_step(loop(), domain, size, device), size)]
    if flags.end_to_end:
        pictures = with_autoencoder(flags.vae, device)
        build = partial(encoding_step, domain=pictures, size=size, device=device)
        contestants.append(Contestant(ENCODING, lambda: build(loop()), size))

    def ours(loss_type: str) -> Callable[[], Callable[[], Any]]:
        return lambda: step_of(trainer_of(flags, ranks, loss_type=loss_type))

    contestants.append(Contestant(VANILLA, ours("vanilla"), flags.batch))
    contestants.append(Contestant(SYNCED, ours("layer_sync"), flags.batch))
    measured = interleave(contestants, device, flags)
    flops, peak = train_flops(model), peak_flops(device)
    rows = [
        one.row()
        | {"mfu": one.images_per_s * flops / peak if peak else None}
        | speedups(measured, one)
        for one in measured.values()
    ]
    title = f"training step of {flags.model}, {flags.batch} images"
    publish("train", title, rows, flags, device, **conditions)
    row = {"row": "LayerSync over vanilla"} | cost(measured[VANILLA], measured[SYNCED])
    publish("train", "what LayerSync costs, in percent", [row], flags, device, **conditions)

    parts = interleave(optimizer_parts(loop(), trainer_of(flags, ranks).state), device, flags)
    rows = [
        parts[name].times() | beside(parts[pair[0]], parts[name]) for pair in PAIRS for name in pair
    ]
    publish("train", f"optimizer and EMA of {flags.model}", rows, flags, device)


def speedups(measured: dict[str, Measured], one: Measured) -> dict[str, float]:
    """Over the public step on cached latents, and over the one with the VAE if that was run."""
    columns = beside(measured[PUBLIC], one)
    if ENCODING in measured:
        end_to_end = beside(measured[ENCODING], one)
        columns |= {f"end_to_end_{name}": value for name, value in end_to_end.items()}
    return columns


def cached_step(
    loop: PublicLoop, domain: domains.Domain, size: int, device: torch.device
) -> Callable[[], None]:
    """The public step as it would be on stored latents: a draw from their moments comes first."""
    codec, batch = domain.codec.to(device), batch_of(domain, size, device)

    def step() -> None:
        noise = torch.randn(size, *domain.shape, device=device)
        loop.step(codec.to_input(batch.raw, noise), batch.y)

    return step


def encoding_step(
    loop: PublicLoop, domain: domains.Domain, size: int, device: torch.device
) -> Callable[[], None]:
    """The public step as published: the VAE encodes the whole batch of images first."""
    codec, images = domain.codec, random_images(domain, size, device)
    y = torch.zeros(size, dtype=torch.int64, device=device)

    def step() -> None:
        with torch.no_grad():
            x = codec.vae.encode(images).latent_dist.sample().mul_(codec.scale)
        loop.step(x, y)

    return step


def optimizer_parts(loop: PublicLoop, state: TrainState) -> list[Contestant]:
    """The public code's and ours, each on gradients that it finds again; a call is one image."""
    give_theirs = gradients_of(list(loop.network.parameters()))
    give_ours = gradients_of(list(state.model.parameters()))

    def their_update() -> None:
        loop.update()
        loop.opt.zero_grad()
        give_theirs()

    def our_update() -> None:
        state.update()
        give_ours()

    calls = (
        (loop.opt.step, state.opt.step),
        (loop.average, partial(state.ema.update, state.model)),
        (their_update, our_update),
    )
    give_theirs()
    give_ours()
    return [
        Contestant(name, lambda call=call: call, 1)
        for names, pair in zip(PAIRS, calls, strict=True)
        for name, call in zip(names, pair, strict=True)
    ]


def gradients_of(parameters: list[Tensor]) -> Callable[[], None]:
    """A function that gives the parameters the same random gradients each time it is called."""
    trained = [p for p in parameters if p.requires_grad]
    gradients = [torch.randn_like(p) for p in trained]

    def give() -> None:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient

    return give


if __name__ == "__main__":
    run(main)
