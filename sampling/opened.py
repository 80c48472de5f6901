"""A checkpoint opened to sample from or to look at: its network, transport and domain.

opened = open_checkpoint(SampleFlags(ckpt="results/000-SiT-Ti-2-digits"), device)"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import domains
import models
from domains import Condition
from domains.codecs import first_difference
from runtime import checkpoint
from runtime.checkpoint import Checkpoint
from runtime.config import DDPMFlags, ODEFlags, SampleFlags
from runtime.entry import asked_of_user
from runtime.errors import InputError
from runtime.precision import Arithmetic, cast_products, compiles, default_precision
from runtime.random import SampleStreams
from transport import Guidance, Sampler, Transport, create_transport

# What a named size says that is not of the network: how it was trained, and from which files.
OF_TRAINING = ("dropout", "pretrained", "lora_rank", "lora_alpha")


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
        scale = flags.cfg_scale if self.network.model.is_conditional else 1.0
        with asked_of_user():
            return Guidance(scale, self.network.model.null, chosen, interval)

    def sampler(
        self, flags: SampleFlags, randn=torch.randn_like, *,
        per_sample_error: bool = True, reverse: bool = False,
    ) -> Callable[..., Tensor]:  # fmt: skip
        """fn(z, network, **cond) -> (1, B, ...): the flags' solver.

        Raises:
            InputError: flags that no solver takes.
        """
        sampler, guidance = Sampler(self.transport), self.guidance(flags)
        common = dict(num_steps=flags.num_sampling_steps, guidance=guidance)
        with asked_of_user():
            if isinstance(flags, ODEFlags):
                return sampler.sample_ode(
                    sampling_method=flags.sampling_method, atol=flags.atol, rtol=flags.rtol,
                    per_sample_error=per_sample_error, reverse=reverse, **common,
                )  # fmt: skip
            if isinstance(flags, DDPMFlags):
                return sampler.sample_ddpm(ddim=flags.ddim, randn=randn, **common)
            return sampler.sample_sde(
                sampling_method=flags.sampling_method, diffusion_form=flags.diffusion_form,
                diffusion_norm=flags.diffusion_norm, last_step=flags.last_step,
                last_step_size=flags.last_step_size, randn=randn, **common,
            )  # fmt: skip

    @torch.no_grad()
    def draw(
        self, flags: SampleFlags, streams: SampleStreams, z: Tensor, cond: Condition, *,
        per_sample_error: bool = True,
    ) -> Tensor:  # fmt: skip
        """Decoded samples, pictures as uint8 (B, C, H, W), from noise z (B, *shape).

        Raises:
            FloatingPointError: a sample is not finite.
        """
        sample = self.sampler(flags, streams.like, per_sample_error=per_sample_error)
        x = sample(z.double() if flags.float64 else z, self.network, **cond)[-1]
        if not x.isfinite().all():
            raise FloatingPointError(f"samples of {self.checkpoint.path} are not finite")
        with self.network.arithmetic.autocast():
            return self.domain.codec.decode(x)


def open_checkpoint(
    flags: SampleFlags, device: torch.device, *, of_captions: bool = True, reads_data: bool = False,
    verify: bool = True,
) -> Opened:  # fmt: skip
    """Read --ckpt and build its network, transport and domain; flags that name another
    architecture than the file's are refused.

    Args:
        of_captions: False refuses models of motion and video that are conditioned on texts.
        reads_data: the caller reads the data set, see `with_data`.
        verify: see checkpoint.read.

    Raises:
        InputError: no or a bad checkpoint, or flags that disagree with it.
    """
    if not flags.ckpt:
        raise InputError("--ckpt is missing: give it a checkpoint file or a run's folder")
    found = checkpoint.read(flags.ckpt, verify=verify)
    if reads_data:
        flags = with_data(flags, found)
    model = model_of(flags, found)
    sample_eps = found.args.get("sample_eps") if flags.sample_eps is None else flags.sample_eps
    with asked_of_user():
        domain = domain_of(flags, found, model, device)
        transport = create_transport(
            flags.path_type or recorded(found, "path_type", "Linear"),
            flags.prediction or recorded(found, "prediction", "velocity"),
            sample_eps=sample_eps,
            time_shift=flags.time_shift or recorded(found, "time_shift", 1.0),
        )
    check_model(flags, found, model)
    with asked_of_user(about="--skip-blocks"):
        model.skip_blocks(flags.skip_blocks)
    if not of_captions and domain.text_encoder is not None:
        raise InputError(
            f"{found.path} is a model of {domain.name}, conditioned on texts, which this command "
            "does not read"
        )
    domain.codec.to(device)
    check_codec(flags, found, domain)
    precision = precision_of(flags, device)
    model = model.to(device).requires_grad_(False)  # the likelihood's gradients are of x alone
    if not model.own_precision:
        cast_products(model, precision)
    if compiles(flags.compile, device) == "on":
        model.compile_blocks()
    network = Network(model, Arithmetic(precision, device, flags.attention))
    network.attention()  # refused now rather than after the noise is drawn
    # The weights are in the network now; the optimizer's state, twice their size, is not needed.
    found = dataclasses.replace(found, model={}, ema={}, opt={}, regulariser={})
    return Opened(found, network, transport, domain)


def recorded(found: Checkpoint, name: str, default: Any) -> Any:
    """A flag of the checkpoint's run; None stands for one that was not given."""
    value = found.args.get(name)
    return default if value is None else value


def model_of(flags: SampleFlags, found: Checkpoint) -> models.Denoiser:
    """The network of a checkpoint with the weights that are asked for.

    Raises:
        InputError: the file has no such weights, or is not of a network of ours.
    """
    weights = found.ema if flags.weights == "ema" else found.model
    if not weights:
        raise InputError(f"{found.path} holds no raw weights: leave out --weights model")
    architecture = found.architecture
    if flags.pretrained:
        if "pretrained" not in (architecture or {}):
            raise InputError(f"--pretrained: {found.path} is whole without, leave it out")
        architecture = architecture | {"pretrained": flags.pretrained}
    with asked_of_user(about=str(found.path)):
        return models.load(
            weights, architecture, args=found.args, reversed_time=found.reversed_time
        )


def check_model(flags: SampleFlags, found: Checkpoint, model: models.Denoiser) -> None:
    """Refuse a --model that is not the checkpoint's."""
    if not flags.model:
        return
    with asked_of_user():
        asked = models.architecture(flags.model)
    if isinstance(asked.get("patch_size"), int):
        asked = asked | {"patch_size": (asked["patch_size"],) * len(model.patch)}
    # A network that lacks one of them is of another family.
    asked = {k: v for k, v in asked.items() if k not in OF_TRAINING or k not in model.config}
    stored = {name: model.config.get(name) for name in asked}
    if asked != stored:
        raise InputError(f"--model {flags.model}, but {found.path} has {stored}")


def with_data(flags: SampleFlags, found: Checkpoint) -> SampleFlags:
    """The flags of a command that reads data: unless they name a data set, its folder and
    --skip-corrupt are those that the checkpoint was trained with. A folder of stored latents is
    not taken: they have no held-out part, which the data themselves, elsewhere, may have.

    Raises:
        InputError: its folder is not here.
    """
    args = found.args
    if flags.dataset_name or "dataset_name" not in args:
        return flags
    recorded = args.get("data_path")
    path = flags.data_path or (recorded if isinstance(recorded, str) else None)
    if path and not flags.data_path and not os.path.isdir(path):
        raise InputError(
            f"{found.path} was trained on the data in {path}, which is not here: name their folder "
            "with --data-path"
        )
    if not flags.data_path and domains.stored_latents(path):
        path = None
    skip = flags.skip_corrupt or args.get("skip_corrupt") is True
    return dataclasses.replace(flags, data_path=path, skip_corrupt=skip)


def check_codec(flags: SampleFlags, found: Checkpoint, domain: domains.Domain) -> None:
    """Refuse a codec that cannot decode what the model was trained on.

    Another --vae may be asked for, since decoders are trained anew for the latents of one encoder
    (Stable Diffusion's ema and mse); the scale has to be the same.
    """
    ours = domain.identity
    stored = dict(found.codec)
    if flags.vae:
        stored.pop("sha256", None)
    if key := first_difference(stored, ours):
        raise InputError(f"{found.path}: {domain.unlike(key, stored[key], ours[key])}")


def precision_of(flags: SampleFlags, device: torch.device) -> str:
    if flags.bf16:
        return "bf16"
    return default_precision(device) if flags.tf32 else "fp32"


def domain_of(
    flags: SampleFlags, found: Checkpoint, model: models.Denoiser,
    device: torch.device | str = "cpu",
) -> domains.Domain:  # fmt: skip
    """The domain that the checkpoint was trained on, as far as it says; public files say nothing of
    their data, and are taken as ImageNet in Stable Diffusion latents.

    Args:
        device: where captions are encoded.
    """
    args, (channels, *axes) = found.args, (model.in_channels, *model.config["input_size"])
    name = flags.dataset_name or args.get("dataset_name")
    size = flags.image_size or args.get("image_size")
    domain = domains.build(
        name or "imagenet-1k",
        data_path=flags.data_path,
        skip_corrupt=flags.skip_corrupt,
        image_size=size or (None if name else axes[-1] * 8),
        num_classes=model.num_classes,
        vae=flags.vae or args.get("vae"),
        text_encoder=flags.text_encoder or args.get("text_encoder"),
        num_frames=args.get("num_frames"),
        frame_stride=args.get("frame_stride"),
        cache_dir=flags.cache_dir,
        device=device,
    )
    if tuple(domain.shape) != (channels, *axes):
        raise InputError(
            f"{found.path} works on inputs of {(channels, *axes)}, but {domain.name} with --vae "
            f"{domain.vae} at {domain.image_size} pixels has {tuple(domain.shape)}"
        )
    if model.text_width != domain.text_width:
        raise InputError(
            f"{found.path} takes texts of {model.text_width} numbers, and those of --text-encoder "
            f"{domain.text_encoder} have {domain.text_width}: give the one it was trained with"
        )
    if flags.num_classes not in (None, domain.num_classes):
        raise InputError(
            f"--num-classes {flags.num_classes}, but {found.path} has {domain.num_classes}"
        )
    return domain
