"""What sweeps gave, kept in small files: the page of results and the comparison with a run."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from experiments import compare_run, publish
from experiments.runs import ROOT
from experiments.table import (
    Result,
    baseline_of,
    groups_of,
    names_of,
    over_baseline,
    values_of,
)
from runtime.files import write_json
from tests.commands import refused, succeed

STEPS = range(100, 1100, 100)


def log_of(loss, scale=1.0):
    return [{"step": s, "loss": scale * loss(s), "images_per_second": 50.0} for s in STEPS]


def falling(step):
    return 1 + 100 / step


@pytest.fixture
def results(tmp_path):
    """Two seeds of one row, 4 % apart."""
    runs = []
    for seed, scale in enumerate((0.98, 1.02)):
        record = dict(
            experiment="table6", preset="digits", name="digits-vanilla", index=0, seed=seed,
            reproduces="Table 6", flags={}, pair=[2, 4], max_steps=1000, paper={"fid": 36.19},
            commands=["train"],
        )  # fmt: skip
        log = log_of(falling, scale)
        runs.append(dict(record=record, scores={"FD": 2.0 + seed}, real={"FD": 0.5}, log=log))
    about = dict(command="python -m experiments.table6", note="Two.", commit="abc", machine="CPU")
    folder = tmp_path / "sweeps"
    write_json(folder / "table6.json", {"format": publish.FORMAT, **about, "runs": runs})
    return folder


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_page_has_every_figure_with_its_spread_and_command(results, tmp_path):
    succeed("experiments.results", "--results", results, "--out", tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| digits-vanilla | 1000 | 0, 1 | 2.5 ± 0.71 (n=2) | - | FID 36.19 |" in page
    assert "| real, held out |  |  | 0.5 |" in page
    assert "```\npython -m experiments.table6\n```" in page and "Commit abc, CPU" in page


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((0.7, 0.71, 0.69), "better"), ((0.9, 0.91, 0.89), "worse"),
        ((0.7, 0.9, 0.8), "undecided"), ((0.7,), "undecided"),
    ],
)  # fmt: skip
def test_at_a_glance_says_no_more_than_the_interval_over_seeds(results, tmp_path, losses, said):
    beside_vanilla(results / "table6.json", losses)
    (row,) = at_a_glance(results, tmp_path, "table6")
    assert row.endswith(f"| {said} |")


def beside_vanilla(path, losses, *command):
    """A seed of LayerSync for each loss in a published file, beside vanilla's."""
    content = json.loads(path.read_text())
    first = content["runs"][0]
    commands = [*first["record"]["commands"], *command]
    rows = {"vanilla": (0.8, 0.81, 0.79)[: len(losses)], "layer_sync": losses}
    content["runs"] = [
        first | dict(
            record=first["record"] | dict(
                name=f"digits-{name}", index=index, seed=seed, commands=commands
            ),
            scores={"held-out loss, ema": loss},
        )
        for index, (name, of) in enumerate(rows.items())
        for seed, loss in enumerate(of)
    ]  # fmt: skip
    write_json(path, content)


def at_a_glance(results, folder, name):
    page = folder / "RESULTS.md"
    succeed("experiments.results", "--results", results, "--out", page)
    return re.findall(rf"^\| \[{name}\]\(#{name}\) .*$", page.read_text(), re.M)


def test_runs_that_two_sweeps_made_are_shown_once_as_scored_by_the_most_samples(results, tmp_path):
    for name in ("gate", "other", "rivals"):
        shutil.copy(results / "table6.json", results / f"{name}.json")
    scored = "python sample_ddp.py ODE --num-fid-samples"
    beside_vanilla(results / "gate.json", (0.7, 0.71), f"{scored} 300")
    beside_vanilla(results / "rivals.json", (0.7, 0.71), f"{scored} 10000")
    beside_vanilla(results / "table6.json", (0.7, 0.71), f"{scored} 40")
    beside_vanilla(results / "other.json", (0.7, 0.71, 0.72), f"{scored} 40")  # a seed more
    shown = {one: at_a_glance(results, tmp_path, one) for one in ("gate", "rivals", "table6")}
    assert [len(rows) for rows in shown.values()] == [0, 1, 0]
    assert len(at_a_glance(results, tmp_path, "other")) == 1
    for name in ("gate", "rivals"):  # then nothing speaks for the runs with a seed less
        (results / f"{name}.json").unlink()
    assert [len(at_a_glance(results, tmp_path, one)) for one in ("table6", "other")] == [0, 1]


def test_runs_are_paired_within_their_preset(results, tmp_path):
    """Seed 0 of one preset is no baseline for seed 0 of another."""
    content = json.loads((results / "table6.json").read_text())
    first = content["runs"][0]
    losses = {
        ("a", "vanilla"): 0.5,
        ("a", "layer_sync"): 0.6,
        ("b", "vanilla"): 5,
        ("b", "layer_sync"): 7,
    }
    content["runs"] = [
        first | dict(
            record=first["record"] | dict(
                preset=preset, name=f"{preset}-{row}", index=int(row == "layer_sync"), seed=seed
            ),
            scores={"held-out loss, ema": loss + seed, "fd_classifier": 10 * loss},
            real={"fd_classifier": 100 * loss},
        )
        for (preset, row), loss in losses.items() for seed in (0, 1)
    ]  # fmt: skip
    write_json(results / "table6.json", content)
    succeed("experiments.results", "--results", results, "--out", tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    for preset, gaps in {"a": ("+0.1", "+1"), "b": ("+2", "+20")}.items():
        for score, gap in zip(("held-out loss, ema", "fd_classifier"), gaps, strict=True):
            (row,) = re.findall(
                rf"^\| \[table6\]\(#table6\), {preset} \| 2:4 \| {score} .*$", page, re.M
            )
            assert f"| {gap} ({gap} to {gap}, n=2) | worse |" in row
        assert f"| {preset}, real, held out |" in page
        assert f"| {preset}-layer_sync | {gaps[0]} (" in page


def test_what_a_sweep_made_of_its_runs_is_a_second_table(results, tmp_path):
    said = {"digits": {"table": {"head": ["", "vanilla"], "rows": [["speed-up", "2.00"]]}}}
    content = json.loads((results / "table6.json").read_text())
    write_json(results / "table6.json", content | {"verdict": said})
    succeed("experiments.results", "--results", results, "--out", tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "\n\n|  | vanilla |\n| --- | --- |\n| speed-up | 2.00 |\n\n" in page


def test_runs_scored_in_training_are_timed_to_the_score_that_both_come_to(results, tmp_path):
    content = json.loads((results / "table6.json").read_text())
    slow = content["runs"]
    for number, run in enumerate(slow):
        run["log"] = [{"step": s, "scores/fd_classifier": (1 + number) / s} for s in STEPS]
    fast = json.loads(json.dumps(slow))
    for run in fast:
        run["record"] |= dict(name="digits-fast", index=1)
        run["log"] = [
            row | {"scores/fd_classifier": row["scores/fd_classifier"] / 2} for row in run["log"]
        ]
    write_json(results / "table6.json", content | {"runs": slow + fast})
    succeed("experiments.results", "--results", results, "--out", tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| digits-fast | fd_classifier | 1000 | 2.00 (2.00 to 2.00, n=2) |" in page


def test_the_committed_page_is_of_the_committed_results(tmp_path):
    succeed("experiments.results", "--out", tmp_path / "RESULTS.md")
    again = (tmp_path / "RESULTS.md").read_bytes()
    assert again == (ROOT / "RESULTS.md").read_bytes(), "python -m experiments.results"


def told(folder):
    """Of every published row with a baseline and every score: the baseline's mean, and the mean and
    the interval of what it is over that."""
    for path in folder.glob("*.json"):
        groups = groups_of(publish.load(path).results)
        for runs in groups.values():
            base = baseline_of(runs, groups)
            for score in names_of(runs) if base else ():
                if found := over_baseline(runs, base, score):
                    yield np.mean(values_of(base, score)), found.mean, found.low, found.high


@pytest.mark.parametrize("page", ["README.md", "docs/findings.md"])
def test_the_tables_that_people_read_are_of_the_committed_results(page):
    """Every `mean, +difference (low to high)` in a row of a table, as far as it is written out."""
    number = r"([+-]?[\d.]+)"
    said = re.compile(rf"\| {number}, {number} \({number} to {number}\)")
    text = (ROOT / page).read_text()
    cells = [found.groups() for line in text.splitlines() for found in said.finditer(line)]
    published = [row for row in told(publish.FOLDER) if None not in row]
    assert len(cells) >= 16
    for cell in cells:
        digits = [10.0 ** -len(word.partition(".")[2]) for word in cell]
        values = [float(word) for word in cell]
        close = (
            all(abs(a - b) <= 0.501 * unit for a, b, unit in zip(values, row, digits, strict=True))
            for row in published
        )
        assert any(close), f"{page}: {cell}"


@pytest.mark.parametrize(
    "scale, says", [(1.0, "within"), (1.2, "half widths above"), (0.8, "half widths below")]
)
def test_a_run_is_within_its_band_or_a_number_outside(results, tmp_path, scale, says):
    log = written(tmp_path / "log.jsonl", log_of(falling, scale))
    words = ["--against", "digits-vanilla", "--results", results, "--out", tmp_path / "c.png"]
    said = succeed("experiments.compare_run", log, *words).out
    line = next(line for line in said.splitlines() if line.startswith("loss"))
    assert says in line and f"{(scale - 1) * falling(1000):+.2g}" in line
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_a_curve_that_crosses_the_band_is_not_within_it():
    steps = np.arange(1, 101)
    band = compare_run.Band(steps, np.ones(100), np.full(100, 0.1))

    def said(*off):
        return compare_run.verdict(band.distances(dict(zip(steps.tolist(), off, strict=True))))

    assert said(*[1.0] * 100) == said(*[1.05, 0.95] * 50) == "within"
    assert said(*[1.5, 0.5] * 50) == "5.0 half widths off, above and below"
    assert said(*[1.5] * 100) == "5.0 half widths above"
    assert said(*[0.5] * 100) == "5.0 half widths below"


def own_run(folder, scale=1.0, **args):
    """What train.py leaves of a run, as far as it is compared."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"ema": {}, "args": args}, folder / "checkpoints" / "0001000.pt")
    written(folder / "log.jsonl", log_of(falling, scale))
    return folder


def test_runs_on_other_data_are_not_laid_over_each_other(results, tmp_path):
    content = json.loads((results / "table6.json").read_text())
    for run in content["runs"]:
        run["record"]["commands"] = ["python train.py --preset digits --lr 0.5 --max-steps 1000"]
    write_json(results / "table6.json", content)
    words = ["--against", "digits-vanilla", "--results", results, "--out", tmp_path / "c.png"]
    photographs = own_run(tmp_path / "000-SiT-a", dataset_name="folder", image_size=32)
    said = refused("experiments.compare_run", photographs, *words)
    assert "cannot be compared: --dataset-name is 'folder' here and 'digits' there" in said
    alike = own_run(tmp_path / "001-SiT-b", dataset_name="digits", lr=0.1, max_steps=20)
    said = succeed("experiments.compare_run", alike, *words).out
    assert "within" in said and "note: --lr is 0.1 here and 0.5 there\n" in said


def test_a_run_finds_the_reference_that_is_most_like_it(results, tmp_path):
    content = json.loads((results / "table6.json").read_text())
    (first, second), runs = content["runs"], []
    for name, flags in {
        "a": "--loss-type vanilla", "b": "--loss-type vanilla --lr 0.5", "c": "--reg-weight 0.5",
        "d": "--loss-type vanilla --dataset_name synthetic", "e": "", "f": "--encoder-depth 3",
        "g": "",
    }.items():  # fmt: skip
        for run in (first, second):
            commands = [f"python train.py --preset digits {flags} --max-steps 1000"]
            record = run["record"] | {"name": f"digits-{name}", "commands": commands}
            record |= {"pair": [2, 4], "max_steps": 100 if name == "g" else 1000}
            runs.append(run | {"record": record})
    write_json(results / "table6.json", content | {"runs": runs})
    words = ["--results", results, "--out", tmp_path / "c.png"]
    for number, (flags, expected) in enumerate([
        ({"loss_type": "vanilla"}, "digits-a"), ({"loss_type": "vanilla", "lr": 0.5}, "digits-b"),
        ({"loss_type": "layer_sync"}, "digits-e"),
        ({"loss_type": "layer_sync", "reg_weight": 0.2, "encoder_depth": 2}, "digits-e"),
        ({"loss_type": "layer_sync", "reg_weight": 0.5, "encoder_depth": 2}, "digits-c"),
        ({"loss_type": "layer_sync", "max_steps": 90}, "digits-g"),
    ]):  # fmt: skip
        run = own_run(tmp_path / f"00{number}-SiT", dataset_name="digits", **flags)
        assert f"on those of {expected}\n" in succeed("experiments.compare_run", run, *words).out
    other = own_run(tmp_path / "009-SiT", dataset_name="folder", loss_type="vanilla")
    said = refused("experiments.compare_run", other, *words)
    assert "no reference is of this run's data and --loss-type" in said
    log = written(tmp_path / "log.jsonl", log_of(falling))
    assert "--against is missing" in refused("experiments.compare_run", log, *words)


def test_runs_of_ones_own_are_a_band_without_the_run_itself(tmp_path):
    for number, scale in enumerate((0.98, 1.02, 1.5)):
        own_run(tmp_path / f"00{number}-SiT-own", scale, dataset_name="folder")
    run, words = tmp_path / "002-SiT-own", ["--out", tmp_path / "c.png"]
    for against in ([tmp_path], [tmp_path / "000-SiT-own", tmp_path / "001-SiT-own" / "log.jsonl"]):
        said = succeed("experiments.compare_run", run, *words, "--against", *against).out
        assert "mean of 2" in said and "half widths above" in said and "note" not in said
    said = succeed("experiments.compare_run", run / "log.jsonl", *words, "--against", tmp_path).out
    assert "mean of 2" in said
    alone = succeed("experiments.compare_run", run, *words, "--against", tmp_path / "000-SiT-own")
    assert "note: the band of one run is 2% of its mean" in alone.out
    late = own_run(tmp_path / "003-SiT-own", dataset_name="folder", sync_t_low=0.5)
    older = ["--against", tmp_path / "000-SiT-own"]  # of before there was this flag
    said = succeed("experiments.compare_run", late, *words, *older).out
    assert "note: --sync-t-low is 0.5 here and 0.0 there\n" in said


def test_a_run_that_has_just_begun_is_not_judged(results, tmp_path):
    log = written(tmp_path / "log.jsonl", log_of(falling, 3.0)[:2])
    words = ["--against", "digits-vanilla", "--results", results, "--out", tmp_path / "c.png"]
    assert "too early to tell" in succeed("experiments.compare_run", log, *words).out


def test_a_longer_run_is_held_against_the_references_where_they_end(results, tmp_path):
    """As good as they are, and better later: it has not come to be better at their last step."""
    rows = [{"step": s, "loss": falling(s)} for s in range(100, 3100, 100)]
    words = ["--against", "digits-vanilla", "--results", results, "--out", tmp_path / "c.png"]
    said = succeed("experiments.compare_run", written(tmp_path / "log.jsonl", rows), *words).out
    (line,) = [line for line in said.splitlines() if line.startswith("loss")]
    assert line.split()[1:4] == ["1000", "1.1", "1.1"] and line.endswith("within")
    later = written(tmp_path / "later.jsonl", rows[15:])
    said = succeed("experiments.compare_run", later, *words).out
    assert "no step of the references" in said


def test_losses_are_compared_where_the_last_line_is_of_scores(results, tmp_path):
    rows = [*log_of(falling), {"step": 1000, "scores": {"fd": 2.0}, "images": 500}]
    log = written(tmp_path / "log.jsonl", rows)
    words = ["--against", "digits-vanilla", "--results", results, "--out", tmp_path / "c.png"]
    said = succeed("experiments.compare_run", log, *words).out
    assert "loss" in said and "within" in said and "images " not in said


def test_seeds_that_agree_at_one_step_by_chance_make_no_narrow_band_there(results):
    runs = compare_run.references_of(results)["digits-vanilla"]
    before = compare_run.band_of(runs, "loss")
    for run in runs:
        run.log[6]["loss"] = falling(700)
    after = compare_run.band_of(runs, "loss")
    assert after.half[6] > 0.8 * before.half[6]


def test_runs_of_one_name_and_different_lengths_are_told_apart(results):
    content = json.loads((results / "table6.json").read_text())
    for run in content["runs"]:
        run["record"]["max_steps"] = 600
    write_json(results / "gate.json", content)
    found = compare_run.references_of(results)
    assert list(found) == ["digits-vanilla", "gate/digits-vanilla"]
    assert {run.record["max_steps"] for run in found["digits-vanilla"]} == {1000}


def test_a_presets_own_runs_have_its_name_however_long_others_are():
    """Of the committed ones, --against digits-vanilla: six blocks with classes, not 24 without."""
    runs = compare_run.references_of(publish.FOLDER)["digits-vanilla"]
    flags = publish.flags_of(runs[0].record)
    assert (flags["depth"], flags["num_classes"], flags["max_steps"]) == (None, None, 1500)


def test_another_size_of_the_model_is_said(tmp_path):
    run = own_run(tmp_path / "000-SiT", dataset_name="digits", model="SiT-S/2", depth=24)
    words = ["--out", tmp_path / "c.png", "--against", "digits-vanilla"]
    said = succeed("experiments.compare_run", run, *words).out
    assert "--depth is 24 here and 6 there" in said and "--hidden-size is 384 here" in said


def test_unknown_references_are_named(results, tmp_path):
    log = written(tmp_path / "log.jsonl", log_of(falling))
    said = refused("experiments.compare_run", log, "--results", results, "--against", "t1-xl")
    assert "--against t1-xl: choose from digits-vanilla, or name runs of yours" in said
    words = ["--against", "digits-vanilla", "--results", results]
    assert "there is no such log" in refused("experiments.compare_run", tmp_path / "no", *words)
    (results / "other.json").write_text("{}")
    assert "is no file of experiments.publish" in refused("experiments.compare_run", log, *words)


def run_folder(path, seed, flags="--lr 0.1", seen_by="classifier:aa"):
    """What a sweep leaves of a run of `results`' row."""
    command = f"python train.py --preset digits {flags} --global-seed {seed}"
    record = dict(
        experiment="table6", preset="digits", name="digits-vanilla", index=0, seed=seed,
        reproduces="Table 6", flags={}, pair=[2, 4], max_steps=1000, paper={}, commands=[command],
    )  # fmt: skip
    write_json(path / "run.json", record)
    write_json(path / "samples.score.json", {"scores": {"FD": 4.0}, "extractor": {"name": seen_by}})


def test_a_seed_is_added_where_the_first_ones_folders_are_gone(tmp_path):
    for seed in (0, 1, 2):
        run_folder(tmp_path / f"runs/{seed}", seed)
    first, out = tmp_path / "first.json", tmp_path / "sweep.json"
    words = ["--command", "python -m experiments.table6", "--out"]
    write_json(tmp_path / "verdict.json", {"digits": {"speed_up": 1.0}})
    old = [tmp_path / "runs/1", tmp_path / "runs/2", *words, first, "--commit", "abc"]
    old += ["--note", "Two.", "--verdict", tmp_path / "verdict.json"]
    succeed("experiments.publish", *old)
    succeed("experiments.publish", first, tmp_path / "runs/0", *words, out)
    found = publish.load(out)
    assert [one.record["seed"] for one in found.results] == [0, 1, 2]
    assert found.commit == f"abc; {publish.commit()}" and found.machine == publish.machine()
    assert found.note == "Two." and found.verdict == {"digits": {"speed_up": 1.0}}
    succeed("experiments.publish", first, *words, first, "--note", "No new run.")
    assert publish.load(first).commit == "abc" and publish.load(first).verdict
    again = refused("experiments.publish", out, tmp_path / "runs/0", *words, out)
    assert "RUNS hold a seed of digits-vanilla twice" in again
    run_folder(tmp_path / "other", 3, "--lr 0.2")
    said = refused("experiments.publish", out, tmp_path / "other", *words, tmp_path / "no.json")
    assert "RUNS hold digits-vanilla with different --lr" in said
    assert not (tmp_path / "no.json").exists()


def test_scores_say_whose_they_are_and_a_mixture_is_not_silent(tmp_path):
    words = ["--command", "python -m experiments.table6", "--note", "", "--out"]
    for seed, name in enumerate(("classifier:aa", "classifier:aa", "classifier:bb")):
        run_folder(tmp_path / f"runs/{seed}", seed, seen_by=name)
    (tmp_path / "sweeps").mkdir()
    page, kept = tmp_path / "page.md", tmp_path / "sweeps/table6.json"
    flags = ["--results", tmp_path / "sweeps", "--out", page]
    succeed("experiments.publish", tmp_path / "runs/0", tmp_path / "runs/1", *words, kept)
    succeed("experiments.results", *flags)
    said = page.read_text()
    assert "Scored by classifier:aa." in said and "Not comparable" not in said
    second = {"scores": {"FID": 9.0}, "extractor": {"name": "inception"}}
    write_json(tmp_path / "runs/0/again.score.json", second)  # drawn in another way, too
    words_of_two = [tmp_path / "runs/0", tmp_path / "runs/1", "--out", tmp_path / "t"]
    assert "Not comparable" not in succeed("experiments.table", *words_of_two).out
    (tmp_path / "runs/0/again.score.json").unlink()
    succeed("experiments.publish", tmp_path / "runs", *words, kept)
    succeed("experiments.results", *flags)
    warning = "Not comparable, scored by different networks: classifier:aa, classifier:bb"
    assert warning in page.read_text()
    assert warning in succeed("experiments.table", tmp_path / "runs", "--out", tmp_path / "t").out


def test_thinning_keeps_the_end_and_every_score():
    rows = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    rows.insert(500, {"step": 500, "scores/fd": 2.0})
    kept = publish.thinned(rows)
    assert len(kept) <= publish.POINTS + 1 and kept[-1] == rows[-1]
    assert {"step": 500, "scores/fd": 2.0} in kept


def test_what_is_published_can_be_read_again(results):
    found = publish.load(results / "table6.json")
    assert isinstance(found.results[0], Result) and found.results[1].record["seed"] == 1
    assert compare_run.references_of(results).keys() == {"digits-vanilla"}


def test_committed_commands_run_on_any_machine():
    for path in publish.FOLDER.glob("*.json"):
        commands = [one for run in publish.load(path).results for one in run.record["commands"]]
        assert commands and not [one for one in commands if re.search(r"[\s'=]/", one)], path
