"""Which sample is where: the data order as a function of (seed, step, position), for any ranks."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from runtime.random import generator


class Draws(NamedTuple):
    """A micro-batch before it is read: which samples, and a seed for the augmentation of each."""

    index: np.ndarray  # int64 (B,), the sample's number in its data set
    seed: np.ndarray  # int64 (B,), not negative

    @classmethod
    def plain(cls, index) -> "Draws":
        """The samples of some numbers, unflipped."""
        index = np.asarray(index, dtype=np.int64)
        return cls(index, np.zeros_like(index))

    @property
    def flipped(self) -> np.ndarray:
        """bool (B,): which are mirrored, where the data set mirrors at all."""
        return self.seed & 1 == 1


def held_out_order(count: int) -> torch.Tensor:
    """int64 (count,): the order in which held-out samples are taken where some are enough, whether
    their captions are drawn from or they are what samples are held against."""
    return torch.randperm(count, generator=generator("cpu", "held out"))


class GlobalBatches:
    """A batch sampler: `Draws` of this rank's micro-batches, from step `start` to `stop`.

    Position p of the global batch of a step is the same sample with the same augmentation whatever
    the number of ranks or micro-batches; rank r takes the positions of `positions(rank=r, ...)`.
    Every epoch is a new permutation whose incomplete last batch is left out.
    """

    def __init__(
        self, size: int, batch: int, *, seed: int, start: int, stop: int, rank: int, ranks: int,
        micro_batches: int = 1,
    ) -> None:  # fmt: skip
        assert batch <= size, "not even one batch"
        self.size, self.batch, self.seed = size, batch, seed
        self.start, self.stop = start, stop
        self.slices = [
            positions(batch, rank=rank, ranks=ranks, micro=micro, micro_batches=micro_batches)
            for micro in range(micro_batches)
        ]
        self.epoch, self.order = -1, np.empty(0)

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.slices)

    def __iter__(self) -> Iterator[Draws]:
        for step in range(self.start, self.stop):
            draws = self.global_batch(step)
            for part in self.slices:
                yield Draws(draws.index[part], draws.seed[part])

    def global_batch(self, step: int) -> Draws:
        """What every position of a step's global batch is, over all ranks."""
        epoch, batch = divmod(step, self.size // self.batch)
        if epoch != self.epoch:
            shuffle = generator("cpu", self.seed, "order", epoch)
            self.epoch, self.order = epoch, torch.randperm(self.size, generator=shuffle).numpy()
        augment = generator("cpu", self.seed, "augment", step)
        seeds = torch.randint(2**63 - 1, (self.batch,), generator=augment).numpy()
        return Draws(self.order[batch * self.batch : (batch + 1) * self.batch], seeds)


def positions(
    batch: int, *, rank: int, ranks: int, micro: int = 0, micro_batches: int = 1
) -> slice:
    """The positions in the global batch that a rank computes in one micro-batch."""
    length, rest = divmod(batch, ranks * micro_batches)
    assert rest == 0, "every micro-batch of every rank has the same size"
    first = (rank * micro_batches + micro) * length
    return slice(first, first + length)
