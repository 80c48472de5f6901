"""RESULTS.md, from docs/results/sweeps: every figure with its spread, command and machine.

python -m experiments.results
"""

import re
import shlex
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from evaluations.metrics import pace
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write

from .publish import FOLDER, TRAINING, Published, flags_of, load
from .rows import layer_sync, vanilla
from .runs import ROOT
from .table import (
    Result,
    baseline_of,
    cells,
    compared,
    difference,
    differences,
    groups_of,
    markdown,
    mean_and_deviation,
    mixture,
    names_of,
    over_baseline,
    pair_of,
    values_of,
)

PAGE = ROOT / "RESULTS.md"
SHOWN = {layer_sync().name, "layer_sync-first"}  # rows at a glance, beside vanilla
SCORED = "scores/"  # before the names of what logs hold of --score-every
DISTANCE = re.compile(r"fd_|fad|\bfid\b|F[IAV]D$|Frechet")
ABOUT_SUMMARY = """
Every interval is one of many: of twenty without any effect one is expected to leave out zero.
Runs that several sweeps have made stand here once, as they were scored by the most samples.
Sweeps of pairs, weights and depths have no row here; theirs are below.
"""
HEAD = """# Results

What sweeps have measured with this code; `python -m experiments.results` makes this page of the
files in docs/results/sweeps. Cells are mean ± standard deviation over seeds (n); differences are
paired by seed, with 95 % intervals. Losses are of the averaged weights (ema) and of the raw ones
(model); `fd_` and `kd_classifier` are Frechet and kernel distances between features of a small
classifier. The paper's numbers stand in the text above a table, or in a column where the runs are
its own: small runs are no reproduction of it. Speed is in [docs/speed.md](docs/speed.md).

**No GPU was at hand.** Not run are the setting most likely to show the paper's gain (24 blocks,
without classes, 8,000 steps: `--preset evidence`), the gate on it, and all rows at the paper's
size. [docs/findings.md](docs/findings.md#the-evidence) has their commands, and what was measured
of why LayerSync does not help here.
"""


@dataclass(frozen=True)
class Flags:
    """Write RESULTS.md anew."""

    results: Path = FOLDER  # files of experiments.publish
    out: Path = PAGE  # the page to write


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    files = sorted(flags.results.glob("*.json"))
    if not files:
        raise InputError(f"--results {flags.results} holds no results (*.json)")
    found = {path.stem: load(path) for path in files}
    parts = [HEAD, summary(found), *(section(name, one) for name, one in found.items())]
    with atomic_write(flags.out) as file:
        file.write("\n".join(parts).encode())
    print(f"{flags.out}: {len(files)} results")


def summary(found: dict[str, Published]) -> str:
    """LayerSync beside vanilla, in every preset of a sweep that has both: the loss on held-out data
    and the Frechet distance of samples, of which less is better. Runs that several sweeps have
    made are shown once, as they were scored by the most samples; fewer seeds of them are shown if
    they were scored by more."""
    told: dict[tuple[Hashable, frozenset[int]], tuple[int, list[list[str]]]] = {}
    for name, one in found.items():
        groups = groups_of(one.results)
        several = len({result.record["preset"] for result in one.results}) > 1
        for (experiment, row), ours in groups.items():
            record = ours[0].record
            preset = record["preset"]
            base = groups.get((experiment, f"{preset}-{vanilla().name}"))
            if row.removeprefix(f"{preset}-") not in SHOWN or not base:
                continue
            rows = []
            for score in (compared(base), *distances_in(base)):
                values = [mean_and_deviation(values_of(runs, score)) for runs in (base, ours)]
                gap, said = difference(ours, base, score), decided(ours, base, score)
                label = f"[{name}](#{name})" + (f", {preset}" if several else "")
                rows.append([label, "{}:{}".format(*pair_of(record)), score, *values, gap, said])
            samples, before = samples_of(ours[0]), told.get(trained_as(ours))
            if before is None or samples > before[0]:
                told[trained_as(ours)] = samples, rows
    rows = [
        row
        for (runs, seeds), (samples, rows) in told.items()
        if not any(
            runs == others and seeds < more and samples <= by
            for (others, more), (by, _) in told.items()
        )
        for row in rows
    ]
    head = ["sweep", "pair", "score, less is better", "vanilla", "LayerSync"]
    head += ["LayerSync minus vanilla, 95 % interval", "verdict"]
    return "## At a glance\n\n" + markdown(head, rows) + ABOUT_SUMMARY


def trained_as(runs: Sequence[Result]) -> tuple[Hashable, frozenset[int]]:
    """Of two sweeps the first is equal where their runs are, and of a seed both have the same."""
    flags = flags_of(runs[0].record)
    told = {name: repr(flags.get(name)) for name in TRAINING | {"max_steps"}}
    seeds = frozenset(run.record["seed"] for run in runs)
    return (runs[0].record["name"], frozenset(told.items())), seeds


def samples_of(one: Result) -> int:
    """How many it was scored by; 0: nothing says so."""
    words = [word for command in one.record["commands"] for word in shlex.split(command)]
    asked = "--num-fid-samples"
    return int(words[words.index(asked) + 1]) if asked in words else 0


def distances_in(results: Sequence[Result]) -> list[str]:
    """The first of their Frechet distances."""
    names = [name for name in names_of(results) if DISTANCE.match(name)]
    return names[:1]


def paces(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of how soon runs that were scored in training have the score that they and the
    baseline both come to: the paper's own measure of speed, its 8.75x."""
    groups, rows = groups_of(results), []
    for (_, name), runs in groups.items():
        baseline = baseline_of(runs, groups)
        if not baseline or baseline is runs:
            continue
        logged = dict.fromkeys(key for one in runs for row in one.log for key in row)
        for score in (key for key in logged if DISTANCE.match(key.removeprefix(SCORED))):
            both = curves(baseline, runs, score)
            if both and (found := pace(*both)):
                steps, n = both[0], len(both[1])
                times = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f}, n={n})"
                rows.append([name, score.removeprefix(SCORED), f"{steps[-1]:g}", times])
    speed = "times as fast as the baseline to the same score, 95 % by bootstrap over seeds"
    return ["scored in training", "score", "steps", speed], rows


def curves(
    baseline: Sequence[Result], runs: Sequence[Result], score: str
) -> tuple[list[float], np.ndarray, np.ndarray] | None:
    """Of both, where they share seeds and steps: steps (S,), scores (seeds, S) twice."""
    found = [
        {run.record["seed"]: {row["step"]: row[score] for row in run.log if score in row}
         for run in group}
        for group in (baseline, runs)
    ]  # fmt: skip
    seeds = sorted(found[0].keys() & found[1].keys())
    if not seeds:
        return None
    steps = sorted(set.intersection(*(set(group[seed]) for group in found for seed in seeds)))
    if len(steps) < 2:
        return None
    values = ([[group[seed][step] for step in steps] for seed in seeds] for group in found)
    return steps, *map(np.array, values)


def decided(ours: list[Result], base: list[Result], of: str) -> str:
    """What the interval over seeds allows to say of a score of which less is better."""
    found = over_baseline(ours, base, of)
    if found is None or found.low is None or found.low <= 0 <= found.high:
        return "undecided"
    return "better" if found.high < 0 else "worse"


def section(name: str, found: Published) -> str:
    """Scores, what they are over the baseline's, and the tables of the sweep's own verdict."""
    made = (preset["table"] for preset in found.verdict.values() if "table" in preset)
    heads_and_rows = [cells(found.results), differences(found.results), paces(found.results)]
    heads_and_rows += ((one["head"], one["rows"]) for one in made)
    tables = "\n".join(markdown(*one) for one in heads_and_rows if one[1])
    title = found.results[0].record["reproduces"]
    picture = f"docs/results/sweeps/{name}.png"  # the page lies in the root
    shown = f"\n![{title}]({picture})\n" if (ROOT / picture).exists() else ""
    stop = "" if title.endswith("?") else "."
    by = sorted({network for one in found.results for network in one.scored_by.values()})
    seen = f"Scored by {', '.join(by)}. " if by else ""
    return (
        f"## {name}\n\n**{title}{stop}** {found.note}\n\n{tables}{shown}\n"
        f"```\n{found.command}\n```\n\nCommit {found.commit}, {found.machine}. {seen}"
        f"The commands of every run: docs/results/sweeps/{name}.json\n{mixture(found.results)}"
    )


if __name__ == "__main__":
    run(main)
