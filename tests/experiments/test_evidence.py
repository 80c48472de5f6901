"""The evidence: from runs to what is said of them."""

import json

import numpy as np
import pytest

from experiments import evidence
from experiments.table import Result
from runtime.files import write_json
from tests.commands import refused, succeed
from tests.experiments.conftest import TINY

STEPS = [10, 20, 30, 40]


def learned(losses, probes=None):
    """Two seeds that differ by a hair."""
    curves = np.array([losses, 1.001 * np.array(losses)])
    if probes is None:
        probes = np.full((2, 4, 3), 0.5)
    return evidence.Learned(
        pair=(1, 3), losses=curves[..., None].repeat(5, -1), bins=curves[..., None].repeat(4, -1),
        probes=probes, dropped=np.full((2, 3), 0.1), images_per_second=np.array([8.0, 8.0]),
        telemetry={},
    )  # fmt: skip


def judged(**methods):
    return evidence.judged(STEPS, [0, 1], methods, [1, 3])["methods"]


def test_speed_up_is_the_steps_to_the_final_loss_of_vanilla():
    fast = judged(vanilla=learned([8.0, 4, 3, 2]), layer_sync=learned([6.0, 2, 1.5, 1]))
    found = fast["layer_sync"]
    assert found["speed_up"]["ratio"] == pytest.approx(2) and evidence.reached(found) == "20"
    slow = judged(vanilla=learned([8.0, 4, 3, 2]), layer_sync=learned([8.0, 6, 5, 4]))
    found = slow["layer_sync"]
    assert evidence.reached(found) == "never; vanilla has its own at 20"
    assert evidence.times(found) == "<1 (<1 to <1)"


def test_at_equal_score_a_faster_run_is_looked_at_earlier():
    """Its blocks know more at the end only because it is further: at equal loss they do not."""
    knows = np.arange(4.0)[None, :, None].repeat(2, 0).repeat(3, -1)  # by checkpoint
    found = judged(
        vanilla=learned([8.0, 6, 4, 2], knows), layer_sync=learned([6.0, 4, 2, 1], knows + 1)
    )
    assert found["layer_sync"]["equal_score"]["steps"] == pytest.approx([30, 30])
    ours, base = found["layer_sync"], found["vanilla"]
    assert evidence.lead(ours["equal_steps"], base["equal_steps"]).startswith("+100.0")
    assert evidence.lead(ours["equal_score"], ours["equal_score"]["vanilla"]).startswith("+0.0")
    _, rows = evidence.cells(STEPS, found)
    (said,) = (row[-1] for row in rows if row[0] == "probes' mean, equal loss")
    assert said == "300.0% ± 0.0%; vanilla 300.0% ± 0.0%"


def test_a_method_is_compared_with_vanilla_alone_whatever_else_was_run():
    fast, slow = learned([6.0, 4, 2, 1]), learned([9.0, 8, 7, 6])
    base = learned([8.0, 6, 4, 2])
    alone = judged(vanilla=base, layer_sync=fast)["layer_sync"]
    assert judged(vanilla=base, layer_sync=fast, dispersive=slow)["layer_sync"] == alone


def test_the_whole_command_on_tiny_runs(results, here):
    """Seven rows; finished ones are judged again without training."""
    methods = ["vanilla", "layer_sync", "dispersive", "layer_sync-first", "sra", "sra2"]
    methods.append("positive-control")
    words = ["--preset", "digits", "--max-steps", 4, "--samples", 20]
    words += ["--device", "cpu", "--results", results, *TINY]
    said = succeed("experiments.evidence", *words)
    found = json.loads((results / "evidence/evidence.json").read_text())["digits"]
    assert found["seeds"] == [0] and found["steps"] == [1, 2, 3, 4], said.out
    assert list(found["methods"]) == methods
    vanilla, ours = (found["methods"][name] for name in ("vanilla", "layer_sync"))
    assert vanilla["minus_vanilla"]["mean"] == 0 and vanilla["telemetry"] == {}
    assert len(ours["without_each_block"][0]) == 2 and ours["telemetry"]["grad_ratio"] > 0
    # The loss is that of evaluations.heldout, of fewer images.
    of_table = json.loads((results / "evidence/digits-vanilla-seed0/heldout.json").read_text())
    assert vanilla["curves"][0][-1] == pytest.approx(of_table["checkpoints"][0]["ema"]["mean"], 0.1)
    assert (results / "evidence/digits.png").stat().st_size > 20_000
    assert "speed-up by that" in said.out
    count = len(here)
    assert succeed("experiments.evidence", *words).out == said.out and len(here) == count
    # Published, it is a table of RESULTS.md.
    published = ["--out", results / "sweeps/evidence.json", "--command", "c", "--commit", "d"]
    published += ["--verdict", results / "evidence/evidence.json"]
    succeed("experiments.publish", results / "evidence", *published)
    page = results / "RESULTS.md"
    succeed("experiments.results", "--results", results / "sweeps", "--out", page)
    assert f"|  | {' | '.join(methods)} |" in page.read_text()
    assert "| speed-up by that, 95 % bootstrap | - |" in page.read_text()


def test_rows_without_vanilla_leave_what_was_judged_before(tmp_path, capsys, monkeypatch):
    write_json(tmp_path / "evidence.json", {"digits": "judged"})
    record = dict(preset="digits", name="digits-layer_sync", seed=0, index=0, flags={}, pair=[1, 2])
    log = [{"images_per_second": 1.0}]
    monkeypatch.setattr(evidence.table, "read_run", lambda _: Result(record, {}, {}, log))
    write_json(tmp_path / "progress.json", {"checkpoints": [], "dropped": []})
    evidence.verdict([tmp_path], tmp_path)
    assert "no seed is finished for all methods yet, vanilla among them" in capsys.readouterr().out
    assert json.loads((tmp_path / "evidence.json").read_text()) == {"digits": "judged"}


def test_it_is_planned_where_the_data_are_not(tmp_path):
    """On a cluster's login node, say; what runs asks for the data before anything is trained."""
    words = ["--preset", "evidence-cpu", "--results", tmp_path / "results", "--device", "cpu"]
    elsewhere = ["--", "--data-path", tmp_path / "none"]
    planned = succeed("experiments.evidence", *words, "--dry-run", *elsewhere).out
    assert planned.count("python train.py --preset evidence-cpu") == 7
    (look,) = (line for line in planned.splitlines() if "methods.features" in line)
    assert f"--extractor classifier:{tmp_path}" in look and look.endswith("--device cpu")
    assert "train-classifier" in planned
    imagenet = ["--", "--dataset_name", "imagenet-1k", "--data-path", tmp_path / "none"]
    planned = succeed("experiments.evidence", *words, "--dry-run", *imagenet).out
    assert "methods.features imagenet-1k --extractor inception" in planned
    said = refused("experiments.evidence", *words, *elsewhere)
    assert "train-images" in said or "t10k-images" in said
    assert not (tmp_path / "results").exists()
