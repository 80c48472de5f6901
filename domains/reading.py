"""A data set read from its first sample to its last, or in any order, outside training."""

import sys
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch

from runtime.errors import LocalError
from runtime.random import generator

from .domain import Batch, DataSet, loader_of
from .order import Draws


def read(
    images: DataSet, numbers: Sequence[int], batch_size: int, device: torch.device, *,
    workers: int = 0, skippable: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """Batches of the samples of some numbers, unflipped, on the device.

    Args:
        skippable: the command has --skip-corrupt, and may advise it.

    Raises:
        LocalError: a corrupt sample.
    """
    # With a generator of its own, the loader leaves torch's alone.
    starts = range(0, len(numbers), batch_size)
    loader = loader_of(
        images, [Draws.plain(numbers[n : n + batch_size]) for n in starts],
        workers if images.decodes else 0, generator=torch.Generator(),
    )  # fmt: skip
    for batch in loader:
        if batch.error is not None:
            advised = batch.error if skippable else batch.error.partition("; --skip-corrupt")[0]
            raise LocalError(advised)
        for problem in batch.problems:
            tell(problem)
        yield batch.to_device(device)


@cache  # what is read again is not said again
def tell(problem: str) -> None:
    """A corrupt sample in whose place the next one stands."""
    print(f"skipped: {problem}", file=sys.stderr, flush=True)


def chosen(count: int, most: int | None, *key: int | str) -> np.ndarray:
    """Numbers of at most `most` of `count` samples in a random order that is a function of `key`:
    data may lie sorted by class."""
    return torch.randperm(count, generator=generator("cpu", *key))[:most].numpy()
