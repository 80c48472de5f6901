"""Which image is where: the data order as a function of (seed, step, position), for any ranks."""

from collections.abc import Iterator

import torch

from runtime.random import generator, seed_of

from .images import Draw


class GlobalBatches:
    """A batch sampler: this rank's micro-batches of `Draw`s, from step `start` to `stop`.

    Position p of the global batch of a step is the same image with the same augmentation whatever
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
        self.epoch, self.order = -1, torch.empty(0)

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.slices)

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.stop):
            indices = self.indices(step)
            for part in self.slices:
                yield [
                    Draw(indices[position], seed_of(self.seed, "augment", step, position))
                    for position in range(part.start, part.stop)
                ]

    def indices(self, step: int) -> list[int]:
        """The image of every position of a step's global batch."""
        epoch, batch = divmod(step, self.size // self.batch)
        if epoch != self.epoch:
            shuffle = generator("cpu", self.seed, "order", epoch)
            self.epoch, self.order = epoch, torch.randperm(self.size, generator=shuffle)
        return self.order[batch * self.batch : (batch + 1) * self.batch].tolist()


def positions(
    batch: int, *, rank: int, ranks: int, micro: int = 0, micro_batches: int = 1
) -> slice:
    """The positions in the global batch that a rank computes in one micro-batch."""
    length, rest = divmod(batch, ranks * micro_batches)
    assert rest == 0, "every micro-batch of every rank has the same size"
    first = (rank * micro_batches + micro) * length
    return slice(first, first + length)
