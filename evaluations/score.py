"""The first score: Frechet distance and class accuracy under a classifier of the data set itself.

python -m evaluations.score samples/NAME.npz"""

import json
import platform
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

import domains
from domains.codecs import PIXELS
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write, sha256_of
from runtime.random import generator

from . import classifier as classifiers
from .classifier import Classifier, Images, images_of
from .frechet import Moments, frechet_distance

MIN_ACCURACY = 0.8  # a classifier trained here must read this share of held-out images
ROWS, COLUMNS = 20, 8  # of the picture: at most so many classes, so many images of each


@dataclass(frozen=True)
class Yardstick:
    """What samples are held against: the real images as a classifier sees them."""

    reference: Moments  # of the training images' features
    held_out: Images  # in a random order, because a data set may lie sorted by class
    held_out_features: Tensor
    accuracy: float  # share of held-out images that the classifier reads correctly

    @classmethod
    def of(cls, domain: domains.Domain, classifier: Classifier) -> "Yardstick":
        real = images_of(domain, domain.train_set(augment=False))
        raw, y = images_of(domain, domain.held_out_set())
        order = torch.randperm(len(raw), generator=generator("cpu", "held out"))
        held_out = Images(raw[order], y[order])
        reading = classifier.read(held_out.raw)
        return cls(
            Moments.of(classifier.read(real.raw).features),
            held_out,
            reading.features,
            (reading.classes == held_out.y).double().mean().item(),
        )


def score_images(
    images: Tensor,
    labels: Tensor | None,
    domain: domains.Domain,
    classifier: Classifier,
    *,
    yardstick: Yardstick | None = None,
) -> dict[str, Any]:
    """fd_classifier and class accuracy of samples, with the floor that real images set.

    Args:
        images: uint8 (N, C, H, W), on any device.
        labels: the classes asked for, int64 (N,); None: the samples are unconditional.
        yardstick: `Yardstick.of(domain, classifier)`, when it is used more than once.

    Raises:
        InputError: images or labels that the domain cannot have, or fewer than 2 images.
    """
    check_samples(images, labels, domain)
    yardstick = yardstick or Yardstick.of(domain, classifier)
    reading = classifier.read(images.cpu())
    floor_n = min(len(images), len(yardstick.held_out_features))
    floor = Moments.of(yardstick.held_out_features[:floor_n])
    right = None
    if labels is not None:
        right = (reading.classes == labels.cpu()).double().mean().item()
    return {
        "dataset_name": domain.name,
        "n": len(images),
        "fd_classifier": frechet_distance(Moments.of(reading.features), yardstick.reference),
        "floor": frechet_distance(floor, yardstick.reference),
        "floor_n": floor_n,
        "accuracy": right,
        "reference": {"images": "real training images", "n": yardstick.reference.n},
        "classifier": {
            "name": classifier.name,
            "sha256": classifier.fingerprint,
            "held_out_accuracy": yardstick.accuracy,
        },
    }


def check_samples(
    images: Tensor, labels: Tensor | None, domain: domains.Domain, called: str = "samples"
) -> None:
    if len(images) < 2:
        raise InputError(
            f"{called}: a Frechet distance needs at least 2 images, not {len(images)}; "
            "see --num-fid-samples of sample_ddp.py"
        )
    if tuple(images.shape[1:]) != domain.raw_shape:
        raise InputError(
            f"{called}: the images are {tuple(images.shape[1:])} (channels, height, width), "
            f"but --dataset_name {domain.name} has {domain.raw_shape}"
        )
    if labels is None:
        return
    if len(labels) != len(images):
        raise InputError(f"{called}: {len(images)} images, but {len(labels)} class ids")
    wrong = labels[(labels < 0) | (labels >= domain.num_classes)]
    if len(wrong):
        raise InputError(
            f"{called}: class id {wrong[0]} among the labels, but --dataset_name {domain.name} "
            f"has 0 to {domain.num_classes - 1}"
        )


def score(
    samples: str | Path,
    *,
    dataset_name: str | None = None,
    classifier: str | Path | None = None,
    data_path: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Any]:
    """Score an .npz of samples; writes NAME.score.json and NAME.score.png beside it.

    Args:
        dataset_name: None: as the protocol JSON beside the samples says.
        classifier: a file of evaluations.classifier; None: one beside the samples, made if missing.

    Raises:
        InputError: what the samples, the data or the classifier lack; nothing is written then.
    """
    samples = Path(samples)
    images, labels = read_samples(samples)
    protocol = read_protocol(beside(samples, ".json"))
    domain = domain_of(
        samples, protocol, dataset_name=dataset_name, data_path=data_path, cache_dir=cache_dir
    )
    check_samples(images, labels, domain, called=str(samples))
    file = Path(classifier or samples.parent / f"classifier-{domain.name.replace('/', '-')}.pt")
    if classifier or file.exists():
        network = classifiers.load(file, domain)
    else:
        network = classifiers.train_to_file(domain, file, min_accuracy=MIN_ACCURACY)

    yardstick = Yardstick.of(domain, network)
    result = score_images(images, labels, domain, network, yardstick=yardstick)
    picture = beside(samples, ".score.png")
    shown = network.read(images).classes if labels is None else labels
    save_comparison(picture, domain, real=yardstick.held_out, samples=Images(images, shown))
    result["classifier"]["file"] = str(file)
    result |= {
        "samples": str(samples),
        "samples_sha256": sha256_of(samples),
        "picture": str(picture),
        "protocol": protocol,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }  # fmt: skip
    with atomic_write(beside(samples, ".score.json")) as handle:
        handle.write(json.dumps(result, indent=2).encode())
    return result


def beside(samples: Path, ending: str) -> Path:
    return samples.with_name(samples.name.removesuffix(".npz") + ending)


def read_samples(path: Path) -> tuple[Tensor, Tensor | None]:
    """arr_0 of an .npz as uint8 (N, C, H, W), and arr_1, the labels, if it is there.

    Raises:
        InputError: no such file, damaged, or another kind of arrays. Nothing is unpickled.
    """
    if not path.is_file():
        raise InputError(f"samples {path}: there is no such file; sample_ddp.py writes it")
    if not zipfile.is_zipfile(path):
        raise InputError(f"samples {path}: this is no .npz file, or only the beginning of one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            arrays = {name: archive[name] for name in ("arr_0", "arr_1") if name in names}
    except (
        OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError,
        MemoryError, OverflowError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = str(error).strip().split("\n")[0][:160]
        raise InputError(f"samples {path}: this is no readable .npz file ({reason})") from error
    images, labels = arrays.get("arr_0"), arrays.get("arr_1")
    if not isinstance(images, np.ndarray):
        there = ", ".join(names) or "nothing"
        raise InputError(f"samples {path}: it has no array arr_0 (the images), but {there}")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(
            f"samples {path}: arr_0 is {images.dtype} {images.shape}, "
            "not uint8 (N, height, width, channels)"
        )
    raw = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    if labels is None:
        return raw, None
    if getattr(labels, "shape", None) != images.shape[:1] or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else "no array"
        raise InputError(
            f"samples {path}: arr_1 is {found}, not a class id for each of {len(images)} images"
        )
    return raw, torch.from_numpy(labels.astype(np.int64))


def read_protocol(path: Path) -> dict[str, Any]:
    """The JSON that sample_ddp.py writes beside its samples; empty where there is none.

    Raises:
        InputError: it is not what sample_ddp.py writes.
    """
    if not path.is_file():
        return {}
    try:
        protocol = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): delete it, or draw again") from error
    kinds = {"dataset_name": str, "image_size": int}
    if not isinstance(protocol, dict) or any(
        not isinstance(protocol.get(key), kind | None) for key, kind in kinds.items()
    ):
        raise InputError(f"{path} is no protocol of sample_ddp.py: delete it, or draw again")
    return protocol


def domain_of(
    samples: Path, protocol: dict[str, Any], *, dataset_name: str | None, **where: str | None
) -> domains.Domain:
    """The data set that the samples should look like, with all its classes."""
    name = dataset_name or protocol.get("dataset_name")
    if name is None:
        raise InputError(
            f"samples {samples}: no {beside(samples, '.json').name} beside them says "
            "what they should look like: give --dataset_name"
        )
    size = protocol.get("image_size") if name == protocol.get("dataset_name") else None
    return domains.build(name, image_size=size, vae=PIXELS, **where)


def save_comparison(path: Path, domain: domains.Domain, *, real: Images, samples: Images) -> None:
    """A row per class: real images, a gap, samples."""
    blank = torch.full((1, *domain.raw_shape), 255, dtype=torch.uint8)

    def row(images: Images, label: int) -> Tensor:
        chosen = images.raw[images.y == label][:COLUMNS]
        return torch.cat([chosen, blank.expand(COLUMNS - len(chosen), -1, -1, -1)])

    tiles = [
        torch.cat([row(real, label), blank, row(samples, label)])
        for label in range(min(domain.num_classes, ROWS))
    ]
    domain.save_grid(torch.cat(tiles), path, columns=2 * COLUMNS + 1)


def table(result: dict[str, Any]) -> str:
    """The score as people read it."""
    classifier, reference = result["classifier"], result["reference"]
    n, floor_n, accuracy = result["n"], result["floor_n"], result["accuracy"]

    def line(name: str, n: int, distance: float, accuracy: float | None) -> str:
        read = "-" if accuracy is None else f"{accuracy:.1%}"
        return f"{name:24}{n:>8}{distance:>16.3f}{read:>16}"

    rows = "class asked for" if accuracy is not None else "class that the classifier reads"
    lines = [
        f"{result['dataset_name']}: distance to the {reference['n']} {reference['images']} "
        f"under {classifier['name']}",
        f"{'':24}{'n':>8}{'fd_classifier':>16}{'class is right':>16}",
        line("samples", n, result["fd_classifier"], accuracy),
        line("real, held out (floor)", floor_n, result["floor"], classifier["held_out_accuracy"]),
        f"picture: a row per {rows}; left real held-out images, right samples",
    ]
    if floor_n < n:
        lines.append(
            f"no more than {floor_n} real images are held out: at {n} the floor would be lower"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class ScoreFlags:
    """Score samples under a small classifier trained on the data set itself.

    fd_classifier is the Frechet distance between the classifier's features of the samples and of
    the real training images: 0 is perfect, and the floor is what as many held-out real images get.
    It is no FID, and comparable only under the same classifier file at the same n. Where the
    samples have labels, the second number is the share that the classifier reads as asked for.

    python -m evaluations.score samples/NAME.npz
    """

    samples: tyro.conf.Positional[Path]  # .npz of sample_ddp.py: arr_0 images, arr_1 labels
    dataset_name: str | None = None  # None: as the protocol JSON beside the samples says
    classifier: Path | None = None  # None: one beside the samples, trained if it is missing
    data_path: str | None = None  # folder of the data, where it is local
    cache_dir: str = "./cache/"  # downloads of data sets


def main() -> None:
    flags = tyro.cli(ScoreFlags, console_outputs=speaks())
    result = score(
        flags.samples, dataset_name=flags.dataset_name, classifier=flags.classifier,
        data_path=flags.data_path, cache_dir=flags.cache_dir,
    )  # fmt: skip
    print(table(result))
    print(result["picture"])
    print(beside(flags.samples, ".score.json"))


if __name__ == "__main__":
    run(main)
