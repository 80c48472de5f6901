"""`train.py --score-every` of motions: T2M's scores of the EMA model as it trains."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import domains
from domains.humanml3d import BATCH
from evaluations.in_training import Draw, TrainingScore
from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.errors import InputError

from .batches import Batch, name_of, real_batches
from .evaluator import open_evaluator
from .protocol import Embedded, embed, scores


class MotionScore(TrainingScore):
    """Scores a model by motions of --score-samples captions, in the order of MDM's evaluation, as
    one replication of `python -m evaluations.motion`; every rank draws its share.

    Raises:
        InputError: no evaluator, too few clips to test by, or samples that make no whole batches of
            R-precision on every rank.
    """

    def __init__(self, config: TrainConfig, domain: domains.MotionDomain, ranks: Ranks) -> None:
        if config.score_extractor != TrainConfig.score_extractor:
            raise InputError(
                f"--score-extractor {config.score_extractor}: motions are scored by the evaluator "
                "of --score-reference, leave it out"
            )
        if config.score_reference is None:
            raise InputError(
                "--score-every: motions are scored by an evaluator; give --score-reference FOLDER, "
                "T2M's or one of python -m experiments.motion_evaluator"
            )
        least = BATCH * ranks.size
        if config.score_samples % least:
            raise InputError(
                f"--score-samples {config.score_samples}: motions are scored by {BATCH}; give a "
                f"multiple of {least}"
            )
        self.domain, self.ranks, self.clips = domain, ranks, domain.test_clips
        self.each = config.score_samples // ranks.size
        if len(self.clips) < BATCH:
            raise InputError(
                f"--score-every: {config.data_path} has {len(self.clips)} clips in its test split, "
                f"and R-precision is among {BATCH}"
            )
        self.evaluator = open_evaluator(
            Path(config.score_reference), config.data_path, ranks.device
        )
        self.real = ranks.from_main(self.seen_of_real)

    def seen_of_real(self) -> Tensor:
        """Embeddings of the test split's motions, the same that the command has for its first
        replication."""
        canvas = self.domain.raw_shape[1]
        passed = real_batches(
            self.clips, self.evaluator.statistics, 0, "pass", 1, canvas=canvas
        )  # fmt: skip
        return embed(self.evaluator, passed).motions

    def try_out(self, draw: Draw) -> None:
        embed(self.evaluator, [self.batch(draw, range(1))])

    def __call__(self, draw: Draw) -> dict[str, float]:
        parts = self.ranks.gather(embed(self.evaluator, self.batches(draw)))

        def measured() -> dict[str, float]:
            seen = Embedded(*(torch.cat(of) for of in zip(*parts, strict=True)))
            if not seen.motions.isfinite().all():  # whether to go on is for the run to say
                return {self.evaluator.distance: math.nan}
            return scores(seen, self.real, self.evaluator.distance, 0, "pairs", 0)

        return self.ranks.from_main(measured)

    def batches(self, draw: Draw) -> Iterator[Batch]:
        """This rank's share."""
        begin = self.ranks.rank * self.each
        for first in range(begin, begin + self.each, BATCH):
            yield self.batch(draw, range(first, first + BATCH))

    def batch(self, draw: Draw, numbers: range) -> Batch:
        raw, chosen = draw(numbers)
        rows, lengths = torch.from_numpy(self.domain.labels(chosen)).T
        motions = self.evaluator.statistics.normalized(self.domain.arrays(raw))
        captions = [self.clips.captions[row] for row in rows]
        return Batch(torch.from_numpy(motions), lengths, captions)

    def facts(self) -> dict[str, Any]:
        return {
            "images": self.each * self.ranks.size,
            "extractor": f"{self.evaluator.name}:{self.evaluator.sha256}",
            "reference": name_of(self.domain.data_path),
        }
