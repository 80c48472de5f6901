"""Sampling beside the public code's: images/s, network calls, and that both end in one sample.

OMP_NUM_THREADS=2 python -m benchmarks.sample --model SiT-S/2 --batch 8 --num-sampling-steps 50
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import domains
from benchmarks.autoencoder import with_autoencoder
from benchmarks.baseline import PublicCode, Solve, public, public_network
from benchmarks.report import Contestant, MeasureFlags, beside, interleave, parse, publish
from domains.codecs import to_uint8
from models import SiT, architecture
from runtime import distributed
from runtime.checkpoint import Checkpoint
from runtime.config import NpzFlags, NpzODE, NpzSDE
from runtime.entry import asked_of_user, run
from runtime.precision import Arithmetic, cast_products, compiles
from runtime.random import LegacyStreams, SampleStreams, generator
from sampling import Network, Opened
from transport import create_transport


@dataclass(frozen=True)
class Flags(MeasureFlags):
    """Measure sampling, each call a whole batch from noise to the end, beside the public code's.

    On a CPU:
    OMP_NUM_THREADS=2 python -m benchmarks.sample --batch 8 --num-sampling-steps 50

    On one GPU:
    python -m benchmarks.sample --model SiT-XL/2 --batch 128 --decode
    """

    rounds: int = 3  # every contestant runs once per round, in rotating order
    calls: int = 1  # timed calls per round
    settle: int = 0  # untimed calls before them
    warmup: int = 1  # untimed calls before the first round; compiling happens there
    model: str = "SiT-S/2"  # SiT-{S,B,L,XL,Ti}/{2,4,8}, on 4x32x32 latents
    batch: int = 8  # images per call
    num_sampling_steps: int = 250  # time points
    cfg_scale: float = 1.8  # of the guided rows
    guidance_low: float = 0.3  # of the row that guides only where t >= this
    precision: Literal["fp32", "tf32", "bf16"] = "bf16"  # of ours; the public code is fp32 or tf32
    compile: Literal["auto", "on", "off"] = "on"  # ours; on a CPU this needs a C++ compiler
    attention: Literal["auto", "cudnn", "flash", "efficient", "math"] = "auto"  # kernel of ours
    decode: bool = False  # both decode their samples by a VAE; else samples are latents
    vae: str | None = None  # folder of its AutoencoderKL; None: random weights of the same shape
    against: str | None = None  # checkout of the public code; None: the one restated here


class Group(NamedTuple):
    """A sampler of the public code, and ours in its place."""

    name: str
    public: Callable[[PublicCode], Callable[..., Solve]]
    guided: bool
    ours: dict[str, Callable[[Flags], NpzFlags]]  # row -> flags of sample_ddp.py


def euler_maruyama(flags: Flags, **guidance: float) -> NpzSDE:
    return NpzSDE(num_sampling_steps=flags.num_sampling_steps, cfg_channels="3", **guidance)


def guided(flags: Flags) -> NpzSDE:
    return euler_maruyama(flags, cfg_scale=flags.cfg_scale)


def guided_late(flags: Flags) -> NpzSDE:
    return euler_maruyama(flags, cfg_scale=flags.cfg_scale, guidance_low=flags.guidance_low)


def heun(flags: Flags) -> NpzODE:
    return NpzODE(num_sampling_steps=flags.num_sampling_steps, sampling_method="heun2")


PUBLIC, OURS, LATE = "public", "ours", "ours, guided in the interval"
GROUPS = (
    Group("Euler-Maruyama", lambda code: code.sde, False, {OURS: euler_maruyama}),
    Group("Euler-Maruyama, guided", lambda code: code.sde, True, {OURS: guided, LATE: guided_late}),
    Group("Heun", lambda code: code.ode, False, {OURS: heun}),
)
COMPARED = 2  # samples whose values are compared, in float32


def main() -> None:
    flags = parse(Flags, {"batch": 1})
    device = distributed.start_alone("benchmarks.sample", flags.device).device
    code = public(flags.against)
    domain = with_autoencoder(flags.vae, device) if flags.decode else domains.build("synthetic")
    with asked_of_user():
        model = alive(SiT(num_classes=1000, **architecture(flags.model))).to(device).eval()
    theirs = Theirs(code, public_network(code, model).to(device).eval(), domain, flags)

    exact = opened(copy.deepcopy(model), domain, Arithmetic("fp32", device))
    found = {group.name: compared(theirs, exact, group, flags, device) for group in GROUPS}
    del exact

    arithmetic = Arithmetic(flags.precision, device, flags.attention)
    if compiles(flags.compile, device) == "on":
        model.compile_blocks()
    fast = opened(cast_products(model, flags.precision), domain, arithmetic)
    streams = SampleStreams(range(flags.batch), 0, device)
    z, y = streams.start(domain.shape, model.num_classes)
    for group in GROUPS:
        calls = {PUBLIC: partial(theirs.pictures, group, z, y)}
        for name, make in group.ours.items():
            calls[name] = partial(fast.draw, make(flags), streams, z, {"y": y})
        contestants = [Contestant(name, lambda c=c: c, flags.batch) for name, c in calls.items()]
        measured = interleave(contestants, device, flags)
        rows = [
            one.row() | found[group.name][name] | beside(measured[PUBLIC], one)
            for name, one in measured.items()
        ]
        title = f"{group.name}, {flags.num_sampling_steps} time points, {flags.model}"
        publish("sample", title, [without_held(row) for row in rows], flags, device)


class Theirs:
    """The public code's sampling, with the network calls it has made."""

    def __init__(
        self, code: PublicCode, network: nn.Module, domain: domains.Domain, flags: Flags
    ) -> None:
        self.code, self.network, self.domain, self.flags = code, network, domain, flags
        self.calls = self.rows = 0
        forward = network.forward

        def counted(x: Tensor, t: Tensor, y: Tensor) -> Any:
            self.calls, self.rows = self.calls + 1, self.rows + len(x)
            return forward(x, t, y)

        network.forward = counted

    @torch.no_grad()
    def draw(self, group: Group, z: Tensor, y: Tensor) -> Tensor:
        """Latents (B, C, h, w) from noise z and classes y; guided, both halves are solved for."""
        solve = group.public(self.code)(num_steps=self.flags.num_sampling_steps)
        if not group.guided:
            return solve(z, self.network, y=y)[-1]
        null = torch.full_like(y, self.network.y_embedder.num_classes)
        states = solve(
            torch.cat([z, z]), self.network.forward_with_cfg, y=torch.cat([y, null]),
            cfg_scale=self.flags.cfg_scale,
        )  # fmt: skip
        return states[-1].chunk(2)[0]

    @torch.no_grad()
    def pictures(self, group: Group, z: Tensor, y: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) where there is a VAE, which decodes the whole batch at once."""
        x = self.draw(group, z, y)
        if not self.flags.decode:
            return self.domain.codec.decode(x)
        codec = self.domain.codec
        return to_uint8(codec.vae.decode(x / codec.scale).sample)


def opened(model: SiT, domain: domains.Domain, arithmetic: Arithmetic) -> Opened:
    """A model as sample_ddp.py has it after it has read a checkpoint."""
    read = Checkpoint(Path("random weights"), {}, {})
    return Opened(read, Network(model, arithmetic), create_transport(), domain)


def alive(model: SiT) -> SiT:
    """With small random weights where a new model has zeros, and would predict nothing."""
    random = generator("cpu", "benchmarks")
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=random)
    return model


def compared(
    theirs: Theirs, ours: Opened, group: Group, flags: Flags, device: torch.device
) -> dict[str, dict[str, float | None]]:
    """Of every row: network calls, images in them per sample, and how far its samples are from the
    public ones with the same noise, as a part of their size."""

    def start() -> tuple[LegacyStreams, Tensor, Tensor]:
        streams = LegacyStreams(0, COMPARED, group.guided, device)  # the public code's draws
        return streams, *streams.start(ours.domain.shape, 1000)

    theirs.calls = theirs.rows = 0
    _, z, y = start()
    expected = theirs.draw(group, z, y)
    columns = {PUBLIC: counts(theirs.calls, theirs.rows) | {"difference": 0.0}}
    for name, make in group.ours.items():
        ours.network.calls = ours.network.rows = 0
        streams, z, y = start()
        sample = ours.sampler(make(flags), lambda x, s=streams: s.noise(tuple(x.shape[1:])))
        x = sample(z, ours.network, y=y)[-1]
        same_sampler = name == OURS
        difference = ((x - expected).norm() / expected.norm()).item() if same_sampler else None
        columns[name] = counts(ours.network.calls, ours.network.rows) | {"difference": difference}
    return columns


def counts(calls: int, rows: int) -> dict[str, float]:
    return {"calls": calls, "rows_per_image": rows / COMPARED}


def without_held(row: dict[str, Any]) -> dict[str, Any]:
    """All samplers share two networks, so what one holds says nothing."""
    return {name: value for name, value in row.items() if name != "peak_gib"}


if __name__ == "__main__":
    run(main)
