"""Runs as a markdown table, as curves, and as one self-contained HTML page.

python -m experiments.table results/experiments/table6 --out report
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from evaluations import pages
from evaluations.images.report import NAMES as OF_IMAGES
from evaluations.metrics import Interval, mean_interval
from evaluations.motion.report import NAMES as OF_MOTION
from runtime import checkpoint
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.untrusted import parsed, read_json, read_text

NAMES = OF_IMAGES | OF_MOTION
HELD_OUT = "held-out loss"
WATCHED = "telemetry/grad_ratio"  # in a log: how hard the term pulls, as a share of the loss's pull
# What a log line has besides losses and scores: it depends on the machine, not on the method, or
# (images) says of how many samples scores are.
OF_THE_MACHINE = {"images_per_second", "mfu", "data_wait", "seconds_left", "skipped", "images"}


RECORD = dict(
    experiment=str, preset=str, name=str, index=int, seed=int, commands=list, paper=dict,
)  # fmt: skip  # what a run's own file has at least


@dataclass(frozen=True)
class Flags:
    """A table of runs: mean, standard deviation and n over seeds, the paper's number beside."""

    # runs, or folders of runs
    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")
    ] = tyro.MISSING
    out: Path = Path("report")  # the folder for table.md, curves.png and index.html
    title: str = "Runs"  # of the page


@dataclass(frozen=True)
class Result:
    """A run as its folder tells it; parts that are not there yet are empty."""

    record: dict[str, Any]  # run.json
    scores: dict[str, float]
    real: dict[str, float]  # the same scores of real samples
    log: list[dict[str, float]]
    picture: Path | None = None  # its samples
    gradient_ratio: float | None = None  # mean over the looks at it; None: not looked at
    # The network that saw its samples, by the way of drawing them; {}: nothing says so.
    scored_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, str]:
        return self.record["experiment"], self.record["name"]


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    folders = [folder for asked in flags.runs for folder in run_folders(asked)]
    if not folders:
        raise InputError("RUNS are missing: name the folders of runs, or one that holds them")
    print(write(read(folders), flags.out, flags.title), end="")


def run_folders(asked: Path) -> list[Path]:
    """A run's folder, or the runs in a folder."""
    found = (
        [asked] if (asked / "run.json").exists() else [p.parent for p in asked.glob("*/run.json")]
    )
    if not found:
        raise InputError(f"{asked} holds no run of a sweep: there is no run.json")
    return found


def read(folders: Sequence[Path]) -> list[Result]:
    """The runs in the order of their tables, whatever the order of the folders."""
    return in_order([read_run(folder) for folder in dict.fromkeys(folders)])


def in_order(results: Sequence[Result]) -> list[Result]:
    keys = ("experiment", "preset", "index", "seed")
    return sorted(results, key=lambda result: tuple(result.record[key] for key in keys))


def read_run(folder: Path) -> Result:
    """
    Raises:
        InputError: a file in it is not what a sweep writes there.
    """
    record = read_json(folder / "run.json")
    wrong = [name for name, kind in RECORD.items() if not isinstance(record.get(name), kind)]
    if wrong:
        raise InputError(f"{folder / 'run.json'} is no record of a sweep: it has no {min(wrong)}")
    scores, real, scored_by = dict[str, float](), dict[str, float](), dict[str, str]()
    if (path := folder / "heldout.json").exists():
        with as_written(path) as content:
            label = HELD_OUT if content["held_out"] else "loss on training images"
            (entry,) = content["checkpoints"]
            kept = (w for w in ("ema", "model") if w in entry)
            scores |= {f"{label}, {w}": float(entry[w]["mean"]) for w in kept}
    found = sorted(folder.glob("*.score.json"))
    for path in found:
        way = "" if len(found) == 1 else f", {path.name.removesuffix('.score.json')}"
        with as_written(path) as content:
            of_real = (content.get("floor") or {}).get("scores", {})
            if "extractor" in content:
                scored_by[way] = content["extractor"]["name"]
            for kept, values in ((scores, content["scores"]), (real, of_real)):
                kept |= {NAMES.get(name, name) + way: float(v) for name, v in values.items()}
    logs = [trained / "log.jsonl" for trained in checkpoint.runs(folder)[-1:]]
    picture = next(iter(sorted(folder.glob("*.score.png"))), None)
    rows = [row for path in logs for row in log_rows(path)]
    ratios = [row[WATCHED] for row in rows if WATCHED in row]
    ratio = mean_interval(ratios).mean if ratios else None
    return Result(record, scores, real, rows, picture, ratio, scored_by)


@contextmanager
def as_written(path: Path) -> Iterator[dict[str, Any]]:
    """What a file of a run says.

    Raises:
        InputError: it does not say what is asked of it.
    """
    content = read_json(path)
    try:
        yield content
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not what the sweep wrote ({type(error).__name__}: {error}): delete it and "
            "run the sweep again"
        ) from error


def log_rows(path: Path) -> list[dict[str, float]]:
    """The lines of a log; one that a killed process left unfinished is not there yet."""
    if not path.exists():
        return []
    try:
        whole = read_text(path).rpartition("\n")[0]
        return [flattened(parsed(line)) for line in whole.splitlines()]
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is no log of train.py ({error})") from error


def flattened(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row, those of its parts under "part/name"."""
    found = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= flattened(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found


def groups_of(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Runs that differ in their seed alone."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return groups


def cells(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The table's head and rows as text; the last column is the paper's, if it has numbers."""
    names = names_of(results)
    paired = compared(results)
    looked = any(result.gradient_ratio is not None for result in results)
    head = ["run", "steps", "seeds", *names, *(["gradient ratio"] if looked else [])]
    head += [f"{paired}, minus the baseline's", "paper"]
    groups = groups_of(results)
    rows = []
    pools: dict[tuple[str, str, str], list[list[Result]]] = {}
    for (experiment, name), runs in groups.items():
        record = runs[0].record
        baseline = baseline_of(runs, groups)
        if pool := record.get("pool"):
            pools.setdefault((experiment, record["preset"], pool), []).append(runs)
        rows.append(
            [
                name,
                ", ".join(dict.fromkeys(str(run.record["max_steps"]) for run in runs)),
                ", ".join(str(run.record["seed"]) for run in runs),
                *(mean_and_deviation(values_of(runs, one)) for one in names),
                *([mean_and_deviation(gradient_ratios(runs))] if looked else []),
                "-" if runs is baseline else difference(runs, baseline, paired),
                "-" if pool else published(record["paper"]),
            ]
        )
    rest = [""] * (len(head) - 3 - len(names))
    presets = dict.fromkeys(result.record["preset"] for result in results)
    for preset in presets:  # real samples differ where their sets or evaluators do
        real = [one.real for one in results if one.real and one.record["preset"] == preset]
        if real:
            values = ([of[name] for of in real if name in of] for name in names)
            label = "real, held out" if len(presets) == 1 else f"{preset}, real, held out"
            rows.append([label, "", "", *map(spread_of_real, values), *rest])
    for (_, preset, pool), members in pools.items():
        means = {one: [mean_of(runs, one) for runs in members] for one in names}
        scores = [
            mean_and_deviation([mean for mean in means[one] if mean is not None]) for one in names
        ]
        paper = published(members[0][0].record["paper"])
        label = f"{preset}-{pool}, mean ± deviation over rows"
        rows.append([label, "", "", *scores, *rest[:-1], paper])
    if not any(result.record["paper"] for result in results):
        return head[:-1], [row[:-1] for row in rows]
    return head, rows


def differences(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what every score is more than the baseline's; none of baselines alone."""
    names, groups = names_of(results), groups_of(results)
    rows = []
    for (_, name), runs in groups.items():
        baseline = baseline_of(runs, groups)
        if baseline and baseline is not runs:
            rows.append([name, *(difference(runs, baseline, score) for score in names)])
    return ["minus the baseline's, paired by seed", *names], rows


def names_of(results: Sequence[Result]) -> list[str]:
    """Of all scores."""
    return list(dict.fromkeys(name for result in results for name in result.scores))


def baseline_of(runs: list[Result], groups: dict[tuple[str, str], list[Result]]) -> list[Result]:
    """The row that this one is compared to: the one it names, or the first of its experiment and
    preset; none if that has failed."""
    record = runs[0].record
    if named := record.get("baseline"):
        return groups.get((record["experiment"], named), [])
    return next(
        (
            others for (experiment, _), others in groups.items()
            if others[0].record["index"] == 0 and experiment == record["experiment"]
            and others[0].record["preset"] == record["preset"]
        ),
        [],
    )  # fmt: skip


def compared(results: Sequence[Result]) -> str:
    """The score that runs are compared by: the held-out loss, or that on training images where none
    are held out."""
    names = names_of(results)
    return next((name for name in names if name.endswith("loss, ema")), f"{HELD_OUT}, ema")


def pair_of(record: dict[str, Any]) -> tuple[int, int]:
    """The student and the teacher of a run: its row's, else the preset's."""
    (student, teacher), flags = record["pair"], record["flags"]
    return flags.get("encoder_depth", student), flags.get("gt_encoder_depth", teacher)


def values_of(runs: Sequence[Result], name: str) -> list[float]:
    return [run.scores[name] for run in runs if name in run.scores]


def gradient_ratios(runs: Sequence[Result]) -> list[float]:
    return [run.gradient_ratio for run in runs if run.gradient_ratio is not None]


def mean_of(runs: Sequence[Result], name: str) -> float | None:
    values = values_of(runs, name)
    return mean_interval(values).mean if values else None


def published(paper: dict[str, float]) -> str:
    return ", ".join(f"{NAMES.get(key, key)} {value:g}" for key, value in paper.items()) or "-"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean, standard deviation over seeds (divisor n - 1) and n."""
    if not values:
        return "-"
    found = mean_interval(values)
    deviation = "" if found.std is None else f" ± {found.std:.2g}"
    return f"{found.mean:.4g}{deviation} (n={found.n})"


def spread_of_real(values: Sequence[float]) -> str:
    return f"{mean_interval(values).mean:.4g}" if values else "-"


def over_baseline(runs: Sequence[Result], baseline: Sequence[Result], name: str) -> Interval | None:
    """How much a score differs from the baseline's, runs of one preset paired by seed; None: no
    seed has both."""
    before = {run.record["seed"]: run.scores.get(name) for run in baseline}
    pairs = [(run.scores.get(name), before.get(run.record["seed"])) for run in runs]
    values = [after - first for after, first in pairs if None not in (after, first)]
    return mean_interval(values) if values else None


def difference(runs: Sequence[Result], baseline: Sequence[Result], name: str) -> str:
    """`over_baseline` with its 95 % interval."""
    found = over_baseline(runs, baseline, name)
    if found is None:
        return "-"
    if found.low is None:
        return f"{signed(found.mean)} (n=1)"
    return f"{signed(found.mean)} ({signed(found.low)} to {signed(found.high)}, n={found.n})"


def signed(value: float) -> str:
    """What rounding leaves of a difference that is none is none."""
    return f"{round(value, 12) + 0.0:+.2g}"


def write(results: Sequence[Result], out: Path, title: str) -> str:
    """table.md, curves.png and index.html; the same bytes for the same runs.

    Returns:
        The table in markdown.
    """
    head, rows = cells(results)
    text = markdown(head, rows) + mixture(results)
    with atomic_write(out / "table.md") as file:
        file.write(text.encode())
    draw_curves(results, out / "curves.png")
    with atomic_write(out / "index.html") as file:
        file.write(page(results, head, rows, out / "curves.png", title))
    return text


def mixture(results: Sequence[Result]) -> str:
    """A warning below a table whose scores were not all given by the same networks; else ""."""
    ways = dict.fromkeys(way for one in results for way in one.scored_by)
    mixed = [by for way in ways if len(by := networks(results, way)) > 1]
    return "".join(
        f"\nNot comparable, scored by different networks: {', '.join(by)}\n" for by in mixed
    )


def networks(results: Sequence[Result], way: str) -> list[str]:
    """Those that saw the samples that were drawn in this way."""
    return sorted({one.scored_by[way] for one in results if way in one.scored_by})


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rows])


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """Whatever the logs hold over the steps; a color per row of the table, a line per seed."""
    keys = dict.fromkeys(key for result in results for row in result.log for key in row)
    names = [key for key in keys if key not in OF_THE_MACHINE | {"step"}]
    columns = min(3, max(1, len(names)))
    height = max(1, -(-len(names) // columns))
    figure, axes = pages.figure_of(height, columns)
    colors = {group: f"C{number}" for number, group in enumerate(groups_of(results))}
    for name, axis in zip(names, axes.flat, strict=False):
        for result in results:
            points = [(row["step"], row[name]) for row in result.log if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), color=colors[result.group], linewidth=1)
        axis.set_title(name)
        axis.set_xlabel("step")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    handles = [axes.flat[0].plot([], [], color=color)[0] for color in colors.values()]
    figure.legend(handles, [name for _, name in colors], loc="outside lower center", ncols=columns)
    pages.save(figure, path)


def page(
    results: Sequence[Result], head: list[str], rows: list[list[str]], curves: Path, title: str
) -> bytes:
    """Everything in one file, pictures included: it can be mailed, and nothing is fetched."""
    parts = [pages.table(head, rows), f"<h2>Curves</h2>\n{pages.inlined(curves)}"]
    parts.append("<h2>Samples and commands</h2>\n")
    for result in results:
        record = result.record
        commands = html.escape("\n".join(record["commands"]))
        parts.append(f"<h3>{html.escape(record['name'])}, seed {record['seed']}</h3>\n")
        if result.picture:
            parts.append(
                f"<p>Left real images, right samples.</p>\n{pages.inlined(result.picture)}"
            )
        parts.append(f"<pre>{commands}</pre>\n")
    return pages.page(title, parts)


if __name__ == "__main__":
    run(main)
