"""PCA maps of tokens: what each block tells apart in an image, per noise level.

python -m evaluations.maps results/000-SiT-Ti-2-digits --compare results/001-SiT-Ti-2-digits
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from domains import Batch
from domains.reading import read
from evaluations import pages
from evaluations.features import Study, StudyFlags, Subject
from evaluations.features.study import check_pictures
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write

COLUMNS = 7  # the 28 blocks of XL are four rows


@dataclass(frozen=True)
class MapFlags:
    pictures: tuple[int, ...] = (0,)  # numbers of held-out images
    noises: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of noise, a picture for each


@dataclass(frozen=True)
class Flags(MapFlags, StudyFlags):
    """The first three principal components of each block's tokens as colors, per share of noise
    (Figures 8 to 17): a PNG for each, and all components in maps.npz.

    Colors are a block's own: equal colors in two blocks mean nothing.

    $ python -m evaluations.maps RUN --compare OTHER_RUN --noises 0.1 0.5 --pictures 0 1
    """

    compare: str | None = None  # a second checkpoint, shown the same noise


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start_alone("evaluations.maps", flags.device)
    studies = [Study(flags, ranks)]
    check_pictures(studies[0].subject)
    if flags.compare:
        studies.append(studies[0].beside(flags.compare))
    for path in draw(studies, flags):
        print(path)


def draw(studies: Sequence[Study], flags: MapFlags) -> list[Path]:
    """A PNG per image and share of noise, in the first study's folder, and maps.npz: arrays
    (tokens, 3) by NETWORK/IMAGE/NOISE/BLOCK."""
    first = studies[0]
    images = first.images(held_out=first.has_held_out())
    if not flags.pictures or not flags.noises:
        raise InputError("--pictures and --noises take one number or more")
    subjects = {noise: [one.subject.at(noise) for one in studies] for noise in flags.noises}
    for number in flags.pictures:
        if not 0 <= number < len(images):
            raise InputError(f"--pictures {number}: choose 0 to {len(images) - 1}")
    paths, kept = [], {}
    for batch in read(images, flags.pictures, 1, first.ranks.device, skippable=True):
        for noise in subjects:
            panels = [(one, maps_of(one, batch)) for one in subjects[noise]]
            name = f"image{int(batch.index)}-noise{noise:g}"
            for number, (_, found) in enumerate(panels):
                for block, values in found.items():
                    kept[f"{number}/{name}/block{block:02d}"] = values.flatten(0, 1).numpy()
            paths.append(first.folder / f"maps-{name}.png")
            picture(batch, panels, noise, paths[-1])
    paths.append(first.folder / "maps.npz")
    with atomic_write(paths[-1]) as file:
        np.savez(file, **kept)
    return paths


def maps_of(subject: Subject, batch: Batch) -> dict[int, Tensor]:
    """{block: (rows, columns, 3)} of one image, on the CPU."""
    if subject.grid is None:
        raise InputError(f"the tokens of {subject.name} do not lie in rows and columns")
    found = subject(batch)
    if not all(tokens.isfinite().all() for tokens in found.values()):
        raise InputError(f"{subject.name} has features that are not finite: it has diverged")
    return {
        block: components(tokens[0]).unflatten(0, subject.grid).cpu()
        for block, tokens in found.items()
    }


def components(tokens: Tensor, count: int = 3) -> Tensor:
    """Principal components (N, count) of tokens (N, D); each sign is such that the largest loading
    is positive, so that it does not depend on the solver."""
    u, scale, loadings = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    largest = loadings[:count].abs().argmax(1, keepdim=True)
    return u[:, :count] * scale[:count] * loadings[:count].gather(1, largest).sign().T


def colors(values: Tensor) -> Tensor:
    """(rows, columns, 3) in [0, 1]: each component from its 1st to its 99th percentile."""
    low, high = (values.flatten(0, 1).quantile(q, dim=0) for q in (0.01, 0.99))
    return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def picture(
    batch: Batch, panels: Sequence[tuple[Subject, dict[int, Tensor]]], noise: float, path: Path
) -> None:
    """The maps of all blocks row by row, right of the image, a network under the other."""
    image = batch.raw[0].cpu().permute(1, 2, 0).expand(-1, -1, 3)
    height = -(-max(len(found) for _, found in panels) // COLUMNS)
    figure, axes = pages.figure_of(height * len(panels), 1 + COLUMNS, size=(1.4, 1.5))
    for number, (_, found) in enumerate(panels):
        own = axes[number * height : (number + 1) * height]
        places = [own[0, 0], *own[:, 1:].flat]
        named = [(f"block {block}", colors(values)) for block, values in found.items()]
        for axis, (name, tile) in zip(places, [("image", image), *named], strict=False):
            axis.imshow(tile.numpy(), interpolation="nearest")
            axis.set_title(name, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    names = "; below: ".join(subject.name for subject, _ in panels)
    figure.suptitle(f"{noise:g} noise, {names}", fontsize=8)
    pages.save(figure, path)


if __name__ == "__main__":
    run(main)
