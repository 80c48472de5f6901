"""Does LayerSync help where it has most to show, and if so, why?

python -m experiments.evidence --preset evidence --seeds 0 1 2
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluations import pages
from evaluations.metrics import crossing, mean_interval, speed_up
from methods.rivals import sra_pair
from runtime.entry import run
from runtime.files import write_json
from runtime.text import columns
from runtime.untrusted import read_json

from . import table
from .gate import check_labeled, positive_control
from .rows import dispersive, layer_sync, method, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

BASELINE = "vanilla"
# The color of a method in every panel of the figure.
COLORS = {
    BASELINE: "0.35", "layer_sync": "C0", "dispersive": "C1", "layer_sync-first": "C3",
    "sra": "C2", "sra2": "C4", "positive-control": "C5",
}  # fmt: skip

LINEAR = 2.0  # per cent over vanilla's loss, up to which the figure's scale is linear
QUARTERS = ("t 0 to ¼ (noise)", "t ¼ to ½", "t ½ to ¾", "t ¾ to 1 (data)")
Shown = Callable[[dict[str, Any]], str]  # what a cell says of a method


def runs(setting: Setting) -> list[Run]:
    """LayerSync is switched on after a tenth of the run; of all a checkpoint is kept, and the
    features are looked at, every tenth. `layer_sync-first` has the first block for its student, the
    one that knows least: the widest gap that the teacher can have. The positive control, on from
    the first step, says how much there is to gain."""
    late = {"reg_start": setting.tenth}
    kept = {"ckpt_every": setting.tenth, "keep_last": 0}
    terms = [
        layer_sync(**late),
        dispersive(),
        layer_sync("layer_sync-first", encoder_depth=1, **late),
        method("sra"),
        method("sra2"),
        positive_control(setting),
    ]
    watched = [replace(row, flags=row.flags | {"telemetry_every": setting.tenth}) for row in terms]
    return [replace(row, flags=row.flags | kept) for row in (vanilla(), *watched)]


@dataclass(frozen=True)
class Learned:
    """The runs of a method, one of every seed, at S checkpoints: arrays (seeds, S, ...)."""

    pair: tuple[int, int]  # student and teacher; of methods without them, the preset's
    losses: np.ndarray  # of every held-out image
    bins: np.ndarray  # by quarter of t, from noise to data
    probes: np.ndarray  # accuracy, by block
    dropped: np.ndarray  # (seeds, blocks): more loss without each block, at the end
    images_per_second: np.ndarray  # (seeds,), the median over the run
    telemetry: dict[str, float]  # means over the run and the seeds, where it was looked at

    @property
    def curves(self) -> np.ndarray:
        """(seeds, S): means over the images."""
        return self.losses.mean(-1)


class Watched(NamedTuple):
    """A run as its files tell it."""

    pair: tuple[int, int]
    points: dict[int, dict[str, Any]]  # of evaluations.progress, by step
    dropped: list[float]
    log: list[dict[str, float]]


def verdict(folders: list[Path], out: Path) -> None:
    """evidence.json, and a figure of every preset."""
    found = {}
    results = [(folder, table.read_run(folder)) for folder in folders]
    for preset in dict.fromkeys(result.record["preset"] for _, result in results):
        own = [pair for pair in results if pair[1].record["preset"] == preset]
        steps, seeds, learned = collected(preset, own)
        if not seeds or BASELINE not in learned:
            print(f"{preset}: no seed is finished for all methods yet, vanilla among them")
            continue
        found[preset] = judged(steps, seeds, learned, own[0][1].record["pair"])
        draw(found[preset], out / f"{preset}.png")
        print(f"{as_text(preset, found[preset])}\n{out / f'{preset}.png'}")
    if found:  # else what was judged before stays
        write_json(out / "evidence.json", found)


def collected(
    preset: str, results: Sequence[tuple[Path, table.Result]]
) -> tuple[list[int], list[int], dict[str, Learned]]:
    """The steps and the seeds that all methods have, and what was learned there. A run that was
    stopped has one checkpoint more than the others."""
    methods: dict[str, dict[int, Watched]] = {}
    for folder, result in sorted(results, key=lambda pair: pair[1].record["index"]):
        content = read_json(folder / "progress.json")
        points = {one["step"]: one for one in content["checkpoints"]}
        name = result.record["name"].removeprefix(f"{preset}-")
        dropped = content["dropped"]
        watched = Watched(pair_of(result.record, len(dropped)), points, dropped, result.log)
        methods.setdefault(name, {})[result.record["seed"]] = watched
    seeds = sorted(set.intersection(*(set(runs) for runs in methods.values())))
    if partly := sorted(set.union(*(set(runs) for runs in methods.values())) - set(seeds)):
        print(f"{preset}: seeds {listed(partly)} are not finished for all methods: left out")
    if not seeds:
        return [], [], {}
    chosen = {name: [runs[seed] for seed in seeds] for name, runs in methods.items()}
    steps = sorted(set.intersection(*(set(run.points) for runs in chosen.values() for run in runs)))
    return steps, seeds, {name: learned_of(runs, steps) for name, runs in chosen.items()}


def pair_of(record: dict[str, Any], depth: int) -> tuple[int, int]:
    of_sra = record["flags"].get("loss_type") in ("sra", "sra2")  # the second has a student alone
    return table.pair_of(record | {"pair": sra_pair(depth)} if of_sra else record)


def learned_of(runs: Sequence[Watched], steps: Sequence[int]) -> Learned:
    def of(name: str) -> np.ndarray:
        return np.array([[run.points[step][name] for step in steps] for run in runs])

    def logged(key: str) -> list[list[float]]:
        return [[row[key] for row in run.log if key in row] for run in runs]

    keys = dict.fromkeys(key for run in runs for row in run.log for key in row)
    looked = [key for key in keys if key.startswith("telemetry/")]
    return Learned(
        runs[0].pair, of("losses"), of("bins"), of("probe"),
        np.array([run.dropped for run in runs]),
        np.array([np.median(rates) for rates in logged("images_per_second")]),
        {key.removeprefix("telemetry/"): float(np.mean(sum(logged(key), []))) for key in looked},
    )  # fmt: skip


def judged(
    steps: list[int], seeds: list[int], learned: dict[str, Learned], pair: Sequence[int]
) -> dict[str, Any]:
    """What evidence.json says of a preset, plain data.

    Equal steps are the last ones. At equal score a run and vanilla's of its seed are looked at
    where each first has the final loss of the slower of the two.
    """
    base = learned[BASELINE]
    methods = {name: judged_method(steps, one, base) for name, one in learned.items()}
    images = base.losses.shape[-1]
    head, rows = cells(steps, methods)
    found = {"pair": list(pair), "steps": steps, "seeds": seeds, "images": images}
    return {**found, "methods": methods, "table": {"head": head, "rows": rows}}


def judged_method(steps: list[int], own: Learned, base: Learned) -> dict[str, Any]:
    def over(values: np.ndarray) -> dict[str, Any]:
        return mean_interval(values.tolist())._asdict()

    targets = np.maximum(own.curves[:, -1], base.curves[:, -1])
    student, teacher = own.pair
    mean, vanilla_mean = own.curves.mean(0), base.curves.mean(0)
    return {
        "curves": own.curves.tolist(),
        "final": over(own.curves[:, -1]),
        "minus_vanilla": over(own.curves[:, -1] - base.curves[:, -1]),
        "minus_vanilla_by_t": [over(one) for one in (own.bins - base.bins)[:, -1].T],
        "relative_by_t": ((own.bins - base.bins) / base.bins)[:, -1].tolist(),
        "speed_up": speed_up(steps, base.losses, own.losses)._asdict(),
        "has_vanillas_final_loss_at": crossing(steps, mean, vanilla_mean[-1]),
        "vanilla_has_its_final_loss_at": crossing(steps, vanilla_mean, mean[-1]),
        "equal_steps": probed(own.probes[:, -1]),
        "equal_score": {
            **probed_at(steps, own, targets), "vanilla": probed_at(steps, base, targets)
        },
        "teacher_minus_student": (
            own.probes[:, :, teacher - 1] - own.probes[:, :, student - 1]
        ).tolist(),
        "without_each_block": own.dropped.tolist(),
        "pair": [student, teacher],
        "cost_of_a_step": float(np.mean(base.images_per_second / own.images_per_second)),
        "telemetry": own.telemetry,
    }  # fmt: skip


def probed_at(steps: Sequence[int], own: Learned, targets: np.ndarray) -> dict[str, Any]:
    """Where every seed first has its target, on straight lines between the checkpoints."""
    at = [crossing(steps, *both) for both in zip(own.curves, targets, strict=True)]
    probes = [
        [np.interp(step, steps, of_block) for of_block in of_seed.T]
        for step, of_seed in zip(at, own.probes, strict=True)
    ]
    return {"steps": at, **probed(np.array(probes))}


def probed(probes: np.ndarray) -> dict[str, Any]:
    """Of (seeds, blocks)."""
    return {
        "probe": probes.tolist(),
        "mean": mean_interval(probes.mean(1).tolist())._asdict(),
        "peak": [int(one) + 1 for one in probes.argmax(1)],
    }


def cells(steps: Sequence[int], methods: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A column per method, below each other what was measured."""
    quarter = next(number for number, step in enumerate(steps) if step >= steps[-1] / 4)
    base = methods[BASELINE]
    compared: dict[str, Shown] = {
        "minus vanilla's, paired by seed": lambda one: difference(one["minus_vanilla"]),
        **{f"the same, {name}": partial(at_quarter, i) for i, name in enumerate(QUARTERS)},
        "steps to vanilla's final loss": reached,
        "speed-up by that, 95 % bootstrap": times,
        "time of a step over vanilla's, roughly": lambda one: f"{one['cost_of_a_step']:.2f}",
        "gradient ratio, mean over the run": gradient_ratio,
        "probes' mean minus vanilla's, equal steps, points": lambda one: lead(
            one["equal_steps"], base["equal_steps"]
        ),
        "the same, equal loss": lambda one: lead(one["equal_score"], one["equal_score"]["vanilla"]),
        "probes' mean, equal loss": partial(at_equal_loss, lambda of: accuracy(of["mean"])),
        "best block by seed, equal loss": partial(at_equal_loss, lambda of: listed(of["peak"])),
    }
    own: dict[str, Shown] = {
        "probes' mean, equal steps": lambda one: accuracy(one["equal_steps"]["mean"]),
        "best block by seed, equal steps": lambda one: listed(one["equal_steps"]["peak"]),
        f"teacher's probe minus student's, step {steps[quarter]}, points": lambda one: gap(
            one, quarter
        ),
        "the same, at the end": lambda one: gap(one, -1),
        "more loss without a block, mean over the blocks": lambda one: without(one, 0, None),
        "the same, blocks up to the student": lambda one: without(one, 0, one["pair"][0]),
        "the same, after the student up to the teacher": lambda one: without(one, *one["pair"]),
    }
    others = {name: one for name, one in methods.items() if name != BASELINE}
    rows = [["held-out loss", *(mean_and_deviation(one["final"]) for one in methods.values())]]
    rows += [[name, "-", *map(show, others.values())] for name, show in compared.items()]
    rows += [[name, *map(show, methods.values())] for name, show in own.items()]
    return ["", *methods], rows


def at_quarter(number: int, one: dict[str, Any]) -> str:
    return difference(one["minus_vanilla_by_t"][number])


def mean_and_deviation(found: dict[str, Any]) -> str:
    deviation = "" if found["std"] is None else f" ± {found['std']:.4f}"
    return f"{found['mean']:.4f}{deviation} (n={found['n']})"


def difference(found: dict[str, Any], digits: int = 4) -> str:
    mean, low, high = (found[name] for name in ("mean", "low", "high"))
    interval = "" if low is None else f", {low:+.{digits}f} to {high:+.{digits}f}"
    return f"{mean:+.{digits}f}{interval}"


def lead(own: dict[str, Any], base: dict[str, Any]) -> str:
    """Of a method's probes over vanilla's, paired by seed."""
    of_seeds, of_base = (np.mean(each["probe"], 1) for each in (own, base))
    return difference(mean_interval((100 * (of_seeds - of_base)).tolist())._asdict(), digits=1)


def at_equal_loss(show: Shown, one: dict[str, Any]) -> str:
    """Of a method and of vanilla, each where it first has the loss of the slower."""
    found = one["equal_score"]
    return f"{show(found)}; vanilla {show(found['vanilla'])}"


def accuracy(found: dict[str, Any]) -> str:
    deviation = "" if found["std"] is None else f" ± {found['std']:.1%}"
    return f"{found['mean']:.1%}{deviation}"


def without(one: dict[str, Any], after: int, up_to: int | None) -> str:
    """What leaving out one of some blocks adds to the loss, mean over these."""
    added = np.array(one["without_each_block"])[:, after:up_to].mean(1)
    return mean_and_deviation(mean_interval(added.tolist())._asdict())


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def gap(one: dict[str, Any], checkpoint: int) -> str:
    """In points, by seed."""
    return ", ".join(f"{100 * of[checkpoint]:+.1f}" for of in one["teacher_minus_student"])


def gradient_ratio(one: dict[str, Any]) -> str:
    ratio = one["telemetry"].get("grad_ratio")
    return "-" if ratio is None else f"{ratio:.3f}"


def reached(one: dict[str, Any]) -> str:
    """Where it is never there, the step at which vanilla has its loss."""
    step, other = one["has_vanillas_final_loss_at"], one["vanilla_has_its_final_loss_at"]
    return f"{step:.0f}" if step else f"never; vanilla has its own at {other:.0f}"


def times(one: dict[str, Any]) -> str:
    values = (one["speed_up"][name] for name in ("ratio", "low", "high"))
    ratio, low, high = ("<1" if value is None else f"{value:.2f}" for value in values)
    return f"{ratio} ({low} to {high})"


def as_text(preset: str, found: dict[str, Any]) -> str:
    student, teacher = found["pair"]
    return (
        f"{preset}: {found['steps'][-1]} steps, pair {student}:{teacher}, EMA weights, "
        f"{found['images']} held-out images, seeds {listed(found['seeds'])}\n"
        f"{columns(found['table']['head'], found['table']['rows'])}"
    )


def draw(found: dict[str, Any], path: Path) -> None:
    """A color per method, a thin line per seed, a thick one for their mean."""
    from matplotlib.ticker import LogLocator, NullFormatter

    steps, methods = found["steps"], found["methods"]
    blocks = range(1, 1 + len(methods[BASELINE]["without_each_block"][0]))
    figure, axes = pages.figure_of(2, 3, size=(5, 3.6))
    loss, relative, by_t, equal_steps, equal_score, dropped = axes.flat
    base = np.array(methods[BASELINE]["curves"])
    target = base.mean(0)[-1]
    for name, one in methods.items():
        color, curves = COLORS[name], np.array(one["curves"])
        lines(loss, steps, curves, color)
        if name != BASELINE:
            lines(relative, steps, 100 * (curves / base - 1), color)
            lines(by_t, range(4), 100 * np.array(one["relative_by_t"]), color, marker="o")
            over = np.subtract(one["equal_score"]["probe"], one["equal_score"]["vanilla"]["probe"])
            lines(equal_score, blocks, 100 * over, color)
            if step := one["has_vanillas_final_loss_at"]:
                loss.plot(step, target, "v", color=color, markersize=9)
        lines(equal_steps, blocks, 100 * np.array(one["equal_steps"]["probe"]), color)
        lines(dropped, blocks, np.array(one["without_each_block"]), color)
    loss.axhline(target, color=COLORS[BASELINE], linestyle=":", linewidth=1)
    for axis in (relative, by_t, equal_score):
        axis.axhline(0, color=COLORS[BASELINE], linewidth=1)
    loss.set(title="held-out loss; ▼ has vanilla's final one", yscale="log")
    relative.set(title="held-out loss over vanilla's, equal steps", ylabel="%")
    by_t.set(title="the same at the end, by quarter of t", ylabel="%", xticks=range(4))
    by_t.set_xticklabels(name.replace(" (", "\n(") for name in QUARTERS)
    for axis in (relative, by_t):
        if max(map(abs, axis.get_ylim())) > 3 * LINEAR:  # a method far off leaves the others room
            axis.set_yscale("symlog", linthresh=LINEAR)
            axis.yaxis.set_major_formatter("{x:g}")
    equal_steps.set(title="ridge probe, equal steps", ylabel="accuracy, %")
    equal_score.set(title="ridge probe over vanilla's, equal held-out loss", ylabel="points")
    dropped.set(title="more held-out loss without a block", yscale="log")
    for axis in (loss, relative):
        axis.set_xlabel("step")
    for axis in (loss, dropped):  # 0.03 and not 3 x 10^-2
        lowest, highest = axis.get_ylim()
        few = (1, 3) if highest > 100 * lowest else (1, 1.5, 2, 3, 5, 7)
        axis.yaxis.set_major_locator(LogLocator(subs=few))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    for axis in (equal_steps, equal_score, dropped):
        axis.set(xlabel="block; dotted: student and teacher", xticks=blocks[1::2])
        for name, one in methods.items():
            for block in one["pair"] if name.startswith(layer_sync().name) else ():
                axis.axvline(block, color=COLORS[name], linestyle=":", linewidth=1)
    handles = [loss.plot([], [], color=COLORS[name], linewidth=2)[0] for name in methods]
    labels = [
        "{}, {}:{}".format(name, *one["pair"]) if name.startswith(layer_sync().name) else name
        for name, one in methods.items()
    ]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(methods))
    pages.save(figure, path)


def lines(axis: Any, x: Sequence[float], values: np.ndarray, color: str, **style: Any) -> None:
    """(seeds, points), and their mean."""
    for one in values:
        axis.plot(x, one, color=color, linewidth=0.8, alpha=0.4)
    axis.plot(x, values.mean(0), color=color, linewidth=2, markersize=4, **style)


EVIDENCE = Experiment(
    "evidence", "Evidence: does it help, and why?", ("evidence",), runs,
    measures={"progress": ("-m", "evaluations.progress")}, check=check_labeled, finish=verdict,
)  # fmt: skip
main = partial(sweep, EVIDENCE)

if __name__ == "__main__":
    run(main)
