"""Score images as ADM's evaluator does, without TensorFlow, and small data honestly.

python -m evaluations.images REF.npz SAMPLES.npz
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import domains
import layersync
from domains.codecs import PIXELS
from evaluations.extractors import Extractor, open_extractor
from evaluations.extractors import classifier as classifiers
from runtime import distributed
from runtime.config import at_least, checked
from runtime.distributed import Ranks
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.hardware import versions

from . import report
from .evaluator import Evaluator, clips_of
from .reference import make_reference
from .scores import How
from .sources import DataSetImages, Images, Real, open_images, size_of

MIN_ACCURACY = 0.8  # a classifier trained here must read this share of held-out images


@dataclass(frozen=True)
class Flags:
    # inception, classifier, classifier:FILE, timm:MODEL; of sounds clap:MODEL, clap-fadtk:MODEL, of
    # videos i3d:FILE
    extractor: str = "inception"
    inception_weights: Path | None = None  # its file; None: where torch keeps downloads
    extractor_weights: Path | None = None  # file of timm:MODEL; None: where timm keeps downloads
    allow_unverified_weights: bool = False  # an Inception or I3D with another SHA-256
    data_path: str | None = None  # folder of a data set's files
    image_size: int | None = None  # pixels that folders are cropped to; None: the samples'
    num_frames: int | None = None  # of a data set's clips; None: the samples'
    frame_stride: int | None = None  # of a data set's clips; None: the samples', or the data set's
    cache_dir: str = "./cache/"  # downloads of data sets
    num_workers: int = 4  # processes that decode the images of folders
    batch_size: int = 64  # images per batch and process
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one


@dataclass(frozen=True)
class ScoreFlags(Flags):
    """FID, sFID, Inception score, precision, recall and KID of samples.

    REF is an .npz of ADM or of make-reference, a folder of images, or a data set by its name.
    Several SAMPLES are independent sets of one model: their means and intervals follow.
    Other commands: make-reference, train-classifier, --compare A.score.json B.score.json.

    $ python -m evaluations.images VIRTUAL_imagenet256_labeled.npz samples/NAME.npz
    $ python -m evaluations.images digits samples/NAME.npz --extractor classifier
    $ torchrun --nproc_per_node=8 -m evaluations.images REF.npz SAMPLES.npz
    """

    # .npz, folder or data set
    reference: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REF")] = tyro.MISSING
    # .npz files or folders
    samples: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SAMPLES [SAMPLES ...]")
    ] = tyro.MISSING
    # REF is the held-out part of its data set, of it as many as there are samples; no floor is set
    held_out: bool = False
    pr_precision: Literal["half", "float32"] | None = None  # None: half for Inception, as ADM
    is_split: int = 5000  # images per split of the Inception score
    out: Path | None = None  # a JSON of all results; None: NAME.score.json beside each alone


@dataclass(frozen=True)
class ReferenceFlags(Flags):
    """Write a reference as ADM's: statistics of all images, and 10,000 of them, or of sounds and
    clips the features of as many.

    $ python -m evaluations.images make-reference digits --out digits.npz --extractor classifier:F
    """

    # .npz, folder or data set
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")] = tyro.MISSING
    out: Path = tyro.MISSING  # the .npz to write
    # of the held-out part of a data set alone, so many, as many as there will be samples: no floor
    held_out: int | None = None


@dataclass(frozen=True)
class ClassifierFlags:
    """Train the small classifier under which small data are scored.

    Scores are comparable only under the same file: publish it with them.

    $ python -m evaluations.images train-classifier --dataset_name digits --out clf.pt
    """

    dataset_name: str  # a small labeled data set with held-out images: digits, fashion-mnist
    out: Path  # the file to write
    data_path: str | None = None  # folder of the data, where it is local
    image_size: int | None = None  # pixels; None: the data set's
    num_frames: int | None = None  # of clips; None: the data set's
    frame_stride: int | None = None  # of clips; None: the data set's
    cache_dir: str = "./cache/"  # downloads of data sets
    min_accuracy: float = MIN_ACCURACY  # on held-out images; a worse classifier is not saved


@dataclass(frozen=True)
class CompareFlags:
    """The scores of several results side by side, if they were made alike.

    $ python -m evaluations.images --compare A.score.json B.score.json
    """

    compare: tuple[Path, ...]  # what this tool wrote beside samples
    anyway: bool = False  # compare results of unequal protocols


def score() -> None:
    flags = checked(tyro.cli(ScoreFlags, console_outputs=speaks()))
    if not flags.samples:
        raise InputError("SAMPLES are missing: name one .npz or more")
    check_out(flags)
    ranks = distributed.start(flags.device)
    sets = [opened(name, flags).images for name in flags.samples]
    report.check_sets(flags.samples, sets)
    protocols = [protocol_of(name, one) for name, one in zip(flags.samples, sets, strict=True)]
    stride = stride_of(flags, protocols)
    held_out = len(sets[0]) if flags.held_out else None
    real = opened(
        flags.reference, flags, shape=sets[0].shape, frame_stride=stride, held_out=held_out
    )
    check_clips(flags.reference, sets, stride, real.images)
    folder = report.beside(flags.samples[0], "").parent
    extractor = extractor_of(flags, ranks, real, folder)
    half = extractor.half_distances if flags.pr_precision is None else flags.pr_precision == "half"
    evaluator = Evaluator(real, extractor, ranks, How(half, flags.is_split), batch=flags.batch_size)
    results = []
    for name, samples, protocol in zip(flags.samples, sets, protocols, strict=True):
        result = {"samples": name, **evaluator.evaluate(samples), "protocol": protocol}
        results.append(ranks.from_main(partial(written, result, samples, real)))
    if len(results) > 1:
        found = report.summary(results)
        ranks.from_main(lambda: print(report.summary_table(found)))
    if flags.out:
        content = {"results": results} | ({"summary": found} if len(results) > 1 else {})
        ranks.from_main(lambda: write_json(flags.out, content))


def check_out(flags: ScoreFlags) -> None:
    """Refuse what cannot be written before the work rather than after it."""
    if flags.out and flags.out.is_dir():
        raise InputError(f"--out {flags.out} is a folder: give it the name of a file")
    for name in flags.samples:
        folder = report.beside(name, "").parent
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise InputError(f"{folder} cannot be written to: move or link {name} elsewhere")


def protocol_of(name: str, samples: Images) -> dict[str, Any] | None:
    protocol = report.read_protocol(name)
    if protocol and protocol.get("samples", len(samples)) != len(samples):
        raise InputError(
            f"{name} has {len(samples)} images, but its protocol says {protocol['samples']}: draw "
            "it again"
        )
    return protocol


def stride_of(flags: ScoreFlags, protocols: list[dict[str, Any] | None]) -> int | None:
    """Frames of a video from one of a clip to the next: the samples', as far as they say.

    Raises:
        InputError: --frame-stride is another.
    """
    said = [(protocol or {}).get("frame_stride") for protocol in protocols]
    drawn = next((stride for stride in said if type(stride) is int), None)
    asked = flags.frame_stride
    if None not in (asked, drawn) and asked != drawn:
        raise InputError(f"--frame-stride {asked}: the samples have {drawn}, leave it out")
    return drawn or asked


def check_clips(name: str, sets: list[Images], stride: int | None, real: Images) -> None:
    """Refuse to hold clips against others, before an extractor sees them.

    Raises:
        InputError: the real ones differ in shape or stride.
    """
    for samples in sets:
        clips_of(samples, real)
    if None not in (stride, real.frame_stride) and stride != real.frame_stride:
        raise InputError(
            f"{name} has every {real.frame_stride}. frame of its videos, and the samples every "
            f"{stride}.: give another reference"
        )


def written(result: dict[str, Any], samples: Images, real: Real) -> dict[str, Any]:
    """The whole result of one set, printed, and beside the set as JSON and as a picture."""
    picture, path = (report.beside(result["samples"], f".score.{end}") for end in ("png", "json"))
    report.save_sheet(picture, real.held_out or real.images, samples)
    result |= {
        "samples_sha256": samples.fingerprint(),
        "picture": str(picture),
        "versions": versions() | {"layersync": layersync.__version__},
    }
    write_json(path, result)
    print(f"{report.table(result)}\n{picture}\n{path}")
    return result


def write_reference() -> None:
    flags = checked(tyro.cli(ReferenceFlags, args=sys.argv[2:], console_outputs=speaks()))
    if flags.out.is_dir():
        raise InputError(f"--out {flags.out} is a folder: give it the name of a file")
    at_least(flags, held_out=1)
    ranks = distributed.start(flags.device)
    real = opened(flags.data, flags, held_out=flags.held_out)
    extractor = extractor_of(flags, ranks, real, flags.out.parent)
    made = make_reference(real, extractor, ranks, flags.out, batch=flags.batch_size)
    note = f"\nnote: {real.warning}" if real.warning else ""
    ranks.from_main(
        lambda: print(
            f"{flags.out}: {made.count} images of {made.name} as {extractor.name} sees them{note}"
        )
    )


def train_classifier() -> None:
    flags = checked(tyro.cli(ClassifierFlags, args=sys.argv[2:], console_outputs=speaks()))
    if flags.out.is_dir():
        raise InputError(f"--out {flags.out} is a folder: give it the name of a file")
    domain = domains.build(
        flags.dataset_name, data_path=flags.data_path, image_size=flags.image_size,
        vae=PIXELS, num_frames=flags.num_frames, frame_stride=flags.frame_stride,
        cache_dir=flags.cache_dir,
    )  # fmt: skip
    classifier = classifiers.train_to_file(domain, flags.out, min_accuracy=flags.min_accuracy)
    print(f"{classifier.name}: {classifier.accuracy:.2%} of held-out images read correctly")
    print(flags.out)


def compare() -> None:
    flags = tyro.cli(CompareFlags, console_outputs=speaks())
    print(report.compare(flags.compare, anyway=flags.anyway))


def opened(
    asked: str, flags: Flags, *, shape: tuple[int, ...] = (), frame_stride: int | None = None,
    held_out: int | None = None,
) -> Real:  # fmt: skip
    """
    Args:
        shape, frame_stride: of the samples that they are opened for.
        held_out: see open_images.
    """
    return open_images(
        asked, image_size=flags.image_size or size_of(shape), data_path=flags.data_path,
        num_frames=flags.num_frames or (shape[1] if len(shape) == 4 else None),
        frame_stride=flags.frame_stride or frame_stride, held_out=held_out,
        cache_dir=flags.cache_dir, workers=flags.num_workers,
    )  # fmt: skip


def extractor_of(flags: Flags, ranks: Ranks, real: Real, folder: Path) -> Extractor:
    """What --extractor names; `classifier` alone is trained on the data set of the reference, once
    per folder."""
    asked = flags.extractor
    if asked == "classifier":
        file = ranks.from_main(lambda: trained_classifier(real, folder))
        asked = f"classifier:{file}"
    if flags.extractor_weights and not asked.startswith("timm:"):
        raise InputError("--extractor-weights are those of --extractor timm:MODEL")
    if flags.inception_weights and not asked.startswith("inception"):
        raise InputError("--inception-weights are those of --extractor inception")
    extractor = open_extractor(
        asked, ranks.device, weights=flags.extractor_weights or flags.inception_weights,
        allow_unverified=flags.allow_unverified_weights,
    )  # fmt: skip
    trained_on = getattr(extractor, "dataset_name", None)
    if isinstance(real.images, DataSetImages) and trained_on not in (None, real.images.domain.name):
        raise InputError(
            f"--extractor {asked} was trained on {trained_on}, but the reference is "
            f"{real.images.name}"
        )
    return extractor


def trained_classifier(real: Real, folder: Path) -> Path:
    if not isinstance(real.images, DataSetImages):
        raise InputError(
            "--extractor classifier trains on the data set that is the reference: name one (digits,"
            " fashion-mnist), or give the file of a trained one, --extractor classifier:FILE"
        )
    file = folder / f"classifier-{real.images.domain.name.replace('/', '-')}.pt"
    if not file.exists():
        classifiers.train_to_file(real.images.domain, file, min_accuracy=MIN_ACCURACY)
    return file


COMMANDS = {
    "make-reference": write_reference,
    "train-classifier": train_classifier,
    "--compare": compare,
}


def main() -> None:
    words = [word.partition("=")[0] for word in sys.argv[1:]]
    asked = "--compare" if "--compare" in words else next(iter(words), "")
    COMMANDS.get(asked, score)()


if __name__ == "__main__":
    run(main)
