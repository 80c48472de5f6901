"""A picture grid from one checkpoint; also what sample_ddp.py needs to open a checkpoint.

python sample.py ODE --ckpt results/000-SiT-Ti-2-digits
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import domains
import models
from domains.codecs import difference
from runtime import checkpoint, distributed
from runtime.checkpoint import Checkpoint
from runtime.config import GridODE, GridSDE, ODEFlags, SampleFlags, parse_sampling
from runtime.entry import asked_of_user, run
from runtime.errors import InputError
from runtime.precision import Arithmetic, cast_products, compiles, default_precision
from runtime.random import SampleStreams
from transport import PROTOCOLS, Guidance, Sampler, Transport, create_transport


def main() -> None:
    flags = parse_sampling(GridODE, GridSDE, PROTOCOLS)
    ranks = distributed.start(flags.device)
    if ranks.size > 1:
        raise InputError("sample.py draws one picture in one process: use sample_ddp.py for more")
    opened = open_checkpoint(flags, ranks.device)
    labels = flags.class_labels or spread(16, opened.domain.choices)
    check_labels(labels, opened.domain.choices)
    streams = SampleStreams(range(len(labels)), flags.seed, ranks.device)
    z, _ = streams.start(opened.domain.shape, opened.domain.choices)
    y = opened.domain.condition(torch.tensor(labels, device=ranks.device))
    raw = opened.draw(flags, streams, z, y)
    opened.domain.save_grid(raw, Path(flags.out))
    print(f"{len(labels)} samples, {opened.network.calls} network calls: {flags.out}")


class Network(nn.Module):
    """The model in the run's arithmetic, counting its calls and the rows it was given."""

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.model, self.arithmetic = model, arithmetic
        self.calls = self.rows = 0

    def attention(self) -> str:
        """The kernel that attention runs on."""
        return self.arithmetic.attention(*self.model.attention_shape)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        with self.arithmetic():
            return self.model(x, t, **cond).pred


class Opened(NamedTuple):
    """A checkpoint ready to sample from."""

    checkpoint: Checkpoint
    network: Network
    transport: Transport
    domain: domains.Domain

    def guidance(self, flags: SampleFlags) -> Guidance:
        chosen = {None: self.domain.guided_channels, "all": None, "3": 3}[flags.cfg_channels]
        interval = (flags.guidance_low, flags.guidance_high)
        scale = flags.cfg_scale if self.domain.num_classes else 1.0
        with asked_of_user():
            return Guidance(scale, self.network.model.null, chosen, interval)

    def sampler(
        self, flags: SampleFlags, randn=torch.randn_like, *,
        per_sample_error: bool = True, reverse: bool = False,
    ) -> Callable[..., Tensor]:  # fmt: skip
        """fn(z, network, y=y) -> (1, B, ...): the flags' solver.

        Raises:
            InputError: flags that no solver takes.
        """
        sampler, guidance = Sampler(self.transport), self.guidance(flags)
        method, steps = flags.sampling_method, flags.num_sampling_steps
        with asked_of_user():
            if isinstance(flags, ODEFlags):
                return sampler.sample_ode(
                    sampling_method=method, num_steps=steps, atol=flags.atol, rtol=flags.rtol,
                    guidance=guidance, per_sample_error=per_sample_error, reverse=reverse,
                )  # fmt: skip
            return sampler.sample_sde(
                sampling_method=method, num_steps=steps, diffusion_form=flags.diffusion_form,
                diffusion_norm=flags.diffusion_norm, last_step=flags.last_step,
                last_step_size=flags.last_step_size, guidance=guidance, randn=randn,
            )  # fmt: skip

    @torch.no_grad()
    def draw(
        self, flags: SampleFlags, streams: SampleStreams, z: Tensor, y: Tensor, *,
        per_sample_error: bool = True,
    ) -> Tensor:  # fmt: skip
        """uint8 (B, C, H, W): samples from noise z (B, *shape) and conditions y (B,).

        Raises:
            FloatingPointError: a sample is not finite.
        """
        sample = self.sampler(
            flags,
            lambda x: streams.noise(tuple(x.shape[1:])).to(x),
            per_sample_error=per_sample_error,
        )
        x = sample(z.double() if flags.float64 else z, self.network, y=y)[-1]
        if not x.isfinite().all():
            raise FloatingPointError(f"samples of {self.checkpoint.path} are not finite")
        with self.network.arithmetic.autocast():
            return self.domain.codec.decode(x)


def open_checkpoint(flags: SampleFlags, device: torch.device) -> Opened:
    """Read --ckpt and build its network, transport and domain; flags that name another
    architecture than the file's are refused.

    Raises:
        InputError: no or a bad checkpoint, or flags that disagree with it.
    """
    if not flags.ckpt:
        raise InputError("--ckpt is missing: give it a checkpoint file or a run's folder")
    found = checkpoint.read(flags.ckpt)
    weights = found.ema if flags.weights == "ema" else found.model
    if not weights:
        raise InputError(f"{found.path} holds no raw weights: leave out --weights model")
    sample_eps = found.args.get("sample_eps") if flags.sample_eps is None else flags.sample_eps
    with asked_of_user(about=str(found.path)):
        model = models.load(weights, found.architecture, reversed_time=found.reversed_time)
    with asked_of_user():
        domain = domain_of(flags, found, model)
        transport = create_transport(
            flags.path_type or found.args.get("path_type", "Linear"),
            flags.prediction or found.args.get("prediction", "velocity"),
            sample_eps=sample_eps,
        )
    if flags.model:
        with asked_of_user():
            asked = models.architecture(flags.model)
        stored = {name: model.config[name] for name in asked}
        stored["patch_size"] = model.patch[-1]
        if asked != stored:
            raise InputError(f"--model {flags.model}, but {found.path} is a SiT of {stored}")
    with asked_of_user(about="--skip-blocks"):
        model.skip_blocks(flags.skip_blocks)
    domain.codec.to(device)
    check_codec(flags, found, domain)
    precision = precision_of(flags, device)
    model = cast_products(model.to(device), precision)
    if compiles(flags.compile, device) == "on":
        model.compile_blocks()
    network = Network(model, Arithmetic(precision, device, flags.attention))
    network.attention()  # refused now rather than after the noise is drawn
    # The weights are in the network now; the optimizer's state, twice their size, is not needed.
    found = dataclasses.replace(found, model={}, ema={}, opt={}, regulariser={})
    return Opened(found, network, transport, domain)


def check_codec(flags: SampleFlags, found: Checkpoint, domain: domains.Domain) -> None:
    """Refuse a codec that cannot decode what the model was trained on.

    Another --vae may be asked for, since decoders are trained anew for the latents of one encoder
    (Stable Diffusion's ema and mse); the scale has to be the same.
    """
    ours = domain.codec.identity
    key = difference(found.codec, ours)
    if key is None or (key == "sha256" and flags.vae):
        return
    raise InputError(
        f"{found.path} was trained on latents with {key} {found.codec[key]}, but those of --vae "
        f"{domain.vae} have {ours[key]}: give --vae the one it was trained with"
    )


def precision_of(flags: SampleFlags, device: torch.device) -> str:
    if flags.bf16:
        return "bf16"
    return default_precision(device) if flags.tf32 else "fp32"


def domain_of(flags: SampleFlags, found: Checkpoint, model: models.SiT) -> domains.Domain:
    """The domain that the checkpoint was trained on, as far as it says; public files say nothing of
    their data, and are taken as ImageNet in Stable Diffusion latents."""
    args, (channels, *axes) = found.args, (model.in_channels, *model.config["input_size"])
    name = flags.dataset_name or args.get("dataset_name")
    size = flags.image_size or args.get("image_size")
    domain = domains.build(
        name or "imagenet-1k",
        data_path=flags.data_path,
        image_size=size or (None if name else axes[-1] * 8),
        num_classes=model.num_classes,
        vae=flags.vae or args.get("vae"),
        cache_dir=flags.cache_dir,
    )
    if tuple(domain.shape) != (channels, *axes):
        raise InputError(
            f"{found.path} works on inputs of {(channels, *axes)}, but {domain.name} with --vae "
            f"{domain.vae} at {domain.raw_shape[-1]} pixels has {tuple(domain.shape)}"
        )
    if flags.num_classes not in (None, model.num_classes):
        raise InputError(
            f"--num-classes {flags.num_classes}, but {found.path} has {model.num_classes}"
        )
    return domain


def spread(count: int, num_classes: int) -> list[int]:
    """`count` class ids spread evenly over the classes."""
    return [number * max(num_classes, 1) // count for number in range(count)]


def check_labels(labels: Sequence[int], num_classes: int) -> None:
    for label in labels:
        if not 0 <= label < max(num_classes, 1):
            raise InputError(
                f"class id {label} is out of range: this model has "
                f"{num_classes} classes, 0 to {max(num_classes, 1) - 1}"
            )


if __name__ == "__main__":
    run(main)
