"""The scores of samples against a reference, with what they depend on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from evaluations.extractors import Extractor
from evaluations.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from runtime.errors import InputError

from .features import Seen
from .reference import KEPT, Reference

FID_SAMPLES = 50_000  # what published FIDs are of
NEIGHBOURS = 3
BLOCK = 1000  # images at most, of the kernel distance


@dataclass(frozen=True)
class How:
    """What the numbers depend on besides images and extractor."""

    half: bool  # distances for precision and recall in float16, as ADM computes them
    split: int = 5000  # images per split of the Inception score

    def facts(self) -> dict[str, Any]:
        return {
            "precision_recall": {"k": NEIGHBOURS, "distances": "half" if self.half else "float32"},
            "inception_score_split": self.split,
            "kernel_distance": {"block": BLOCK, "seed": 0},
        }


class Scores(NamedTuple):
    values: dict[str, float]  # by name, in the order in which they are printed
    intervals: dict[str, tuple[float, float]]  # 95 %, of those that have one


def scores_of(seen: Seen, reference: Reference, extractor: Extractor, how: How) -> Scores:
    """The scores that the extractor has features for.

    Raises:
        InputError: too few images, or labels that the classifier does not know.
    """
    device, frechet = extractor.device, extractor.distance
    kernel = "k" + frechet[1:]  # fid, sfid, kid; fd_classifier, kd_classifier
    try:
        scores = {frechet: frechet_distance(seen.moments, reference.moments)}
        if seen.spatial and reference.spatial:
            scores["s" + frechet] = frechet_distance(seen.spatial, reference.spatial)
        if (probabilities := extractor.probabilities(seen.pool.to(device))) is not None:
            scores["inception_score"] = inception_score(probabilities, how.split)
            if extractor.reads_labels and seen.y is not None:
                scores["accuracy"] = accuracy(probabilities, seen.y)
        real, drawn = reference.pool.to(device), seen.pool.to(device)
        manifold = precision_recall(real, drawn, k=NEIGHBOURS, half=how.half)
        scores |= {"precision": manifold.precision, "recall": manifold.recall}
        found = kernel_distance(real, drawn, block=BLOCK)
    except ValueError as error:
        raise InputError(str(error)) from error
    return Scores(scores | {kernel: found.value}, {kernel: (found.low, found.high)})


def accuracy(probabilities: Tensor, y: Tensor) -> float:
    """The share of images that are read as the class they were asked to be of."""
    classes = probabilities.shape[1]
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise InputError(
            f"class id {wrong[0]} among the labels, but the classifier knows 0 to {classes - 1}"
        )
    return (probabilities.argmax(1).cpu() == y).double().mean().item()


def warnings_of(
    scores: Scores, seen: Seen, reference: Reference, extractor: Extractor, how: How
) -> list[str]:
    """What makes these numbers hard to compare."""
    found, count, width = [], len(seen), seen.pool.shape[1]
    if "inception_score" in scores.values and count > how.split and count % how.split:
        found.append(
            f"the last {count % how.split} images count for the Inception score like each "
            f"{how.split} before them, as in ADM's evaluator: draw a multiple of {how.split}"
        )
    if count <= width:
        found.append(
            f"{count} images are too few for a covariance of {width} features: "
            f"{extractor.distance} has a large bias"
        )
    if reference.count is not None and reference.count <= width:
        found.append(
            f"{reference.name} has {reference.count} images, too few for a covariance of {width} "
            f"features: {extractor.distance} has a large bias"
        )
    if extractor.distance == "fid" and len(reference.pool) < KEPT:
        found.append(
            f"precision and recall are of {len(reference.pool)} images of {reference.name}: those "
            f"of {KEPT}, which published ones are of, are others"
        )
    if extractor.distance == "fid" and count != FID_SAMPLES:
        found.append(
            f"FID falls with the number of images: {count} are not comparable with {FID_SAMPLES}"
        )
    if seen.brightest <= 1:
        found.append(f"no pixel is brighter than {seen.brightest} of 255: were these floats?")
    if not reference.vouched:
        found.append(
            f"{reference.name} does not say which weights its statistics are of, and these are not "
            "the published ones"
        )
    return found
