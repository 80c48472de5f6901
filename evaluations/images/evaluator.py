"""Samples against real images, and real images against real images: the floor."""

from functools import partial
from typing import Any

from evaluations.extractors import Extractor
from runtime.distributed import Ranks
from runtime.errors import InputError

from .features import look_at
from .reference import reference_of
from .scores import How, Scores, scores_of, warnings_of
from .sources import Images, NpzImages, Real


class Evaluator:
    """Scores sets of samples against the same real images. Every rank calls; each gets the result.

    Args:
        real: what the samples should look like; its held-out part sets the floor.
        batch: images that the extractor sees at a time, per rank.
        progress: show bars.

    Raises:
        InputError: the reference does not fit the extractor, or is damaged.
    """

    def __init__(
        self, real: Real, extractor: Extractor, ranks: Ranks, how: How, *, batch: int,
        progress: bool = True,
    ) -> None:  # fmt: skip
        self.real, self.extractor, self.ranks = real, extractor, ranks
        self.how = how
        self.look_at = partial(
            look_at, extractor=extractor, ranks=ranks, batch=batch, progress=progress
        )
        self.reference = reference_of(real, extractor, self.look_at)  # on rank 0
        self.floors: dict[int, dict[str, Any] | None] = {}

    def evaluate(self, samples: Images, *, with_floor: bool = True) -> dict[str, Any]:
        """Scores, floor, and all that they depend on but how the samples were drawn.

        Raises:
            InputError: the samples are damaged, too few, or of classes that nobody knows.
        """
        scores, warnings = self.scores(samples, len(samples))
        if strange := strange_labels(samples):
            warnings.append(f"{strange}: it is passed over")
        if self.real.warning:
            warnings.append(self.real.warning)
        return {
            "images": len(samples),
            "scores": scores.values,
            "intervals": scores.intervals,
            "floor": self.floor(len(samples)) if with_floor else None,
            "extractor": {"name": self.extractor.name, "sha256": self.extractor.fingerprint},
            "reference": self.ranks.from_main(lambda: self.reference.facts()),
            "how": self.how.facts(),
            "warnings": warnings,
            **clips_of(samples, self.real.images),
        }

    def floor(self, count: int) -> dict[str, Any] | None:
        """What as many held-out real images score; None where there are none."""
        if self.real.held_out is None:
            return None
        count = min(count, len(self.real.held_out))
        if count not in self.floors:
            scores, _ = self.scores(self.real.held_out, count)
            self.floors[count] = {"images": count, "scores": scores.values}
        return self.floors[count]

    def scores(self, images: Images, count: int) -> tuple[Scores, list[str]]:
        if self.extractor.reads_labels and (strange := strange_labels(images)):
            raise InputError(
                f"{strange}, which --extractor {self.extractor.name} reads: mend it or leave it out"
            )
        seen = self.look_at(images, count=count)

        def measured() -> tuple[Scores, list[str]]:
            found = scores_of(seen, self.reference, self.extractor, self.how)
            return found, warnings_of(found, seen, self.reference, self.extractor, self.how)

        return self.ranks.from_main(measured)


def strange_labels(images: Images) -> str | None:
    """What a person is told of labels that are no classes of the images; None: there are none."""
    return images.strange if isinstance(images, NpzImages) else None


def clips_of(samples: Images, real: Images) -> dict[str, Any]:
    """What clips are, which their scores depend on; of images nothing.

    Raises:
        InputError: the real ones are of another shape, or some are images.
    """
    if 4 not in (len(samples.shape), len(real.shape)):
        return {}
    if samples.shape[1:] != real.shape[1:]:
        raise InputError(
            f"{samples.name} has {described(samples)} and {real.name} {described(real)}: scores "
            "would tell their shapes apart; leave out --image-size and --num-frames, or give "
            "another reference"
        )
    _, frames, height, width = samples.shape
    stride = real.frame_stride
    return {
        "clips": {"frames": frames, "height": height, "width": width, "frame_stride": stride}
    }  # fmt: skip


def described(images: Images) -> str:
    """As `clips of 16 frames of 256 x 256 pixels`, height first."""
    if len(images.shape) != 4:
        return "no clips"
    _, frames, height, width = images.shape
    return f"clips of {frames} frames of {height} x {width} pixels"
