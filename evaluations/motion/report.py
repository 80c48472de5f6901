"""The result as a table, and as a picture."""

from pathlib import Path
from typing import Any

from domains.humanml3d import BATCH, CANVAS
from evaluations import pages
from runtime.text import columns

from .protocol import PAIRS, TOP

NAMES = {
    **{f"r_precision_{k}": f"R-precision, top {k}" for k in range(1, TOP + 1)},
    "fid": "FID", "fd_trained": "Frechet distance", "matching_score": "matching score",
    "diversity": "diversity",
}  # fmt: skip
REPLICATIONS = 20  # of published intervals
# Of real motions under T2M: what MDM's table says, and how far from it crops and pairs may lead.
PUBLISHED = {f"r_precision_{TOP}": (0.797, 0.02), "fid": (0.002, 0.01), "diversity": (9.503, 0.4)}


def table(result: dict[str, Any]) -> str:
    """Real motions above, samples below."""
    scores = result["measured"]
    rows = [
        [who, *(f"{one['mean']:.4g}" + reach_of(one) for one in found.values())]
        for who, found in scores.items()
    ]
    lines = [
        f"{result['samples']} beside the test split of {result['reference']['name']}, seen by the "
        f"evaluator {result['evaluator']['name']}",
        columns(["", *(NAMES[name] for name in scores["real"])], rows),
        f"{result['replications']} replications of {result['per_replication']} samples; ± is "
        "1.96 standard deviations / sqrt(replications)",
        *(f"note: {one}" for one in result["warnings"]),
    ]
    return "\n".join(lines)


def reach_of(score: dict[str, Any]) -> str:
    return "" if score["reach"] is None else f" ± {score['reach']:.2g}"


def warnings_of(result: dict[str, Any]) -> list[str]:
    """What makes these numbers hard to compare."""
    found = []
    top = result["measured"]["real"][f"r_precision_{TOP}"]["mean"]
    evaluator, per, reference = (
        result[key] for key in ("evaluator", "per_replication", "reference")
    )
    if top < 2 * TOP / BATCH:
        found.append(
            f"real motions are found among the first {TOP} of {BATCH} in {top:.3f} of cases, where "
            f"chance is {TOP / BATCH:.3f}: this evaluator cannot tell motions of this data, and "
            "its scores say nothing"
        )
    elif evaluator["name"] == "T2M" and (strange := unlike_published(result["measured"]["real"])):
        found.append(
            f"of real motions {', '.join(strange)}: data, statistics or evaluator are not the "
            "published ones, so these numbers are not comparable with papers"
        )
    if result["frames"] < CANVAS:
        found.append(
            f"motions of at most {result['frames']} frames, real ones too: T2M's protocol has "
            f"{CANVAS}"
        )
    if result["left_out"]:
        found.append(f"the last {result['left_out']} samples fill no replication and are left out")
    if result["replications"] < REPLICATIONS:
        found.append(
            f"{result['replications']} of {REPLICATIONS} replications: "
            + ("no interval" if result["replications"] == 1 else "the intervals are rough")
        )
    fewest = min(per, reference["motions"])
    if fewest <= evaluator["width"]:
        found.append(
            f"{fewest} motions are too few for a covariance of {evaluator['width']} features: the "
            "Frechet distance has a large bias"
        )
    if fewest < PAIRS:
        found.append(f"diversity is of {fewest} pairs where there are no {PAIRS}")
    return found


def unlike_published(real: dict[str, dict[str, Any]]) -> list[str]:
    """What real motions score otherwise than under the published evaluator."""
    return [
        f"{NAMES[name]} is {real[name]['mean']:.4g}, where {published} is published"
        for name, (published, near) in PUBLISHED.items()
        if abs(real[name]["mean"] - published) > near
    ]


def save_picture(path: Path, result: dict[str, Any]) -> None:
    """R-precision of real motions and of samples as bars with their intervals, and chance."""
    figure, axes = pages.figure_of(1, 1)
    axis, width = axes[0, 0], 0.38
    tops = range(1, TOP + 1)
    for side, (who, found) in zip((-0.5, 0.5), result["measured"].items(), strict=True):
        values = [found[f"r_precision_{k}"] for k in tops]
        axis.bar(
            [k + side * width for k in tops], [one["mean"] for one in values], width, label=who,
            yerr=[one["reach"] or 0 for one in values], capsize=3,
        )  # fmt: skip
    for k in tops:
        chance = axis.hlines(k / BATCH, k - width, k + width, color="black", linestyle="--")
    chance.set_label("chance")
    axis.set_xticks(tops, [f"top {k}" for k in tops])
    axis.set_ylim(0, 1)
    axis.set_ylabel(f"R-precision among {BATCH}")
    axis.set_title(f"evaluator: {result['evaluator']['name']}", fontsize="medium")
    axis.legend(fontsize="small")
    pages.save(figure, path)
