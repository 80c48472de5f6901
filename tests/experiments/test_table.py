"""The table, the curves and the page of runs whose numbers are known."""

import json
import shutil
import statistics

import pytest

from experiments import table
from tests.commands import refused, succeed

FIDS = {"vanilla": (40.0, 42.0, 47.0), "ours": (30.0, 31.0, 35.0)}
LOSSES = {"vanilla": (0.50, 0.52, 0.54), "ours": (0.49, 0.50, 0.53)}


@pytest.fixture
def folder(tmp_path):
    """Two rows, three seeds each, written by hand."""
    root = tmp_path / "table6"
    for index, name in enumerate(FIDS):
        for seed in range(3):
            run = root / f"t6-{name}-seed{seed}"
            trained = run / "000-SiT-B-2-x"
            trained.mkdir(parents=True)
            record = {
                "experiment": "table6", "preset": "t6", "name": f"t6-{name}", "index": index,
                "seed": seed, "max_steps": 4, "flags": {}, "commands": ["python train.py <&>"],
                "paper": {"fid": 31.02} if name == "ours" else {},
            }  # fmt: skip
            heldout = {"mean": LOSSES[name][seed]}
            entry = {"ema": heldout, "model": heldout}
            (run / "run.json").write_text(json.dumps(record))
            (run / "heldout.json").write_text(
                json.dumps({"held_out": True, "checkpoints": [entry]})
            )
            score = {"scores": {"fid": FIDS[name][seed]}}
            (run / "samples.score.json").write_text(json.dumps(score))
            lines = [{"step": s, "loss": 1 / s, "images_per_second": seed + 5} for s in (1, 2, 4)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (trained / "log.jsonl").write_text(text + '{"step": 5, "lo')
    return root


def test_mean_deviation_n_and_the_papers_number(folder, tmp_path):
    said = succeed("experiments.table", folder, "--out", tmp_path / "out").out
    assert said == (tmp_path / "out/table.md").read_text()
    head, _, first, second = ([c.strip() for c in r.split("|")[1:-1]] for r in said.splitlines())
    assert head[:3] == ["run", "steps", "seeds"] and head[-1] == "paper"
    cells = dict(zip(head, second, strict=True))
    deviation = statistics.stdev(FIDS["ours"])
    assert cells["run"] == "t6-ours" and cells["seeds"] == "0, 1, 2"
    assert cells["FID"] == f"32 ± {deviation:.2g} (n=3)"
    assert cells["paper"] == "FID 31.02" and first[-1] == "-"
    assert dict(zip(head, first, strict=True))["FID"].startswith("43 ± ")
    # Paired by seed: -0.01, -0.02, -0.01; Student's t of 2 degrees of freedom is 4.3027.
    reach = 4.3027 * statistics.stdev([0.01, 0.02, 0.01]) / 3**0.5
    low, high = -0.04 / 3 - reach, -0.04 / 3 + reach
    assert cells["held-out loss, ema, minus the baseline's"] == (
        f"-0.013 ({low:+.2g} to {high:+.2g}, n=3)"
    )


def test_a_difference_of_nothing_but_rounding_is_none(folder, tmp_path):
    losses = {"vanilla": (0.0, 0.0, 0.0), "ours": (0.1, 0.2, -0.3)}  # their sum is 3e-17
    for run in folder.iterdir():
        name, seed = run.name.removeprefix("t6-").split("-seed")
        entry = {"ema": {"mean": losses[name][int(seed)]}}
        kept = {"held_out": True, "checkpoints": [entry]}
        (run / "heldout.json").write_text(json.dumps(kept))
    said = succeed("experiments.table", folder, "--out", tmp_path / "out").out
    assert "| +0 (-0.66 to +0.66, n=3) |" in said


def rewrite(folder, **change):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_baseline_that_has_failed_is_not_replaced_by_another_row(folder, tmp_path):
    runs = [path for path in sorted(folder.iterdir()) if "vanilla" not in path.name]
    said = succeed("experiments.table", *runs, "--out", tmp_path / "out").out
    assert "| - | FID 31.02 |" in said


def test_rows_of_a_pool_are_averaged_and_carry_the_papers_number_together(folder, tmp_path):
    """As the paper states ten random pairs: mean and deviation over the pairs."""
    for path in folder.glob("*ours*"):
        seed = path.name[-1]
        rewrite(path, pool="random pairs", name=f"t6-pair-{seed}", index=1 + int(seed))
    said = succeed("experiments.table", folder, "--out", tmp_path / "out").out.splitlines()
    cells = [cell.strip() for cell in said[-1].split("|")[1:-1]]
    deviation = statistics.stdev(FIDS["ours"])
    assert cells[0] == "t6-random pairs, mean ± deviation over rows" and cells[-1] == "FID 31.02"
    assert f"32 ± {deviation:.2g} (n=3)" in cells
    assert all(line.endswith("| - |") for line in said[2:-1])


def test_one_seed_has_no_deviation(folder, tmp_path):
    runs = [folder / f"t6-{name}-seed1" for name in FIDS]
    said = succeed("experiments.table", *runs, "--out", tmp_path / "out").out
    assert "| 42 (n=1) |" in said and "| -0.02 (n=1) |" in said and "±" not in said


def test_the_same_runs_give_the_same_bytes_in_any_order(folder, tmp_path):
    folders = sorted(folder.iterdir())
    for out, order in (("a", folders), ("b", folders[::-1])):
        table.write(table.read(order), tmp_path / out, "Runs")
    for name in ("table.md", "curves.png", "index.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # How fast a machine was changes nothing.
    for path in folder.rglob("log.jsonl"):
        path.write_text(path.read_text().replace('images_per_second": ', 'images_per_second": 9'))
    table.write(table.read(folders), tmp_path / "c", "Runs")
    assert (tmp_path / "a/curves.png").read_bytes() == (tmp_path / "c/curves.png").read_bytes()


def test_text_is_escaped(folder, tmp_path):
    table.write(table.read(sorted(folder.iterdir())), tmp_path, "a < b")
    page = (tmp_path / "index.html").read_text()
    assert "a &lt; b" in page and "train.py &lt;&amp;&gt;" in page


def test_what_is_no_run_is_refused(folder, tmp_path):
    assert "holds no run of a sweep" in refused("experiments.table", tmp_path / "nothing")
    (folder / "t6-ours-seed0/run.json").write_text("{}")
    assert "is no record of a sweep" in refused("experiments.table", folder)
    (folder / "t6-ours-seed0/run.json").write_text("{")
    assert "is no JSON" in refused("experiments.table", folder)


@pytest.mark.parametrize("name", ["heldout.json", "samples.score.json"])
@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"held_out": true, "checkpoints": [], "floor": 1}',
        '{"held_out": true, "checkpoints": [{"ema": {"mean": "low"}}], "scores": {"fid": "low"}}',
    ],
)
def test_a_score_that_is_none_is_refused_by_its_file(folder, name, content):
    (folder / "t6-ours-seed0" / name).write_text(content)
    said = refused("experiments.table", folder)
    assert f"t6-ours-seed0/{name} is not what the sweep wrote" in said and "delete it" in said


def test_scores_and_telemetry_in_a_log_are_curves_of_their_own():
    row = {"step": 2, "telemetry": {"cosine 2:4": 0.9}, "extractor": "classifier:0", "images": 20}
    assert table.flattened(row) == {"step": 2, "telemetry/cosine 2:4": 0.9, "images": 20}


def test_a_row_may_name_the_row_that_it_is_compared_to(folder, tmp_path):
    """Rows of another depth are compared to the vanilla run of that depth."""
    for number, name in enumerate(("deep", "deep-ours"), start=2):
        for seed in range(3):
            run = folder / f"t6-{name}-seed{seed}"
            shutil.copytree(folder / f"t6-{name[5:] or 'vanilla'}-seed{seed}", run)
            record = json.loads((run / "run.json").read_text())
            record |= {"name": f"t6-{name}", "index": number, "baseline": "t6-deep"}
            (run / "run.json").write_text(json.dumps(record))
            held = {"mean": number + (seed if name == "deep-ours" else 0)}
            entry = {"held_out": True, "checkpoints": [{"ema": held}]}
            (run / "heldout.json").write_text(json.dumps(entry))
    head, rows = table.cells(table.read(sorted(folder.iterdir())))
    paired = head.index("held-out loss, ema, minus the baseline's")
    found = {row[0]: row[paired] for row in rows}
    assert found["t6-vanilla"] == found["t6-deep"] == "-"
    assert found["t6-ours"].startswith("-0.013 ") and found["t6-deep-ours"].startswith("+2 ")


def test_the_gradient_ratio_that_a_run_looked_at_is_a_column(folder):
    """Its mean over the run: a weight means another thing at every width and scale of features."""
    log = folder / "t6-ours-seed0/000-SiT-B-2-x/log.jsonl"
    rows = [{"step": step, "telemetry": {"grad_ratio": step / 10}} for step in (1, 2)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    head, rows = table.cells(table.read(sorted(folder.iterdir())))
    assert [row[head.index("gradient ratio")] for row in rows] == ["-", "0.15 (n=1)"]
    assert all(len(row) == len(head) for row in rows)
