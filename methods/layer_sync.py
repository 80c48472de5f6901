"""LayerSync and its ablations, and plain SiT."""

import torch
from torch import nn

from domains import Domain
from layersync import SIMILARITIES, LayerSync, check_pairs, default_pair, default_weight
from models import SiT
from runtime.config import TrainConfig
from runtime.errors import InputError
from runtime.random import seed_of

from .method import Method, literal, schedule_of, settled


def vanilla(config: TrainConfig, model: SiT, domain: Domain) -> tuple[TrainConfig, Method]:
    return config, Method()


def layer_sync(config: TrainConfig, model: SiT, domain: Domain) -> tuple[TrainConfig, Method]:
    student, teacher = default_pair(model.depth)
    config = settled(config, encoder_depth=student, gt_encoder_depth=teacher)
    return synced([(config.encoder_depth, config.gt_encoder_depth)], config, model)


def multiple_sync(config: TrainConfig, model: SiT, domain: Domain) -> tuple[TrainConfig, Method]:
    try:
        pairs = [(student, teacher) for student, teacher in literal(config.multi_blocks_match)]
    except (ValueError, TypeError):
        pairs = []
    if not pairs or not all(type(block) is int for pair in pairs for block in pair):
        raise InputError(
            f"--multi-blocks-match {config.multi_blocks_match!r} names no pairs: "
            "write it like '[(2,6),(4,8)]'"
        )
    return synced(pairs, config, model)


def synced(
    pairs: list[tuple[int, int]], config: TrainConfig, model: SiT
) -> tuple[TrainConfig, Method]:
    check_pairs(pairs, model.depth)
    config = settled(config, reg_weight=default_weight(model.depth))
    sync = LayerSync(
        pairs,
        config.reg_weight,
        schedule=schedule_of(config),
        similarity=SIMILARITIES[config.similarity],
        stop_gradient=config.stop_gradient,
        reverse=config.reverse_sync,
        teacher=config.teacher,
    )
    compares_images = config.teacher == "other_image" or config.similarity.startswith("centred")
    teacher = random_teacher(model, config.global_seed) if config.teacher == "random" else None
    return config, Method(sync, teacher=teacher, least_images=2 if compares_images else 1)


def random_teacher(model: SiT, seed: int) -> SiT:
    """A frozen model of random weights, whose blocks do something: as SiT begins they do not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "random teacher"))
        teacher = SiT(**model.config, class_dropout_prob=0.0)
        for block in teacher.blocks:
            nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.02)
            nn.init.normal_(block.adaLN_modulation[-1].bias, std=0.2)
    return teacher.eval().requires_grad_(False)
