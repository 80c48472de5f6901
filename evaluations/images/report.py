"""Results as JSON, as tables, and as a sheet of pictures."""

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.clips import strips
from domains.pictures import save_grid
from domains.sound import pictures
from evaluations.metrics import mean_interval
from runtime.errors import InputError
from runtime.text import columns
from runtime.untrusted import read_json

from .sources import WINDOWS, Block, Images, NpzImages

ROWS, COLUMNS = 20, 8  # of the sheet: at most so many classes, so many images of each
NAMES = {
    "fid": "FID", "sfid": "sFID", "inception_score": "Inception score", "precision": "precision",
    "recall": "recall", "kid": "KID", "accuracy": "class is right", "fvd": "FVD", "kvd": "KVD",
}  # fmt: skip
# Parts of the samplers' protocols that may differ between runs that are compared.
OWN = {"checkpoint", "seed", "batch", "seed_scheme", "network_calls", "network_rows_per_sample",
       "versions", "device", "attention", "compiled", "bits_per_dim", "standard_error"}  # fmt: skip


def beside(samples: str, ending: str) -> Path:
    path = Path(samples).absolute()
    path = Path(os.path.normpath(path))  # "." has no name
    return path.with_name(path.name.removesuffix(".npz") + ending)


def read_protocol(samples: str) -> dict[str, Any] | None:
    """The JSON that sample_ddp.py writes beside its samples; None where there is none.

    Raises:
        InputError: it is not what sample_ddp.py writes.
    """
    path = beside(samples, ".json")
    if not path.is_file():
        return None
    protocol = read_json(path)
    parts = [protocol.get("sampler"), protocol.get("guidance", {})]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{path} is no protocol of sample_ddp.py: delete it, or draw again")
    return protocol


def shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name == "accuracy" else f"{value:.4g}"


def table(result: dict[str, Any]) -> str:
    """One set of samples beside the floor that held-out real images set."""
    scores, floor = result["scores"], result["floor"]
    extractor, reference = result["extractor"], result["reference"]
    head = ["", "samples"] + (["real, held out"] if floor else [])
    rows = [["images", str(result["images"])] + ([str(floor["images"])] if floor else [])]
    for name, value in scores.items():
        cells = [NAMES.get(name, name), shown(name, value)]
        rows.append(cells + ([shown(name, floor["scores"].get(name))] if floor else []))
    intervals = [
        f"{NAMES.get(name, name)}: 95 % interval {shown(name, low)} to {shown(name, high)}"
        for name, (low, high) in result["intervals"].items()
    ]
    lines = [
        f"{result['samples']} beside {reference['name']}, seen by {extractor['name']}",
        columns(head, rows), *intervals, how_it_was(result),
        *(f"note: {one}" for one in result["warnings"]),
    ]  # fmt: skip
    if floor and floor["images"] < result["images"]:
        lines.append(
            f"note: only {floor['images']} real images are held out: at {result['images']} the "
            "floor would be lower"
        )
    return "\n".join(lines)


def how_it_was(result: dict[str, Any]) -> str:
    """What the scores depend on, in a line; the JSON has all of it."""
    neighbors = result["how"]["precision_recall"]
    parts = [f"precision and recall by {neighbors['k']} neighbors in {neighbors['distances']}"]
    if "clips" in result:
        clips = result["clips"]
        parts.append(f"{clips['frames']} frames of {clips['width']} x {clips['height']} pixels")
    if "inception_score" in result["scores"]:
        parts.append(f"Inception score by {result['how']['inception_score_split']} images")
    protocol = result["protocol"] or {}
    sampler, guidance = protocol.get("sampler", {}), protocol.get("guidance", {})
    keys = ("mode", "sampling_method", "num_sampling_steps")
    parts.append(
        ", ".join(str(sampler[key]) for key in keys if key in sampler) or "sampler unknown"
    )
    parts += [f"guidance {guidance['scale']}"] if "scale" in guidance else []
    return "; ".join(parts)


def check_sets(names: Sequence[str], sets: Sequence[Images]) -> None:
    """Refuse sets that are no samples, or of which a mean says nothing.

    Raises:
        InputError: one keeps features of parts of sounds, or is there twice, they differ in number,
            or they were drawn differently; by what their protocols say, they are of other models,
            or with one seed the same samples.
    """
    for samples in sets:
        if isinstance(samples, NpzImages) and WINDOWS in samples.names:
            raise InputError(
                f"{samples.name} keeps one window of every sound, and its FAD would be of another "
                "kind: score the sounds themselves"
            )
    if len({beside(name, "") for name in names}) < len(names):
        raise InputError("one of the SAMPLES is named twice: independent sets are of other seeds")
    for name, samples in zip(names[1:], sets[1:], strict=True):
        if len(samples) != len(sets[0]):
            raise InputError(
                f"{names[0]} has {len(sets[0])} images and {name} {len(samples)}: independent sets "
                "of one model are of one size"
            )
        one, other = (comparable(read_protocol(each)) for each in (names[0], name))
        changed = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        if changed:
            raise InputError(
                f"{names[0]} and {name} were drawn with another {', '.join(changed)}: score them "
                "one by one"
            )
    origins = [origin(read_protocol(name)) for name in names]
    if len({model for model, _ in origins if model}) > 1:
        raise InputError(
            "the SAMPLES were drawn from different checkpoints: independent sets are of one model, "
            "so score them one by one"
        )
    known = [one for one in origins if None not in one]
    if len(set(known)) < len(known):
        raise InputError(
            "two of the SAMPLES were drawn with the same seed and are the same images: draw one "
            "with another --global-seed"
        )


def origin(protocol: dict[str, Any] | None) -> tuple[str | None, int | None]:
    """The hash of the checkpoint and the seed that samples are of, as far as their protocol says
    so."""
    said = protocol or {}
    model, seed = said.get("checkpoint"), said.get("seed")
    model = model.get("sha256") if isinstance(model, dict) else None
    return model if type(model) is str else None, seed if type(seed) is int else None


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over independent sets of samples: the mean of every score and its 95 % interval."""
    names = [n for n in results[0]["scores"] if all(n in r["scores"] for r in results)]
    return {
        "sets": [result["samples"] for result in results],
        "scores": {
            name: mean_interval([r["scores"][name] for r in results])._asdict() for name in names
        },
    }


def summary_table(found: dict[str, Any]) -> str:
    head = ["", "mean", "95 % interval", "standard deviation"]
    rows = [
        [
            NAMES.get(name, name), shown(name, one["mean"]),
            f"{shown(name, one['low'])} to {shown(name, one['high'])}", shown(name, one["std"]),
        ]
        for name, one in found["scores"].items()
    ]  # fmt: skip
    return f"{len(found['sets'])} independent sets\n{columns(head, rows)}"


def compare(paths: Sequence[Path], *, anyway: bool) -> str:
    """The scores of several results side by side.

    Raises:
        InputError: they were not made alike, unless `anyway`; or are no results.
    """
    named = [pair for path in paths for pair in read_results(path)]
    if len(named) < 2:
        raise InputError("--compare needs two results or more")
    (first_name, first), *others = named
    notes = []
    for name, result in others:
        one, other = conditions(first), conditions(result)
        differing = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        if differing:
            notes.append(f"{first_name} and {name} differ in {', '.join(differing)}")
    if notes and not anyway:
        raise InputError(
            f"{notes[0]}, so their scores are not comparable: --anyway shows them all the same"
        )
    scores = list(dict.fromkeys(name for _, result in named for name in result["scores"]))
    rows = [
        [NAMES.get(score, score)]
        + [shown(score, result["scores"].get(score)) for _, result in named]
        for score in scores
    ]
    rows.insert(0, ["images"] + [str(result["images"]) for _, result in named])
    head = ["", *(name for name, _ in named)]
    return "\n".join([columns(head, rows), *(f"note: {note}" for note in notes)])


def read_results(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The result of one set beside its samples, or those of several from --out, by name.

    Raises:
        InputError: the file is none of ours.
    """
    content = read_json(path)
    name = str(path).removesuffix(".json").removesuffix(".score")
    try:
        if "results" not in content:
            check_result(content)
            return [(name, content)]
        for result in content["results"]:
            check_result(result)
        return [(f"{name}:{i}", result) for i, result in enumerate(content["results"])]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} is no result of evaluations.images ({error!r})") from error


def check_result(result: dict[str, Any]) -> None:
    """
    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none.
    """
    numbers = [result["images"], *result["scores"].values()]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("a score is no finite number")
    conditions(result)


def conditions(result: dict[str, Any]) -> dict[str, Any]:
    """What has to be equal where scores are compared."""
    reference = {key: value for key, value in result["reference"].items() if key != "name"}
    protocol = comparable(result.get("protocol"))
    return {
        "images": result["images"], "extractor": result["extractor"], "reference": reference,
        "clips": result.get("clips"),
        **{f"how.{key}": value for key, value in result["how"].items()},
        **{f"protocol.{key}": value for key, value in protocol.items()},
    }  # fmt: skip


def comparable(protocol: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a sampler's protocol that has to be equal."""
    return {key: value for key, value in (protocol or {}).items() if key not in OWN}


def save_sheet(path: Path, real: Images, samples: Images) -> None:
    """Left real images, right samples; where both have a few classes, a row of each."""
    left, right = (first_block(images) for images in (real, samples))
    blank = torch.full((1, *right.raw.shape[1:]), 255, dtype=torch.uint8)
    if left.raw.shape[1:] != right.raw.shape[1:]:  # of another size: the samples alone
        return save_grid(right.raw[: 8 * COLUMNS], path, COLUMNS, {0: "samples"})

    def row(block: Block, number: int) -> Tensor:
        chosen = block.raw[number * COLUMNS :] if classes is None else block.raw[block.y == number]
        chosen = chosen[:COLUMNS]
        return torch.cat([chosen, blank.expand(COLUMNS - len(chosen), -1, -1, -1)])

    classes = None if left.y is None or right.y is None else int(right.y.max()) + 1
    classes = classes if classes and classes <= ROWS else None
    tiles = [
        torch.cat([row(left, number), blank, row(right, number)])
        for number in range(classes or COLUMNS)
    ]
    save_grid(torch.cat(tiles), path, 2 * COLUMNS + 1, {0: "real", COLUMNS + 1: "samples"})


# How samples look on the sheet, by the axes of one.
SHOWN = {2: pictures, 3: lambda raw: raw, 4: partial(strips, most=4, size=48)}


def first_block(images: Images) -> Block:
    """The first 400 images, or as pictures the first 64 sounds or clips."""
    axes = len(images.shape)
    count = min(400 if axes == 3 else 64, len(images))
    block = next(images.blocks(range(count), count))
    return block._replace(raw=SHOWN[axes](block.raw))
