"""What the evaluations of features look at: a network that tells the tokens of its blocks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from domains import Batch
from runtime.errors import InputError


class Subject(ABC):
    """A network and the blocks of it that are looked at."""

    name: str  # for people
    device: torch.device
    blocks: tuple[int, ...]  # counted from 1, ascending
    grid: tuple[int, ...] | None = None  # the tokens in rows and columns, where they lie so
    reads: tuple[int, ...] | None = None  # the shape of its samples, raw; None: images of any size
    rate: int | None = None  # of its sounds, in samples per second
    clips: dict[str, int | None] = {}  # flags of domains.build by which its clips were cut
    classes: tuple[str | None, int] = (None, 0)  # the data set whose it can be told, and how many

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that its features depend on, besides the images; plain data."""

    def at(self, noise: float) -> "Subject":
        """The same network shown another share of noise; encoders are shown clean images."""
        return self

    def prepare(self, batch: Batch) -> Batch:
        """The part of the work that an image needs once: a VAE's moments in the pixels' place."""
        return batch

    @abstractmethod
    def tokens(self, batch: Batch, draw: int = 0) -> dict[int, Tensor]:
        """Prepared images on the device -> {block: (B, N, D) float32}, without gradients. What an
        image gives depends on no other image of the batch.

        Args:
            draw: other noise, and another sample of the VAE's posterior, for every number.
        """

    def __call__(self, batch: Batch) -> dict[int, Tensor]:
        """Images on the device, as a data set has them, -> {block: (B, N, D)}."""
        return self.tokens(self.prepare(batch))


def chosen_blocks(asked: Iterable[int], depth: int) -> tuple[int, ...]:
    """The blocks asked for in ascending order; all, where none is.

    Raises:
        InputError: one that does not exist.
    """
    blocks = tuple(sorted(set(asked))) or tuple(range(1, depth + 1))
    for number in blocks:
        if not 1 <= number <= depth:
            raise InputError(f"--blocks {number} does not exist: choose 1 to {depth}")
    return blocks
