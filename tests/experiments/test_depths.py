"""Depth is compared at equal cost: as many FLOPs, the same weight, the pair at the same places."""

import pytest
import torch

from experiments import depths
from experiments.scoring import PAPER
from experiments.sweep import setting_of
from models import Task, create, train_flops
from runtime.config import TrainConfig, parse
from runtime.presets import PRESETS
from tests.commands import refused


def rows_of(preset, *flags):
    words = ["--preset", preset, *flags]
    config = parse(TrainConfig, PRESETS, words)
    return config, depths.runs(setting_of(preset, config, PAPER, None))


@pytest.mark.parametrize(
    "preset, shape", [("digits", (1, 8, 8)), ("t1-b", (4, 32, 32)), ("evidence-cpu", (1, 28, 28))]
)
def test_every_depth_costs_the_same(preset, shape):
    config, rows = rows_of(preset)
    sizes = {row.flags["depth"]: row.flags["hidden_size"] for row in rows}
    with torch.device("meta"):
        costs = [
            train_flops(create(config.model, Task(shape, 10), depth=depth, hidden_size=width))
            for depth, width in sizes.items()
        ]
    assert list(sizes) == [6, 12, 24]
    assert max(costs) < 1.06 * min(costs)


def test_pairs_keep_their_places_and_rows_their_baselines():
    _, rows = rows_of("digits")
    ours = [row for row in rows if row.flags["loss_type"] == "layer_sync"]
    pairs = [(row.flags["encoder_depth"], row.flags["gt_encoder_depth"]) for row in ours]
    assert pairs == [(2, 4), (2, 4), (4, 8), (4, 8), (8, 16), (8, 16)]
    assert {row.flags["reg_weight"] for row in ours} == {0.2}  # else SiT-B's at 12 blocks
    by_name = {row.name: row for row in rows}
    for row in rows:
        base = by_name[row.baseline]
        assert base.flags["loss_type"] == "vanilla"
        assert base.flags.items() - {("loss_type", "vanilla")} <= row.flags.items()
    unlabelled = [row for row in rows if "no-labels" in row.name]
    assert len(unlabelled) == 6 and all(row.flags["num_classes"] == 0 for row in unlabelled)


def test_a_preset_without_labels_has_no_rows_with_them():
    _, rows = rows_of("evidence-cpu")
    assert len(rows) == 6 and all("no-labels" in row.name for row in rows)


def test_a_network_of_fixed_width_is_refused():
    said = refused("experiments.depths", "--preset", "wan-ssv2", "--dry-run")
    assert "--preset wan-ssv2: its network has no --hidden-size to change" in said
