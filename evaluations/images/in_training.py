"""`train.py --score-every`: a score of the EMA model as it trains, on the same seeds every time."""

from collections.abc import Callable, Iterator

from torch import Tensor

import domains
from evaluations.extractors import Extractor, open_extractor
from evaluations.extractors import classifier as classifiers
from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.errors import InputError

from .evaluator import Evaluator
from .scores import How
from .sources import Block, open_images, real_of

BATCH = 50
Draw = Callable[[range], tuple[Tensor, Tensor]]  # numbers -> uint8 (B, C, H, W) and classes (B,)


class Drawn:
    """Images that a model draws as they are looked at; image i is a function of i."""

    def __init__(self, domain: domains.Domain, count: int, draw: Draw) -> None:
        self.name, self.shape = "samples", domain.raw_shape
        self.labeled, self.count, self.draw = domain.num_classes > 0, count, draw

    def __len__(self) -> int:
        return self.count

    def blocks(self, numbers: range, size: int) -> Iterator[Block]:
        for first in range(numbers.start, numbers.stop, size):
            raw, y = self.draw(range(first, min(first + size, numbers.stop)))
            yield Block(raw, y.cpu() if self.labeled else None)


class TrainingScore:
    """Scores a model by samples of --score-samples seeds.

    Raises:
        InputError: no real images or no extractor to be had, or samples that do not divide among
            the ranks, which a sharded model must draw together.
    """

    def __init__(self, config: TrainConfig, domain: domains.Domain, ranks: Ranks) -> None:
        if config.score_samples % ranks.size:
            raise InputError(
                f"--score-samples {config.score_samples} is not divisible by {ranks.size} processes"
            )
        self.domain, self.count = domain, config.score_samples
        size = domain.raw_shape[-1]
        if config.score_reference:
            real = open_images(
                config.score_reference, image_size=size, cache_dir=config.cache_dir,
                workers=config.num_workers,
            )  # fmt: skip
        else:
            real = real_of(domain.name, domain, workers=config.num_workers)
        extractor = extractor_of(config.score_extractor, domain, ranks)
        how = How(extractor.half_distances)
        self.evaluator = Evaluator(real, extractor, ranks, how, batch=BATCH, progress=False)

    def __call__(self, draw: Draw) -> dict[str, float]:
        """Every rank calls; each draws its share."""
        return self.evaluator.evaluate(Drawn(self.domain, self.count, draw))["scores"]


def extractor_of(asked: str, domain: domains.Domain, ranks: Ranks) -> Extractor:
    if asked == "classifier":  # a function of its seed: a resumed run trains the same one
        return classifiers.train(domain).to(ranks.device)
    return open_extractor(asked, ranks.device)
