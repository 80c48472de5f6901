"""Scores of every block: their means and best blocks, as JSON, as a CSV and as curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluations import pages
from runtime.files import atomic_write, write_json

SHOWN = {  # score -> what people call it
    "accuracy": "linear probe, accuracy",
    "miou": "segmentation, mIoU",
    "best_epoch": "the same at its best epoch",
    "ridge": "ridge regression, accuracy",
    "knn": "k-NN, accuracy",
    "cka": "CKA with the encoder",
    "debiased_cka": "debiased CKA with the encoder",
    "cknna": "CKNNA with the encoder",
}


def scores_of(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Those of a command's JSON, a value per block."""
    return {name: found[name] for name in SHOWN if name in found}


def summary(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What the JSON says over all blocks, by score."""
    scores = scores_of(found)
    return {
        "mean": {name: float(np.mean(values)) for name, values in scores.items()},
        "best_block": {
            name: found["blocks"][int(np.argmax(values))] for name, values in scores.items()
        },
    }


def write(found: Mapping[str, Any], path: Path) -> list[Path]:
    """The JSON, and beside it the same as a CSV, a row per block, and as a picture."""
    scores = scores_of(found)
    table, picture = path.with_suffix(".csv"), path.with_suffix(".png")
    rows = [("block", *scores), *zip(found["blocks"], *scores.values(), strict=True)]
    with atomic_write(table) as file:
        file.write("".join(",".join(map(str, row)) + "\n" for row in rows).encode())
    draw([{"network": found["network"], "blocks": found["blocks"], "scores": scores}], picture)
    write_json(path, found)
    return [table, picture, path]


def draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel per score over the blocks, a color per network, dashed means: Figure 3's form."""
    from matplotlib.lines import Line2D

    names = list(found[0]["scores"])
    wide = min(3, len(names))
    figure, axes = pages.figure_of(-(-len(names) // wide), wide)
    for name, axis in zip(names, axes.flat, strict=False):
        for number, one in enumerate(found):
            values, color = one["scores"][name], f"C{number}"
            axis.plot(one["blocks"], values, color=color, marker="o", markersize=3)
            axis.axhline(np.mean(values), color=color, linestyle="--", linewidth=1)
        axis.set_title(SHOWN[name])
        axis.set_xlabel("block")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    lines = [
        Line2D([], [], color=f"C{number}", label=one["network"]) for number, one in enumerate(found)
    ]
    mean = Line2D([], [], color="grey", linestyle="--", linewidth=1, label="mean over its blocks")
    figure.legend(handles=[*lines, mean], loc="outside lower center")
    pages.save(figure, path)
