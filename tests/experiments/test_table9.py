"""Table 9's counter: linear and quadratic terms are told apart, and nothing is left uncounted."""

import json

import torch

from experiments import table9
from layersync import LayerSync, Regulariser
from tests.commands import refused, succeed

CPU = torch.device("cpu")
FLAGS = table9.Flags(repeats=1)


class AllPairs(Regulariser):
    """Every image of the batch against every other one: the mean of their inner products."""

    blocks = (1,)

    def penalty(self, context):
        z = context.blocks[1].flatten(1)
        return (z @ z.T).mean()


def test_linear_and_quadratic_terms_are_told_apart():
    linear = table9.row_of("layer_sync", LayerSync([(1, 2)]), FLAGS, 32, CPU)
    quadratic = table9.row_of("all_pairs", AllPairs(), FLAGS, 32, CPU)
    assert abs(linear["exponent_of_flops"] - 1) < 0.01
    assert abs(quadratic["exponent_of_flops"] - 2) < 0.05
    # Forward: 2 B^2 N; backward: two products of the same size.
    batch, elements = 512, FLAGS.tokens * 32
    assert quadratic["points"][-1]["flops"] >= 3 * 2 * batch**2 * elements
    # A cosine reads each element a few times: products, norms, and as much again backwards.
    assert 5 < linear["points"][0]["flops"] / (32 * elements) < 40


def test_the_command(tmp_path):
    flags = ["--batch", 4, 8, "--repeats", 1]
    said = succeed("experiments.table9", *flags, "--device", "cpu", "--out", tmp_path).out
    assert "layer_sync" in said and "dispersive" in said
    linear, quadratic = json.loads((tmp_path / "table9.json").read_text())["rows"]
    assert [point["batch"] for point in linear["points"]] == [4, 8]
    assert linear["exponent_of_flops"] < 1.1 and quadratic["exponent_of_flops"] > 1.7
    assert (tmp_path / "table9.png").stat().st_size > 1000
    for name in ("nothing", "vanilla", "sra2"):
        assert "choose from layer_sync, disp" in refused("experiments.table9", "--loss-type", name)
    assert "--batch takes sizes that differ" in refused("experiments.table9", "--batch", 4, 4)
    assert "--batch takes two sizes" in refused("experiments.table9", "--batch", 4)
