"""`train.py --score-every` of pictures, clips and sounds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import domains
from evaluations.extractors import Extractor, open_extractor
from evaluations.extractors import classifier as classifiers
from evaluations.extractors.classifier import Classifier
from evaluations.in_training import Draw, TrainingScore
from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.errors import InputError

from .evaluator import Evaluator
from .scores import How
from .sources import Block, Real, held_out_of, open_images, single_labels, size_of, training_of

BATCH = 50
MOST_REAL = 50_000  # images of the data set that the samples are held against
CLASSIFIER = "classifier.pt"


class Drawn:
    """Images that a model draws as they are looked at; image i is a function of i."""

    def __init__(self, domain: domains.Domain, count: int, draw: Draw) -> None:
        self.name, self.shape = "samples", domain.raw_shape
        self.frame_stride, self.rate = domain.frame_stride, domain.rate
        self.domain, self.count, self.draw = domain, count, draw

    def __len__(self) -> int:
        return self.count

    def blocks(self, numbers: range, size: int) -> Iterator[Block]:
        for first in range(numbers.start, numbers.stop, size):
            raw, chosen = self.draw(range(first, min(first + size, numbers.stop)))
            yield Block(raw, self.classes(chosen) if self.domain.num_classes else None)

    def classes(self, chosen: Tensor) -> Tensor | None:
        y = torch.from_numpy(self.domain.labels(chosen))
        return single_labels(y) if self.domain.multi_label else y


class ImageScore(TrainingScore):
    """Scores a model by samples of --score-samples seeds; every rank draws its share.

    Args:
        folder: of a run that is resumed; the classifier that was trained for it is there.

    Raises:
        InputError: no real images or no extractor to be had, or samples that do not divide among
            the ranks, which a sharded model must draw together.
    """

    def __init__(
        self, config: TrainConfig, domain: domains.Domain, ranks: Ranks, folder: Path | None
    ) -> None:
        if config.score_samples % ranks.size:
            raise InputError(
                f"--score-samples {config.score_samples} is not divisible by {ranks.size} processes"
            )
        self.domain, self.count, self.ranks = domain, config.score_samples, ranks
        if config.score_reference:
            real = open_images(
                config.score_reference, image_size=size_of(domain.raw_shape),
                cache_dir=config.cache_dir, workers=config.num_workers,
                num_frames=domain.num_frames, frame_stride=domain.frame_stride,
            )  # fmt: skip
        else:
            real = reference_for(domain, workers=config.num_workers)
        self.extractor = opened_extractor(config.score_extractor, domain, ranks, folder)
        how = How(self.extractor.half_distances)
        self.evaluator = Evaluator(real, self.extractor, ranks, how, batch=BATCH, progress=False)

    def try_out(self, draw: Draw) -> None:
        """
        Raises:
            InputError: the codec cannot decode, or the extractor wants other images.
        """
        raw, _ = draw(range(1))
        self.extractor(raw)

    def keep(self, folder: Path) -> None:
        """Leave the classifier in the run's folder: where it is resumed, it is the same one."""
        if self.ranks.is_main and isinstance(self.extractor, Classifier):
            self.extractor.save(folder / CLASSIFIER)

    def __call__(self, draw: Draw) -> dict[str, float]:
        drawn = Drawn(self.domain, self.count, draw)
        return self.evaluator.evaluate(drawn, with_floor=False)["scores"]

    def facts(self) -> dict[str, Any]:
        real = self.evaluator.real.images.name
        return {"images": self.count, "extractor": self.extractor.name, "reference": real}


def reference_for(domain: domains.Domain, *, workers: int) -> Real:
    """What samples of a domain are held against: training data, or held-out ones where samples are
    drawn with the labels of those."""
    held_out = domain.held_out_labels and not domain.stored_in
    part = held_out_of if held_out else training_of
    return Real(part(domain.name, domain, workers=workers, most=MOST_REAL), None)


def opened_extractor(
    asked: str, domain: domains.Domain, ranks: Ranks, folder: Path | None
) -> Extractor:
    """What --score-extractor names; `classifier` is trained on rank 0 for all ranks, because its
    weights depend on the machine and its threads."""
    if asked != "classifier":
        return open_extractor(asked, ranks.device)
    if folder is not None and (folder / CLASSIFIER).exists():
        return classifiers.load(folder / CLASSIFIER).to(ranks.device)
    if domain.stored_in:
        raise InputError(
            "--score-extractor classifier trains on images, and these are latents: give "
            "--score-extractor classifier:FILE or inception"
        )
    if not domain.num_classes:
        raise InputError(
            "--score-extractor classifier is trained on classes, and the model has none: give "
            "classifier:FILE, which python -m evaluations.images train-classifier makes of data "
            "that have some, or inception"
        )
    return ranks.from_main(lambda: classifiers.train(domain)).to(ranks.device)
