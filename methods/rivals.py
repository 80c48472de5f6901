"""The other regularisers, with the settings that their authors published."""

import math
from typing import NamedTuple

from domains import Domain
from layersync import SRA, SRA2, Alignment, Dispersive, Target
from layersync.schedules import Schedule, sra_decay
from models import Denoiser
from runtime.config import TrainConfig
from runtime.errors import InputError

from .encoders import EncoderTargets
from .method import Method, literal, schedule_of, settled
from .store import FeatureStore, StoredTargets


class DispersiveSettings(NamedTuple):
    weight: float
    tau: float
    quarter: bool  # the block at a quarter of the depth; else the last


DISPERSIVE = {
    "jax": DispersiveSettings(0.5, 0.5, quarter=True),  # the paper's
    "torch": DispersiveSettings(0.25, 1.0, quarter=False),  # the released code's
}


def dispersive(config: TrainConfig, model: Denoiser, domain: Domain) -> tuple[TrainConfig, Method]:
    if domain.pads:
        raise InputError(
            f"--loss-type dispersive compares whole samples, and those of {domain.name} are padded"
        )
    chosen = DISPERSIVE[config.disp_variant]
    block = max(1, model.depth // 4) if chosen.quarter else model.depth
    config = settled(config, encoder_depth=block, reg_weight=chosen.weight, disp_tau=chosen.tau)
    term = Dispersive(
        checked(config.encoder_depth, model),
        config.reg_weight,
        tau=config.disp_tau,
        gather=config.disp_gather,
        schedule=schedule_of(config),
    )
    return config, Method(term)


# --repa-variant -> (weight, head, spatial normalization of the target)
REPA = {"repa": (0.5, "mlp", False), "irepa": (1.0, "conv", True)}
REPA_BLOCK = {12: 4, 24: 8, 28: 8}  # B, L, XL; else a third of the depth
REPA_GRIDS = ((16, 16), (32, 32))  # of images of 256 and 512 pixels, whose tokens are 2x2 latents


def repa(config: TrainConfig, model: Denoiser, domain: Domain) -> tuple[TrainConfig, Method]:
    weight, head, spatial_norm = REPA[config.repa_variant]
    block = REPA_BLOCK.get(model.depth, max(1, model.depth // 3))
    config = settled(config, encoder_depth=block, reg_weight=weight)
    targets = EncoderTargets(config.repa_encoder, config.repa_weights, model.grid, domain)
    alignment = Alignment(
        [Target(checked(config.encoder_depth, model), targets.width)],
        width=model.width, weight=config.reg_weight, grid=model.grid, head=head,
        spatial_norm=spatial_norm, velocity_warmup=config.velocity_warmup,
        schedule=schedule_of(config),
    )  # fmt: skip
    note = None
    if model.grid not in REPA_GRIDS:
        pixels, tokens = (" x ".join(map(str, n)) for n in (targets.encoder.size, model.grid))
        note = f"note: the encoder sees {pixels} pixels for {tokens} tokens: REPA's are 224 or 448"
    return config, Method(alignment, targets, note=note)


def external(config: TrainConfig, model: Denoiser, domain: Domain) -> tuple[TrainConfig, Method]:
    """Features that were stored before: any number of targets, each at its block."""
    asked = targets_of(config.targets)
    config = settled(config, reg_weight=0.5)
    stored = StoredTargets([folder for _, folder, _ in asked], domain, config.hflip)
    for store in stored.stores:
        check_tokens(store, model)
    alignment = Alignment(
        [
            Target(checked(block, model), store.width, weight, store.kind)
            for (block, _, weight), store in zip(asked, stored.stores, strict=True)
        ],
        width=model.width, weight=config.reg_weight, grid=model.grid,
        velocity_warmup=config.velocity_warmup, schedule=schedule_of(config),
    )  # fmt: skip
    return config, Method(alignment, stored)


def targets_of(asked: str) -> list[tuple[int, str, float]]:
    try:
        found = [(block, folder, float(weight)) for block, folder, weight in literal(asked)]
    except (ValueError, TypeError, OverflowError):  # the last: a whole number beyond floats
        found = []
    sound = all(
        type(block) is int and type(folder) is str and 0 <= weight < math.inf
        for block, folder, weight in found
    )
    if not found or not sound:
        raise InputError(
            f"--targets {asked!r} names no features: write it like "
            "'[(8, \"features/dinov2\", 1.0)]': block, folder of methods.features, weight"
        )
    return found


def check_tokens(store: FeatureStore, model: Denoiser) -> None:
    """
    Raises:
        InputError: as many tokens as another grid than the model's has.
    """
    tokens = math.prod(model.grid)
    if store.kind == "tokens" and store.card.shape[0] != tokens:
        raise InputError(
            f"{store.folder} has {store.card.shape[0]} tokens per image, and the model {tokens}: "
            f"make them again with methods.features --grid {model.grid[0]}"
        )


SRA_PAIRS = {12: (3, 8), 24: (6, 18), 28: (8, 20)}  # B, L, XL; else 1/4 and 3/4 of the depth
# --sra-variant -> (distance, weight, decays as in the paper)
SRA_SETTINGS = {"paper": ("smooth_l1", 0.2, True), "cos": ("cosine", 0.5, False)}


def sra_pair(depth: int) -> tuple[int, int]:
    return SRA_PAIRS.get(depth, (max(1, depth // 4), max(2, 3 * depth // 4)))


def sra(config: TrainConfig, model: Denoiser, domain: Domain) -> tuple[TrainConfig, Method]:
    student, teacher = sra_pair(model.depth)
    if config.sra_cos_axis == "tokens" and domain.pads:
        raise InputError(f"--sra-cos-axis tokens: samples of {domain.name} are padded")
    distance, weight, decays = SRA_SETTINGS[config.sra_variant]
    config = settled(config, encoder_depth=student, gt_encoder_depth=teacher, reg_weight=weight)
    schedule, note = schedule_of(config), None
    if decays and not config.sra_epoch_steps:
        note = (
            "note: the weight stays as it is; its paper's falls from epoch 150 on, with "
            "--sra-epoch-steps N"
        )
    if config.sra_epoch_steps:
        if not decays:
            raise InputError(
                f"--sra-epoch-steps: --sra-variant {config.sra_variant} does not decay"
            )
        last_full, per_tenth = (99, 800) if config.image_size == 512 else (149, 1000)
        schedule = times(schedule, sra_decay(config.sra_epoch_steps, last_full, per_tenth))
    return config, Method(
        SRA(
            checked(config.encoder_depth, model),
            checked(config.gt_encoder_depth, model),
            width=model.width,
            weight=config.reg_weight,
            distance=distance,
            cos_axis=config.sra_cos_axis,
            schedule=schedule,
        ),
        note=note,
    )


def sra2(config: TrainConfig, model: Denoiser, domain: Domain) -> tuple[TrainConfig, Method]:
    student, _ = sra_pair(model.depth)
    config = settled(config, encoder_depth=student, reg_weight=1.0)
    return config, Method(
        SRA2(
            checked(config.encoder_depth, model),
            width=model.width,
            patch=model.patch,
            channels=model.in_channels,
            weight=config.reg_weight,
            schedule=schedule_of(config),
        )  # fmt: skip
    )


def times(one: Schedule, other: Schedule) -> Schedule:
    return lambda step: one(step) * other(step)


def checked(block: int, model: Denoiser) -> int:
    if not 1 <= block <= model.depth:
        raise InputError(
            f"block {block} does not exist: --encoder-depth and --gt-encoder-depth are 1 to "
            f"{model.depth}"
        )
    return block
