"""How alike the blocks of two networks see the same images: CKA, debiased CKA, CKNNA.

python -m evaluations.similarity RUN --against timm:vit_base_patch14_dinov2.lvd142m
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from evaluations import pages
from evaluations.features import Encoder, Pooled, Study, StudyFlags, View
from evaluations.metrics.alignment import CKA, CKNNA, DebiasedCKA, Likeness
from runtime import distributed
from runtime.config import BlockNumbers, at_least, checked
from runtime.entry import asked_of_user, run, speaks
from runtime.errors import InputError
from runtime.files import write_json

NOISE = 0.1  # as the public script's flag of that value is meant; the paper states no noise
METRICS: dict[str, type[Likeness]] = {"cka": CKA, "debiased_cka": DebiasedCKA, "cknna": CKNNA}


@dataclass(frozen=True)
class SimilarityFlags:
    against: str | None = None  # another checkpoint or timm:MODEL; None: the network itself
    against_weights: Path | None = None  # file of timm:MODEL; None: where timm keeps downloads
    against_blocks: BlockNumbers = ()  # none: an encoder's last, all of a checkpoint
    pictures: int = 4000  # images at most, a random choice


@dataclass(frozen=True)
class Flags(SimilarityFlags, StudyFlags):
    """Every block of one network against blocks of another, on the mean tokens of the same images.

    The paper's figure: 4,000 images, DINOv2. Biased CKA is tens of percent for features that have
    nothing in common, so that the debiased one stands beside it; CKNNA looks at near images alone.

    $ python -m evaluations.similarity RUN --against timm:vit_base_patch14_dinov2.lvd142m
    $ python -m evaluations.similarity RUN --against OTHER_RUN
    """

    noise: float = NOISE  # 1 - t, share of noise in the input: 0.1 is t = 0.9
    # the public script's view: t = 0.1, which it calls noise, the true class, and no first token
    official_quirks: bool = False

    @property
    def view(self) -> View:
        quirks = dict(noise=0.9, label="true", first_token=False) if self.official_quirks else {}
        return replace(super().view, **quirks)


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    if flags.official_quirks and (flags.noise, flags.label) != (Flags.noise, Flags.label):
        raise InputError("--official-quirks sets noise and label: leave --noise and --label out")
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
    at_least(flags, pictures=4)
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
                "same_network": study.subject.identity == other.subject.identity,
                **{name: matrix(metric, *sides, study.ranks.device)
                   for name, metric in METRICS.items()},
            }  # fmt: skip

    return study.ranks.from_main(measure)


def other_of(study: Study, flags: SimilarityFlags) -> Study:
    """The other network, shown the images of the first.

    Raises:
        InputError: flags of another network, and none is named.
    """
    if flags.against is None:
        if flags.against_blocks or flags.against_weights:
            raise InputError("--against-blocks and --against-weights are those of --against")
        return study
    other = study.beside(
        flags.against, encoder_weights=flags.against_weights, blocks=flags.against_blocks,
        skip_blocks=(),
    )  # fmt: skip
    if isinstance(other.subject, Encoder) and not flags.against_blocks:
        other.subject.blocks = other.subject.blocks[-1:]
    return other


def matrix(
    metric: type[Likeness], one: Pooled, other: Pooled, device: torch.device
) -> list[list[float]]:
    """A row per block of the first, of vectors brought to length 1 as the paper's script does."""

    def prepared(side: Pooled, block: int) -> Likeness:
        return metric(F.normalize(side.of(block).to(device), dim=1))

    columns = [prepared(other, block) for block in other.blocks]
    rows = (prepared(one, block) for block in one.blocks)  # one at a time in memory
    return [[row.to(column) for column in columns] for row in rows]


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
        if found["same_network"]:  # a block is like itself
            same = np.equal.outer(found["blocks"], found["against_blocks"])
            others[same] = -np.inf
        row, column = np.unravel_index(others.argmax(), values.shape)
        line = f"{name.replace('_', ' ')}: mean {values.mean():.4f}"
        if np.isfinite(others.max()):
            best = f"{found['blocks'][row]} and {found['against_blocks'][column]}"
            line += f", most alike {others.max():.4f} of blocks {best}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
