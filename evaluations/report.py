"""What the evaluations of features find, on one page: of a checkpoint, or of two side by side.

python -m evaluations.report results/000-SiT-Ti-2-digits --against results/001-SiT-Ti-2-digits
"""

import html
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from evaluations import by_block, maps, pages, similarity
from evaluations.classification import ProbeFlags, probed
from evaluations.features import Study, StudyFlags
from evaluations.features.study import ENCODER, check_pictures
from evaluations.segmentation import __main__ as segmentation
from evaluations.segmentation.__main__ import SegmentationFlags
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write, write_json
from runtime.text import columns
from runtime.untrusted import read_json

UNBIASED = {"debiased_cka", "cknna"}


@dataclass(frozen=True)
class Flags(maps.MapFlags, SegmentationFlags, ProbeFlags):
    """Probes per block, alignment to an encoder, PCA maps, and the blocks' likeness to each other,
    of one checkpoint or of two: report.json, curves.png and index.html.

    With --against, curves are laid over each other, dashed lines are the means over the blocks, and
    the ratios of the means are printed as the paper states them. What is there already is not
    measured again.

    $ python -m evaluations.report RUN --against VANILLA_RUN
    $ python -m evaluations.report RUN --encoder timm:vit_base_patch14_dinov2.lvd142m --masks voc
    """

    against: str | None = None  # the checkpoint that the ratios are over
    encoder: str | None = None  # timm:MODEL that the blocks are compared with; None: left out
    encoder_noise: float = similarity.NOISE  # share of noise of the comparison with it
    similarity_images: int = 4000  # of the comparison with it, at most
    masks: str | None = None  # voc, coco-things, coco-stuff, digits, fashion-mnist; None: left out
    noises: tuple[float, ...] = (0.1, 0.5, 0.9)  # shares of noise of the PCA maps


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start_alone("evaluations.report", flags.device)
    if flags.encoder and not flags.encoder.startswith(ENCODER):
        raise InputError(f"--encoder {flags.encoder}: name one of timm, {ENCODER}MODEL")
    if flags.masks:
        segmentation.check(flags)
    studies = [Study(flags, ranks)]
    check_pictures(studies[0].subject)
    folder = studies[0].folder
    if flags.against:
        own = folder / "against" if flags.out else None
        studies.append(studies[0].beside(flags.against, out=own))
    found = [measured(study, flags) for study in studies]
    pictures = maps.draw(studies, flags)[:-1]
    content = {"networks": found, "ratios": ratios(found)}
    write_json(folder / "report.json", content)
    by_block.draw(found, folder / "curves.png")
    page = page_of(found, folder / "curves.png", likeness(studies, folder), pictures)
    with atomic_write(folder / "index.html") as file:
        file.write(page)
    print(f"{as_text(found)}\n{folder / 'index.html'}")


def measured(study: Study, flags: Flags) -> dict[str, Any]:
    """Scores of every block; each part is kept in a file of its own."""
    asked = similarity.SimilarityFlags(
        flags.encoder, flags.encoder_weights, pictures=flags.similarity_images
    )
    if flags.encoder:  # if it is refused, then before the probes
        beside = study.at(flags.encoder_noise)
        encoder = similarity.other_of(beside, asked)
    found = kept(study, "classification", ProbeFlags, lambda: probed(study, flags))
    scores = {name: found[name] for name in ("accuracy", "ridge", "knn")}
    if flags.masks:
        segmented = segmentation.segmented
        found = kept(
            study, "segmentation", SegmentationFlags,
            lambda: segmented(study.subject, flags, flags.seed, study.folder),
        )  # fmt: skip
        scores["miou"] = found["miou"]
    views = {"view": study.subject.identity}
    if flags.encoder:
        found = kept(
            beside, "encoder", similarity.SimilarityFlags,
            lambda: similarity.compared(beside, asked), encoder.subject.identity,
        )  # fmt: skip
        scores |= {name: [row[0] for row in found[name]] for name in similarity.METRICS}
        views["encoder_view"] = beside.subject.identity
    return {"network": study.subject.name, "data": study.domain.name, "scores": scores,
            "blocks": list(study.subject.blocks), **views}  # fmt: skip


def kept(
    study: Study, name: str, part: type, measure: Callable[[], dict[str, Any]], *others: Any
) -> dict[str, Any]:
    """What an earlier run measured of the same network and images, or what is measured now.

    Args:
        part: whose flags it depends on, besides those that choose network and images.
        others: other networks that it depends on.
    """
    path = study.folder / f"{name}.report.json"
    own = {field.name for field in fields(part)} - {field.name for field in fields(StudyFlags)}
    key = {
        "network": study.subject.identity, "blocks": list(study.subject.blocks),
        "data": [study.reading(held_out=one).data for one in (False, True)],
        "seed": study.flags.seed, "others": list(others),
        **{field: str(getattr(study.flags, field, None)) for field in sorted(own)},
    }  # fmt: skip
    if path.exists() and (there := read_json(path)).get("key") == json.loads(json.dumps(key)):
        return there["found"]
    found = measure()
    write_json(path, {"key": key, "found": found})
    return found


def ratios(found: list[dict[str, Any]]) -> dict[str, float]:
    """By score, the first network's mean over the blocks over the second's; of scores that are
    shares alone: an unbiased one may be 0 and below."""
    if len(found) < 2:
        return {}
    first, second = (one["scores"] for one in found)
    return {
        name: float(np.mean(first[name]) / np.mean(second[name]))
        for name in first
        if name not in UNBIASED and np.mean(second[name]) > 0
    }


def likeness(studies: list[Study], folder: Path) -> list[Path]:
    """Heat maps of every network's blocks among themselves."""
    paths = []
    for number, study in enumerate(studies, start=1):
        found = similarity.compared(study, similarity.SimilarityFlags(pictures=1000))
        paths.append(folder / f"blocks-{number}.png")
        similarity.draw(found, paths[-1])
    return paths


def rows_of(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Mean and best over the blocks by score and network, and the ratio of the means."""
    numbers = range(1, len(found) + 1)
    head = ["", *(f"{what} of {number}" for number in numbers for what in ("mean", "best"))]
    over = ratios(found)
    rows = []
    for name in found[0]["scores"]:
        cells = []
        for one in found:
            values = one["scores"][name]
            best = int(np.argmax(values))
            cells += [f"{np.mean(values):.4f}", f"{values[best]:.4f} (block {one['blocks'][best]})"]
        if len(found) > 1:
            means = [float(np.mean(one["scores"][name])) for one in found]
            ratio = f"{over[name] - 1:+.1%}" if name in over else "-"
            cells += [f"{means[0] - means[1]:+.4f}", ratio]
        rows.append([by_block.SHOWN[name], *cells])
    return [*head, *(["1 - 2", "1 over 2"] if len(found) > 1 else [])], rows


def as_text(found: list[dict[str, Any]]) -> str:
    head, rows = rows_of(found)
    first = f"{found[0]['data']}, features of {len(found[0]['blocks'])} blocks"
    return "\n".join([first, *numbered(found), columns(head, rows)])


def numbered(found: list[dict[str, Any]]) -> list[str]:
    return [f"{number}: {one['network']}" for number, one in enumerate(found, start=1)]


def page_of(
    found: list[dict[str, Any]], curves: Path, alike: list[Path], pictures: list[Path]
) -> bytes:
    noise = found[0]["view"].get("noise")
    shown = "" if noise is None else f", {noise:.0%} noise, {found[0]['view']['label']} label"
    if "noise" in found[0].get("encoder_view", {}):
        shown += f"; {found[0]['encoder_view']['noise']:.0%} noise beside the encoder"
    parts = [
        f"<p>{html.escape(found[0]['data'])}{shown}. {html.escape('; '.join(numbered(found)))}. "
        "Dashed lines are means over the blocks.</p>\n",
        pages.table(*rows_of(found)), pages.inlined(curves),
        "<h2>PCA maps</h2>\n", *map(pages.inlined, pictures),
        "<h2>Blocks among themselves</h2>\n", *map(pages.inlined, alike),
    ]  # fmt: skip
    return pages.page("What the blocks tell", parts)


if __name__ == "__main__":
    run(main)
