"""Figures that are made of finished runs, and the rows of Table 8."""

from types import SimpleNamespace

import pytest
from PIL import Image

from experiments import distances, table8
from tests.commands import call
from tests.experiments.conftest import SHORT, TINY


@pytest.mark.parametrize("name, picture", [("figure2", "progress"), ("distances", "distances")])
def test_the_figure_is_drawn(name, picture, results, here):
    call(f"experiments.{name}", *SHORT, "--results", results, *TINY)
    with Image.open(results / name / f"{picture}.png") as image:
        assert min(image.size) > 100


@pytest.mark.slow
def test_figure_2_keeps_a_checkpoint_for_every_column(results, here):
    call("experiments.figure2", *SHORT, "--max-steps", 8, "--results", results, *TINY)
    folder = results / "figure2/digits-vanilla-seed0"
    assert len(list(folder.glob("*/checkpoints/*.pt"))) == 8


def test_the_distance_of_a_row():
    assert distances.distance({"encoder_depth": 2, "gt_encoder_depth": 7}) == 5
    assert distances.distance({"loss_type": "vanilla"}) == 0


def test_the_presets_own_pair_is_on_both_lines_of_distances():
    own = {"encoder_depth": 2, "gt_encoder_depth": 4}
    record = {"preset": "digits", "pair": [2, 4], "flags": own}
    assert distances.lines_of(record) == ["digits, student 2", "digits, teacher 4"]
    record["flags"] = own | {"encoder_depth": 1}
    assert distances.lines_of(record) == ["digits, teacher 4"]


def test_table_8_leaves_out_the_papers_blocks():
    setting = SimpleNamespace(student=7, teacher=16, depth=28)
    flag = "--skip-blocks"
    assert table8.samplings(setting) == {
        "whole": (),
        "between": (flag, "9", "11", "13", "15"),
        "after": (flag, "9", "11", "13", "15", "21"),
        "before": (flag, "1", "9", "11", "13", "15"),
        "all": (flag, "1", "9", "11", "13", "15", "21"),
    }
