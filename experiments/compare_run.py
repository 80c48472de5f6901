"""A run beside the reference curves of its preset: how far outside their band is it?

python -m experiments.compare_run results/000-SiT-Ti-2-digits --against digits-layer_sync
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from evaluations import pages
from evaluations.metrics import mean_interval
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.text import columns

from .publish import FOLDER, load
from .table import OF_THE_MACHINE, Result, log_rows

# Half of a band is so many deviations of the reference's seeds: those at that step, or those of all
# later steps together where they are larger, since few seeds agree by chance; and at least this
# part of the mean.
DEVIATIONS, LEAST = 2.0, 0.02
LATER = 0.25  # of the reference's steps; before, a loss falls too fast to be compared

Curve = dict[int, float]  # by step


@dataclass(frozen=True)
class Flags:
    """Overlay a run on the committed curves of its preset, and say where it leaves their band.

    The band is the mean of the reference's seeds, 2 deviations or 2 % to either side. What is
    called outside is the mean over the last three quarters of the steps that both have.
    """

    log: tyro.conf.Positional[Path] = tyro.MISSING  # a run's folder, or its log.jsonl
    against: str = ""  # the reference runs, PRESET-METHOD; left out, all there are are listed
    results: Path = FOLDER  # files of experiments.publish
    out: Path = Path("compare_run.png")  # the picture


class Band(NamedTuple):
    """What reference runs have of one quantity, at the steps that they have in common."""

    steps: np.ndarray
    mean: np.ndarray
    half: np.ndarray  # half its width

    def outside(self, curve: Curve) -> float | None:
        """How far a curve is from the mean, in half widths: its mean over the later steps; None
        where they have none in common."""
        steps = np.array([s for s in curve if self.later <= s <= self.steps[-1]])
        if not len(steps):
            return None
        values = np.array([curve[step] for step in steps.tolist()])
        mean, half = (np.interp(steps, self.steps, of) for of in (self.mean, self.half))
        return float(((values - mean) / half).mean())

    @property
    def later(self) -> float:
        return max(self.steps[0], LATER * self.steps[-1])


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    references = references_of(flags.results)
    if flags.against not in references:
        raise InputError(f"--against {flags.against}: choose from {', '.join(references)}")
    runs = references[flags.against]
    rows = log_rows(log_of(flags.log))
    if not rows:
        raise InputError(f"{flags.log} has no line yet")
    keys = dict.fromkeys(key for row in rows for key in row)  # scores have lines of their own
    names = [key for key in keys if key not in OF_THE_MACHINE | {"step"}]
    bands = {name: band for name in names if (band := band_of(runs, name))}
    curves = {name: curve_of(rows, name) for name in bands}
    draw(runs, bands, curves, flags)
    print(as_text(bands, curves, len(runs)))
    print(f"{flags.out}: the curves of {flags.log} on those of {flags.against}")


def references_of(folder: Path) -> dict[str, list[Result]]:
    """Published runs by name, those that differ in their seed alone together. Where several files
    have a name, it is that of the longest runs, and the others are FILE/NAME."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for path in sorted(folder.glob("*.json")):
        for result in load(path).results:
            groups.setdefault((path.stem, result.record["name"]), []).append(result)
    longest = sorted(groups, key=lambda key: -groups[key][0].record["max_steps"])
    found: dict[str, list[Result]] = {}
    for file, name in longest:
        found[f"{file}/{name}" if name in found else name] = groups[file, name]
    return dict(sorted(found.items()))


def log_of(asked: Path) -> Path:
    """
    Raises:
        InputError: there is none.
    """
    path = asked / "log.jsonl" if asked.is_dir() else asked
    if not path.is_file():
        raise InputError(f"{path}: there is no such log; name a run's folder, or its log.jsonl")
    return path


def curve_of(rows: Sequence[dict[str, float]], name: str) -> Curve:
    return {int(row["step"]): row[name] for row in rows if name in row}


def band_of(runs: Sequence[Result], name: str) -> Band | None:
    """None: no reference run has that, or it is nothing there."""
    curves = [curve for one in runs if (curve := curve_of(one.log, name))]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return None
    found = [mean_interval([curve[step] for curve in curves]) for step in steps]
    mean = np.array([one.mean for one in found])
    if not mean.any():
        return None
    spread = np.array([one.std or 0.0 for one in found])
    later = np.array(steps) >= LATER * steps[-1]
    pooled = np.sqrt((spread[later] ** 2).mean())
    half = np.maximum(DEVIATIONS * np.maximum(spread, pooled), LEAST * np.abs(mean).mean())
    return Band(np.array(steps), mean, half)


def as_text(bands: dict[str, Band], curves: dict[str, Curve], seeds: int) -> str:
    rows = []
    for name, band in bands.items():
        outside, last = band.outside(curves[name]), max(curves[name])
        reference = float(np.interp(last, band.steps, band.mean))
        value = curves[name][last]
        rows.append([
            name, str(last), f"{value:.4g}", f"{reference:.4g}",
            f"{value - reference:+.2g}", verdict(outside),
        ])  # fmt: skip
    head = ["", "step", "here", f"mean of {seeds}", "here minus it", "band"]
    return columns(head, rows)


def verdict(outside: float | None) -> str:
    if outside is None:
        return "too early to tell"
    if abs(outside) <= 1:
        return "within"
    return f"{abs(outside):.1f} half widths {'above' if outside > 0 else 'below'}"


def draw(
    runs: Sequence[Result], bands: dict[str, Band], curves: dict[str, Curve], flags: Flags
) -> None:
    """The band, its runs in grey, and the run that is compared."""
    across = min(3, max(1, len(bands)))
    figure, axes = pages.figure_of(-(-max(len(bands), 1) // across), across)
    for (name, band), axis in zip(bands.items(), axes.flat, strict=False):
        axis.fill_between(band.steps, band.mean - band.half, band.mean + band.half, color="0.88")
        for one in runs:
            plot(axis, curve_of(one.log, name), color="0.6", linewidth=1)
        plot(axis, curves[name], color="C3")
        axis.set_title(name)
        axis.set_xlabel("step")
    for axis in axes.flat[len(bands) :]:
        axis.set_axis_off()
    pages.save(figure, flags.out)


def plot(axis: Any, curve: Curve, **style: Any) -> None:
    axis.plot(list(curve), list(curve.values()), **style)


if __name__ == "__main__":
    run(main)
