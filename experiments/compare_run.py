"""A run beside the reference curves of its preset, or beside own runs: how far outside is it?

python -m experiments.compare_run results/000-SiT-Ti-2-digits
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from evaluations import pages
from evaluations.metrics import mean_interval
from models.names import NETWORKS, architecture
from runtime import checkpoint
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.resume import FIXED_ONCE
from runtime.text import columns
from runtime.untrusted import shown

from .publish import FOLDER, TRAINING, flags_of, load, parsed
from .runs import as_words
from .table import OF_THE_MACHINE, Result, log_rows

# Half of a band is so many deviations of the reference's seeds: those at that step, or those of all
# later steps together where they are larger, since few seeds agree by chance; and at least this
# part of the mean.
DEVIATIONS, LEAST = 2.0, 0.02
LATER = 0.25  # of the reference's steps; before, a loss falls too fast to be compared
MEANING = {"dataset_name", "image_size", "path_type", "prediction"}  # with others, another loss

Curve = dict[int, float]  # by step


@dataclass(frozen=True)
class Flags:
    """Overlay a run on the committed curves of its preset, or on other runs of yours, and say where
    it leaves their band.

    The band is the mean of the reference's seeds, 2 deviations or 2 % to either side. What is
    judged is the mean distance from it over the last three quarters of the steps that both have.
    Runs on other data are refused; what else differs is said.

    $ python -m experiments.compare_run RUN
    $ python -m experiments.compare_run RUN --against digits-vanilla
    $ python -m experiments.compare_run RUN --against results/000-SiT-Ti-4-a results/001-SiT-Ti-4-b
    """

    # a run's folder, or its log.jsonl
    log: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")] = tyro.MISSING
    # reference runs, PRESET-METHOD, or runs of yours as above; left out, the published ones of its
    # data and --loss-type whose flags are most like its own
    against: tuple[str, ...] = ()
    results: Path = FOLDER  # files of experiments.publish
    out: Path = Path("compare_run.png")  # the picture


class Seen(NamedTuple):
    """A run as far as it is compared."""

    log: list[dict[str, float]]
    flags: dict[str, Any]  # of train.py, where they are known


class Band(NamedTuple):
    """What reference runs have of one quantity, at the steps that they have in common."""

    steps: np.ndarray
    mean: np.ndarray
    half: np.ndarray  # half its width

    def distances(self, curve: Curve) -> np.ndarray:
        """Of a curve from the mean, in half widths, at the later steps that both have."""
        steps = np.array([s for s in curve if self.later <= s <= self.steps[-1]])
        values = np.array([curve[step] for step in steps.tolist()])
        mean, half = (np.interp(steps, self.steps, of) for of in (self.mean, self.half))
        return (values - mean) / half

    @property
    def later(self) -> float:
        return max(self.steps[0], LATER * self.steps[-1])


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    here, references = own_run(flags.log), references_of(flags.results)
    against = flags.against or (nearest(here, references),)
    runs, rows = [], here.log
    for asked in against:
        there = runs_of(asked, references, flags.log)
        if other := differing(here, there, MEANING):
            raise InputError(f"{flags.log} and {asked} cannot be compared: {'; '.join(other)}")
        runs += there
    keys = dict.fromkeys(key for row in rows for key in row)  # scores have lines of their own
    names = [key for key in keys if key not in OF_THE_MACHINE | {"step"}]
    bands = {name: band for name in names if (band := band_of(runs, name))}
    curves = {name: curve_of(rows, name) for name in bands}
    draw(runs, bands, curves, flags)
    print(as_text(bands, curves, len(runs)))
    if other := differing(here, runs, TRAINING):
        print(f"note: {'; '.join(other)}")
    if len(runs) == 1:
        print(f"note: the band of one run is {LEAST:.0%} of its mean, and seeds may differ more")
    print(f"{flags.out}: the curves of {flags.log} on those of {', '.join(against)}")


def references_of(folder: Path) -> dict[str, list[Result]]:
    """Published runs by name, those that differ in their seed alone together. Where several files
    have a name, it is that of the runs nearest to their preset, of these the longest, then the
    most; the others are FILE/NAME."""
    homes: dict[str, dict[str, list[Result]]] = {}  # by name, then by file
    for path in sorted(folder.glob("*.json")):
        for result in load(path).results:
            of_files = homes.setdefault(result.record["name"], {})
            of_files.setdefault(path.stem, []).append(result)
    found: dict[str, list[Result]] = {}
    for name, of_files in homes.items():
        own, *others = sorted(of_files, key=lambda file: claim(of_files[file]))
        found[name] = of_files[own]
        found |= {f"{file}/{name}": of_files[file] for file in others}
    return dict(sorted(found.items()))


def claim(runs: Sequence[Result]) -> tuple[int, int, int]:
    """The less, the more published runs are what one understands by their name: how many flags of
    training they have otherwise than their row of the preset, how short and how few they are."""
    record = runs[0].record
    plain = parsed("--preset", record["preset"], *as_words(record["flags"]))
    own = flags_of(record)
    changed = sum(own[name] != getattr(plain, name) for name in TRAINING if name in own)
    return changed, -record["max_steps"], -len(runs)


def nearest(here: Seen, references: dict[str, list[Result]]) -> str:
    """The reference of a run's data and method whose flags differ least from its own.

    Raises:
        InputError: its flags are not known, or there is none.
    """
    if not here.flags:
        raise InputError(
            f"--against is missing, and no checkpoint beside the log says what it is of: "
            f"{choice(references)}"
        )
    seen = {name: runs_of(name, references, Path()) for name in references}
    alike = {
        name: unlikeness(here, runs[0], references[name][0].record)
        for name, runs in seen.items()
        if not differing(here, runs, MEANING | {"loss_type"})
    }
    if not alike:
        raise InputError(
            "--against is missing, and no reference is of this run's data and --loss-type: name "
            "runs of yours"
        )
    return min(alike, key=alike.get)


def unlikeness(here: Seen, there: Seen, record: dict[str, Any]) -> tuple[float, ...]:
    """How unlike they are, by rank: flags that differ, flags of which one side says nothing, how
    many times as long the longer one is, curves that the reference has not. A reference's flags are
    those of its command, where a run's own have the defaults filled in: its pair is its record's.
    """
    student, teacher = record["pair"]
    flags = {"encoder_depth": student, "gt_encoder_depth": teacher}
    flags |= {name: value for name, value in there.flags.items() if value is not None}
    said = [(here.flags.get(name), flags.get(name)) for name in TRAINING]
    apart = sum(None not in pair and pair[0] != pair[1] for pair in said)
    open_ = sum((pair[0] is None) != (pair[1] is None) for pair in said)
    steps = [here.flags.get("max_steps") or here.log[-1]["step"], record["max_steps"]]
    curves = ({key for row in one.log for key in row} for one in (here, there))
    return apart, open_, max(steps) / max(1, min(steps)), len(next(curves) - next(curves))


def runs_of(asked: str, references: dict[str, list[Result]], but: Path) -> list[Seen]:
    """What --against names: published runs, a run, or a folder of runs, of which `but` is not one.

    Raises:
        InputError: there is nothing of that name.
    """
    if found := references.get(asked):
        flags = flags_of(found[0].record)
        return [Seen(one.log, flags) for one in found]
    path = Path(asked)
    if not path.exists():
        raise InputError(f"--against {asked}: {choice(references)}")
    inside = [] if (path / "log.jsonl").exists() else checkpoint.runs(path)
    own = log_of(but).resolve()
    others = [one for one in inside if log_of(one).resolve() != own]
    return [own_run(one) for one in others or [path]]


def choice(references: dict[str, list[Result]]) -> str:
    return f"choose from {', '.join(references)}, or name runs of yours"


def own_run(path: Path) -> Seen:
    """
    Raises:
        InputError: it has no log, or an empty one.
    """
    log = log_of(path)
    rows = log_rows(log)
    if not rows:
        raise InputError(f"{path} has no line yet")
    saved = checkpoint.files_of(log.parent)
    return Seen(rows, checkpoint.read(saved[-1], verify=False).args if saved else {})


def differing(here: Seen, there: Sequence[Seen], names: Iterable[str]) -> list[str]:
    """The flags of some names that are known of both and differ, in words."""
    ours, theirs = known(here.flags), [known(one.flags) for one in there]
    pairs = [(name, ours.get(name), flags.get(name)) for name in names for flags in theirs]
    said = {
        f"--{name.replace('_', '-')} is {shown(ours)} here and {shown(theirs)} there"
        for name, ours, theirs in pairs
        if None not in (ours, theirs) and ours != theirs
    }
    return sorted(said)


def known(flags: dict[str, Any]) -> dict[str, Any]:
    """With what older runs do not record, and the size that a model's name stands for; none, where
    none are known."""
    if not flags:
        return {}
    asked = {name: flags.get(name) for name in ("depth", "hidden_size", "num_heads")}
    size = architecture(flags["model"], **asked) if flags.get("model") in NETWORKS else {}
    return FIXED_ONCE | flags | {name: size[name] for name in asked if name in size}


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


def band_of(runs: Sequence[Result | Seen], name: str) -> Band | None:
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
        first, last = band.steps[0], band.steps[-1]
        shared = [step for step in curves[name] if first <= step <= last]
        if not shared:
            rows.append([name, "-", "-", "-", "-", "no step of the references"])
            continue
        step = max(shared)
        reference, value = float(np.interp(step, band.steps, band.mean)), curves[name][step]
        rows.append([
            name, str(step), f"{value:.4g}", f"{reference:.4g}",
            f"{value - reference:+.2g}", verdict(band.distances(curves[name])),
        ])  # fmt: skip
    head = ["", "step", "here", f"mean of {seeds}", "here minus it", "band"]
    return columns(head, rows)


def verdict(distances: np.ndarray) -> str:
    """By their mean size, for a curve that crosses the band is not within it."""
    if not len(distances):
        return "too early to tell"
    away, mean = np.abs(distances).mean(), distances.mean()
    if away <= 1:
        return "within"
    if abs(mean) < away / 2:
        return f"{away:.1f} half widths off, above and below"
    return f"{away:.1f} half widths {'above' if mean > 0 else 'below'}"


def draw(
    runs: Sequence[Seen], bands: dict[str, Band], curves: dict[str, Curve], flags: Flags
) -> None:
    """The band, its runs in grey, and the run that is compared."""
    across = min(3, max(1, len(bands)))
    figure, axes = pages.figure_of(-(-max(len(bands), 1) // across), across)
    handles = {}
    for (name, band), axis in zip(bands.items(), axes.flat, strict=False):
        axis.fill_between(band.steps, band.mean - band.half, band.mean + band.half, color="0.88")
        for one in runs:
            handles["references"] = plot(axis, curve_of(one.log, name), color="0.6", linewidth=1)
        handles[str(flags.log)] = plot(axis, curves[name], color="C3")
        axis.set_title(name)
        axis.set_xlabel("step")
    for axis in axes.flat[len(bands) :]:
        axis.set_axis_off()
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    pages.save(figure, flags.out)


def plot(axis: Any, curve: Curve, **style: Any) -> Any:
    return axis.plot(list(curve), list(curve.values()), **style)[0]


if __name__ == "__main__":
    run(main)
