"""A data set read from its first sample to its last, or in any order, outside training."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from runtime.errors import LocalError
from runtime.random import generator

from .domain import Batch, DataSet, as_read
from .order import Draws


def read(
    images: DataSet, numbers: Sequence[int], batch_size: int, device: torch.device, *,
    workers: int = 0,
) -> Iterator[Batch]:  # fmt: skip
    """Batches of the samples of some numbers, unflipped, on the device.

    Raises:
        LocalError: a corrupt sample.
    """
    # With a generator of its own, the loader leaves torch's alone.
    starts = range(0, len(numbers), batch_size)
    loader = DataLoader(
        images, batch_sampler=[Draws.plain(numbers[n : n + batch_size]) for n in starts],
        collate_fn=as_read, generator=torch.Generator(),
        num_workers=workers if images.decodes else 0,
    )  # fmt: skip
    for batch in loader:
        if batch.error is not None:
            # The flag that it may end with is not one of the commands that read so.
            raise LocalError(batch.error.partition("; --skip-corrupt")[0])
        yield batch.to_device(device)


def chosen(count: int, most: int | None, *key: int | str) -> np.ndarray:
    """Numbers of at most `most` of `count` samples in a random order that is a function of `key`:
    data may lie sorted by class."""
    return torch.randperm(count, generator=generator("cpu", *key))[:most].numpy()
