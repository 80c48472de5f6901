"""Table 4, small: scripts make data, text encoder and evaluator, and the sweep does the rest."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")

from domains.texts import TextEncoder
from tests.commands import call, refused, succeed
from tests.experiments.conftest import MODULES

MODULES["evaluations.motion"] = "evaluations.motion.__main__"
TINY = (
    "--hidden-size 16 --num-heads 2 --image-size 40 --ckpt-every 4 --log-every 2 "
    "--sample-every 0 --ema-decay 0.5 --no-tensorboard"
).split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    data = folder / "motions" / "HumanML3D"
    succeed("experiments.motions", "--out", folder / "motions", "--clips", 110)
    for script, out, length in (("text", "clip", "--steps"), ("evaluator", "t2m", "--epochs")):
        words = ["--data", data, "--out", folder / out, length, 1]
        succeed(f"experiments.motion_{script}", *words)
    return folder


def test_the_small_run_of_table_4_is_made_of_scripts_alone(made, tmp_path, here):
    where = ["--data-path", made / "motions" / "HumanML3D", "--text-encoder", made / "clip"]
    words = ["--preset", "motions", "--max-steps", 4, "--samples", 64, "--device", "cpu"]
    words += ["--results", tmp_path, "--reference", made / "t2m"]
    done = call("experiments.table4", *words, "--", *where, "--cache-dir", tmp_path / "c", *TINY)
    assert done.code == 0, done.err
    table = (tmp_path / "table4" / "table.md").read_text()
    assert "R-precision, top 3" in table and "Frechet distance" in table and "layer_sync" in table
    run = tmp_path / "table4" / "motions-layer_sync-seed0"
    found = json.loads((run / "samples.score.json").read_text())
    assert found["per_replication"] == 64 and found["scores"]["fd_trained"] > 0
    with np.load(run / "samples.npz") as samples:
        assert samples["arr_0"].shape == (64, 40, 263)
    assert (run / "samples.score.png").exists()


def test_an_evaluator_that_is_not_there_is_said_before_training(made, tmp_path):
    words = ["--preset", "motions", "--device", "cpu", "--results", tmp_path / "r"]
    said = refused("experiments.table4", *words, "--reference", tmp_path / "nothing")
    assert "there is no such folder; give that of the evaluator" in said
    assert not (tmp_path / "r").exists()


def test_a_text_encoder_learns_to_tell_captions_apart(made, tmp_path):
    """One of random weights hardly does."""
    data, out = made / "motions" / "HumanML3D", tmp_path / "clip"
    succeed("experiments.motion_text", "--data", data, "--out", out, "--steps", 100)
    pair = ["a person walks forward", "a person walks backward"]
    likeness = []
    for folder in (made / "clip", out):
        one, other = TextEncoder.load(str(folder), None, "cpu")(pair)
        likeness.append(float(one @ other / one.norm() / other.norm()))
    assert 1 - likeness[1] > 3 * (1 - likeness[0])
