"""From flags to the parts of a run: its domain, transport, model and method.

python train.py --preset digits --dry-run
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import domains
from methods import METHODS, Method, check_flags, least_images
from models import Denoiser, Task, architecture, create, train_flops
from runtime.config import TrainConfig
from runtime.errors import InputError
from runtime.hardware import memory
from runtime.plan import GIB, Needs
from runtime.precision import compiles, default_precision
from transport import Transport, create_transport


def build(
    config: TrainConfig, device: torch.device
) -> tuple[TrainConfig, domains.Domain, Transport, Denoiser, Method]:
    """The parts that the flags describe, and the flags with every `None` decided.

    Raises:
        ValueError: flags that do not go together.
    """
    check_flags(config)
    pretrained = config.pretrained or architecture(config.model).get("pretrained")
    domain = domains.build(
        config.dataset_name, data_path=config.data_path, image_size=config.image_size,
        num_classes=config.num_classes, vae=config.vae, text_encoder=config.text_encoder,
        num_frames=config.num_frames, frame_stride=config.frame_stride, pretrained=pretrained,
        cache_dir=config.cache_dir, skip_corrupt=config.skip_corrupt, device=device,
    )  # fmt: skip
    config = dataclasses.replace(
        config,
        image_size=domain.image_size,
        pretrained=pretrained,
        num_classes=domain.num_classes,
        vae=domain.vae,
        text_encoder=domain.text_encoder,
        num_frames=domain.num_frames,
        frame_stride=domain.frame_stride,
        precision=config.precision or default_precision(device),
        compile=compiles(config.compile, device),
    )
    transport = create_transport(
        config.path_type, config.prediction, config.loss_weight, config.train_eps,
        config.sample_eps, config.time_shift,
    )  # fmt: skip
    task = Task(
        domain.shape, domain.num_classes, domain.multi_label, domain.text_width,
        transport.path.steps, config.learn_sigma, config.mask_frames,
        domain.pads, (config.path_type, config.prediction), config.precision == "bf16",
    )  # fmt: skip
    new = partial(
        create, config.model, task, depth=config.depth, hidden_size=config.hidden_size,
        num_heads=config.num_heads, dropout=config.dropout, pretrained=pretrained,
        lora_rank=config.lora_rank, lora_alpha=config.lora_alpha,
    )  # fmt: skip
    if not pretrained:
        model = described(new)  # all that a dry run shows
    if pretrained or not config.dry_run:
        torch.manual_seed(config.global_seed)
        model = new()
    if config.shard and pretrained_parts(model):
        raise InputError("--shard is for networks that are trained whole: give --lora-rank 0")
    model.activation_checkpointing = config.activation_checkpointing
    if config.sync_tokens == "all":
        model.keeps_condition_token = True
    config, method = METHODS[config.loss_type](config, model, domain)
    return config, domain, transport, model, method


def described(new: Callable[[], Denoiser]) -> Denoiser:
    """A model on the meta device: shapes alone.

    Raises:
        InputError: more weights than this machine has memory.
    """
    try:
        with torch.device("meta"):
            model = new()
    except RuntimeError as error:
        if "overflowed" not in str(error):
            raise
        raise InputError("these flags are of a model of more bytes than a number holds") from error
    parameters = sum(p.numel() for p in model.parameters())
    if 4 * parameters > memory():
        raise InputError(
            f"these flags are of a model of {parameters:,} parameters, {4 * parameters / GIB:,.0f} "
            f"GiB, and this machine has {memory() / GIB:.0f} GiB"
        )
    return model


def with_length(config: TrainConfig, images: int, ranks: int) -> TrainConfig:
    """The flags with `max_steps` decided.

    Args:
        images: of the data set.

    Raises:
        InputError: the global batch does not fit the data or the processes.
    """
    check_batch(config, ranks)
    batch = config.global_batch_size
    if images < batch:
        raise InputError(
            f"the data set has {images} images, fewer than one --global-batch-size {batch}"
        )
    steps = config.epochs * (images // batch) if config.max_steps is None else config.max_steps
    return dataclasses.replace(config, max_steps=steps)


def check_batch(config: TrainConfig, ranks: int) -> None:
    """
    Raises:
        InputError: the global batch cannot be shared out in micro-batches of as many images as
            the method needs.
    """
    batch, parts = config.global_batch_size, ranks * config.grad_accum
    if batch < 1 or batch % parts:
        raise InputError(
            f"--global-batch-size {batch} is not divisible by {ranks} processes x "
            f"{config.grad_accum} micro-batches"
        )
    least = least_images(config, ranks)
    if batch // parts < least:
        raise InputError(
            f"--loss-type {config.loss_type} compares images: a micro-batch needs {least} or more, "
            f"and --global-batch-size {batch} gives {batch // parts}"
        )


def needs_of(model: Denoiser) -> Needs:
    outside = pretrained_parts(model)
    own = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in outside)
    return Needs(own, train_flops(model), sum(p.numel() * p.element_size() for p in outside))


def pretrained_parts(model: Denoiser) -> list[nn.Parameter]:
    """Parameters that are not trained and in no checkpoint."""
    stored = model.state_dict().keys()
    return [p for name, p in model.named_parameters() if name not in stored]
