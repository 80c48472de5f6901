"""How alike the blocks of two networks see the same images: CKA, debiased CKA, CKNNA.

python -m evaluations.similarity RUN --against timm:vit_base_patch14_dinov2.lvd142m
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from evaluations import pages
from evaluations.features import Encoder, Pooled, Study, StudyFlags
from evaluations.metrics.alignment import cka, cknna, debiased_cka
from runtime import distributed
from runtime.config import checked
from runtime.entry import asked_of_user, run, speaks
from runtime.errors import InputError
from runtime.files import write_json

METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "cka": cka, "debiased_cka": debiased_cka, "cknna": cknna,
}  # fmt: skip


@dataclass(frozen=True)
class SimilarityFlags:
    against: str | None = None  # another checkpoint or timm:MODEL; None: the network itself
    against_weights: Path | None = None  # file of timm:MODEL; None: where timm keeps downloads
    against_blocks: tuple[int, ...] = ()  # none: an encoder's last, all of a checkpoint
    pictures: int = 4000  # images at most, a random choice


@dataclass(frozen=True)
class Flags(SimilarityFlags, StudyFlags):
    """Every block of one network against blocks of another, on the mean tokens of the same images.

    The paper's figure: 4,000 images, DINOv2. Biased CKA is tens of percent for features that have
    nothing in common, so that the debiased one stands beside it; CKNNA looks at near images alone.
    --noise 0.1 is t = 0.9: the public script's --noise_level 0.1 is 0.9 here, with --label true.

    python -m evaluations.similarity RUN --against timm:vit_base_patch14_dinov2.lvd142m --noise 0.1
    python -m evaluations.similarity RUN --against OTHER_RUN
    """


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start(flags.device)
    study = Study(flags, ranks)
    found = compared(study, flags)

    def tell() -> None:
        path = study.folder / "similarity.json"
        write_json(path, found)
        draw(found, path.with_suffix(".png"))
        print(f"{as_text(found)}\n{path.with_suffix('.png')}\n{path}")

    ranks.from_main(tell)


def compared(study: Study, flags: SimilarityFlags) -> dict[str, Any]:
    """What the JSON holds; the same on all ranks."""
    if flags.pictures < 4:
        raise InputError(f"--pictures {flags.pictures}: give 4 or more")
    other = other_of(study, flags)
    held_out = study.has_held_out()
    sides = [one.pooled(held_out=held_out, most=flags.pictures) for one in (study, other)]

    def measure() -> dict[str, Any]:
        with asked_of_user():
            return {
                "network": study.subject.name, "against": other.subject.name,
                "data": study.domain.name, "images": len(sides[0].labels),
                "blocks": list(sides[0].blocks), "against_blocks": list(sides[1].blocks),
                "view": study.subject.identity,
                **{name: matrix(metric, *sides, study.ranks.device)
                   for name, metric in METRICS.items()},
            }  # fmt: skip

    return study.ranks.from_main(measure)


def other_of(study: Study, flags: SimilarityFlags) -> Study:
    """The other network, shown the images of the first."""
    if flags.against is None:
        return study
    asked = replace(
        study.flags, ckpt=flags.against, encoder_weights=flags.against_weights,
        blocks=flags.against_blocks, skip_blocks=(), data=study.domain.name,
    )  # fmt: skip
    other = Study(asked, study.ranks)
    if isinstance(other.subject, Encoder) and not flags.against_blocks:
        other.subject.blocks = other.subject.blocks[-1:]
    other.look_at(study)
    return other


def matrix(
    metric: Callable[[Tensor, Tensor], float], one: Pooled, other: Pooled, device: torch.device
) -> list[list[float]]:
    """A row per block of the first, of vectors brought to length 1 as the paper's script does."""

    def unit(side: Pooled, block: int) -> Tensor:
        return F.normalize(side.of(block).to(device), dim=1)

    return [[metric(unit(one, a), unit(other, b)) for b in other.blocks] for a in one.blocks]


def draw(found: dict[str, Any], path: Path) -> None:
    """Heat maps, or curves over the blocks against a single other one."""
    figure, axes = pages.figure_of(1, len(METRICS))
    for name, axis in zip(METRICS, axes.flat, strict=True):
        values = np.array(found[name])
        if values.shape[1] == 1:
            axis.plot(found["blocks"], values[:, 0], marker="o", markersize=3)
            axis.axhline(values.mean(), linestyle="--", linewidth=1)
            axis.set_ylabel(f"with block {found['against_blocks'][0]} of {found['against']}")
        else:
            ends = (found["against_blocks"], found["blocks"])
            extent = [part[end] + half for part in ends for end, half in ((0, -0.5), (-1, 0.5))]
            image = axis.imshow(values, origin="lower", extent=extent, aspect="auto", vmax=1)
            figure.colorbar(image, ax=axis)
            axis.set_ylabel(found["network"])
            axis.set_xlabel(found["against"])
        axis.set_title(name.replace("_", " "))
    pages.save(figure, path)


def as_text(found: dict[str, Any]) -> str:
    lines = [f"{found['network']} against {found['against']}, {found['images']:,} images"]
    for name in METRICS:
        values = np.array(found[name])
        others = values.copy()
        if found["against"] == found["network"]:
            np.fill_diagonal(others, -np.inf)  # a block is like itself
        row, column = np.unravel_index(others.argmax(), values.shape)
        best = f"{found['blocks'][row]} and {found['against_blocks'][column]}"
        lines.append(
            f"{name.replace('_', ' ')}: mean {values.mean():.4f}, most alike {others.max():.4f} "
            f"of blocks {best}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
