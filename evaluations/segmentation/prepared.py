"""Images with masks as a network needs them, prepared once: a VAE need not run in every epoch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from domains import Batch
from evaluations.features import Subject
from runtime.entry import speaks

from .data import Masks


class Prepared:
    """What a subject's `prepare` gives for every image, and the masks, in unnamed files of a folder
    that end with the process.

    Args:
        folder: where there is room: a mask takes 64 KB at 256 pixels, a latent's moments 16 KB.
    """

    def __init__(self, subject: Subject, masks: Masks, folder: Path, batch: int) -> None:
        self.classes, self.count = len(masks.class_names), len(masks)
        self.device = subject.device
        self.raw: np.memmap | None = None
        bar = tqdm(
            range(0, self.count, batch), unit="batch", desc=f"preparing {masks.name}",
            disable=not speaks(), leave=False,
        )  # fmt: skip
        for first in bar:
            numbers = np.arange(first, min(first + batch, self.count))
            images, labels = masks.__getitems__(numbers)
            raw = (
                subject.prepare(self.batch_of(images.to(subject.device), numbers)).raw.cpu().numpy()
            )
            if self.raw is None:
                self.raw = unnamed(folder, raw.dtype, (self.count, *raw.shape[1:]))
                self.masks = unnamed(folder, np.uint8, (self.count, *labels.shape[1:]))
            self.raw[numbers], self.masks[numbers] = raw, labels.numpy()

    def __len__(self) -> int:
        return self.count

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Prepared batches and their masks, int64 (B, S, S)."""
        for first in range(0, len(numbers), size):
            some, device = np.asarray(numbers[first : first + size]), self.device
            raw, masks = (
                torch.from_numpy(part[some]).to(device) for part in (self.raw, self.masks)
            )
            yield self.batch_of(raw, some), masks.long()

    def batch_of(self, raw: Tensor, numbers: np.ndarray) -> Batch:
        index = torch.from_numpy(np.asarray(numbers, np.int64))
        return Batch(raw, torch.zeros_like(index).to(raw.device), index, problems=[])


def unnamed(folder: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """An array in a file that is gone when nobody holds it."""
    from tempfile import TemporaryFile

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)
