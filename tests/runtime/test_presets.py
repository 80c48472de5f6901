"""Presets are what was published, restated here: a table compared with itself proves nothing."""

from typing import get_args, get_type_hints

import pytest

from methods.layer_sync import WEIGHTS
from runtime.config import COSINES, TrainConfig, parse
from runtime.presets import PRESETS

# Tables 10 and 11 of the paper: model, iterations, student, teacher, weight. Where they are silent:
# 400K of t1-b and t1-l from Table 5, 5,004 steps an epoch of 1,281,167 images, 0.2 of t8.
PAPER = {
    "t1-b": ("SiT-B/2", 400_000, 4, 7, 0.3),
    "t1-l": ("SiT-L/2", 400_000, 8, 18, 0.2),
    "t1-xl": ("SiT-XL/2", 800_000, 8, 16, 0.2),
    "t2": ("SiT-XL/2", 4_000_000, 8, 16, 0.2),
    "fig2": ("SiT-XL/2", 400_000, 8, 16, 0.2),
    "t5-b": ("SiT-B/2", 400_000, 4, 7, 0.3),
    "t5-xl": ("SiT-XL/2", 400_000, 8, 16, 0.3),
    "t6": ("SiT-B/2", 400_000, 2, 8, 0.2),
    "t8": ("SiT-XL/2", 120_000, 7, 16, 0.2),
    "fig18": ("SiT-XL/2", 4_000_000, 8, 16, 0.2),
    "official": ("SiT-XL/2", 7_005_600, 8, 16, 0.2),
}


def parsed(preset: str) -> TrainConfig:
    return parse(TrainConfig, PRESETS, ["--preset", preset])


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_paper_is_trained_as_the_paper_says(name):
    row = parsed(name)
    pair = row.encoder_depth, row.gt_encoder_depth
    assert (row.model, row.max_steps, *pair, row.reg_weight) == PAPER[name]
    assert (row.lr, row.weight_decay, row.clip_grad_norm, row.lr_warmup) == (1e-4, 0, 0, 0)
    assert (row.global_batch_size, row.ema_decay, row.class_dropout_prob) == (256, 0.9999, 0.1)
    assert (row.path_type, row.prediction, row.loss_type) == ("Linear", "velocity", "layer_sync")
    assert (row.dataset_name, row.hflip, row.learn_sigma) == ("imagenet-1k", True, True)


def test_the_public_codes_settings_are_those_that_a_machine_would_choose_otherwise():
    official, paper = parsed("official"), parsed("t2")
    assert (official.precision, official.compile) == ("tf32", "off")
    assert (paper.precision, paper.compile) == (None, "auto")


def test_every_similarity_has_the_published_weight_of_cosines_or_its_own():
    asked = set(get_args(get_type_hints(TrainConfig)["similarity"]))
    assert asked == COSINES | set(WEIGHTS) and not COSINES & set(WEIGHTS)


def test_epochs_take_the_place_of_a_presets_steps():
    words = ["--preset", "official", "--epochs", "80"]
    assert parse(TrainConfig, PRESETS, words).max_steps is None
    assert parse(TrainConfig, PRESETS, [*words, "--max-steps", "7"]).max_steps == 7


@pytest.mark.parametrize(
    ("preset", "similarity", "weight"),
    [
        ("t6", "cosine", 0.2),
        ("t6", "centred", 0.2),
        ("t6", "smooth_l1", None),
        ("t6", "trd", None),
        ("wan-ssv2", "trd", 0.5),
        ("wan-ssv2", "cosine", None),
    ],
)
def test_a_presets_weight_is_of_its_similarity(preset, similarity, weight):
    """Cosines share it; None: what its authors published, or to be given."""
    words = ["--preset", preset, "--similarity", similarity]
    assert parse(TrainConfig, PRESETS, words).reg_weight == weight
    assert parse(TrainConfig, PRESETS, [*words, "--reg-weight", "3"]).reg_weight == 3


@pytest.mark.parametrize(
    ("name", "steps", "loss_type"),
    [
        ("repa-run", 4_000_000, "repa"),
        ("sra-run", 4_000_000, "sra"),
        ("reed-run", 300_000, "external"),
    ],
)
def test_rivals_are_trained_as_their_authors_say(name, steps, loss_type):
    row = parsed(name)
    assert (row.model, row.max_steps, row.loss_type) == ("SiT-XL/2", steps, loss_type)
    assert (row.lr, row.weight_decay, row.clip_grad_norm) == (1e-4, 0, 1.0)
    assert (row.global_batch_size, row.ema_decay, row.class_dropout_prob) == (256, 0.9999, 0.1)
    assert (row.vae, row.hflip, row.learn_sigma, row.precision) == ("mse", False, False, "bf16")


def test_reed_warms_the_velocity_up_and_has_two_targets():
    row = parsed("reed-run")
    assert (row.reg_weight, row.velocity_warmup) == (0.5, 50_000)
    assert row.targets == '[(8, "features/dinov2", 1.0), (16, "features/qwen2-vl", 0.5)]'
