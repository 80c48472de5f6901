"""Randomness as a function of what it is for, never of how many processes there are."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

AHEAD = 8  # steps whose noise is drawn at once


def seed_of(*key: int | str) -> int:
    """A 63-bit seed for `key`; nearby keys give unrelated seeds (BLAKE2, not arithmetic)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator on `device` in the state that belongs to `key`."""
    return torch.Generator(device).manual_seed(seed_of(*key))


class SampleStreams:
    """One stream of random numbers per sample: sample i is a function of (seed, i) alone.

    Args:
        indices: the samples of this batch.
    """

    def __init__(self, indices: Iterable[int], seed: int, device: torch.device | str) -> None:
        self.generators = [generator(device, seed, "sample", index) for index in indices]
        self.device = device
        self.drawn: dict[tuple[int, ...], list[Tensor]] = {}

    def start(self, shape: tuple[int, ...], num_classes: int) -> tuple[Tensor, Tensor]:
        """Initial noise (B, *shape) and uniform class ids (B,), zeros where unconditional."""
        labels = [
            torch.randint(max(num_classes, 1), (), generator=g, device=self.device)
            for g in self.generators
        ]
        return self.normal(shape), torch.stack(labels)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal (B, *shape), a new one with every call."""
        drawn = self.drawn.setdefault(shape, [])
        if not drawn:  # one kernel per sample and step would be 4 % of SiT-B/2's time on a GPU
            drawn.extend(self.normal((AHEAD, *shape)).unbind(1))
        return drawn.pop(0)

    def like(self, x: Tensor) -> Tensor:
        """`noise` for a sampler's state x (B, ...)."""
        return self.noise(tuple(x.shape[1:])).to(x)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        kwargs = dict(device=self.device)
        return torch.stack([torch.randn(shape, generator=g, **kwargs) for g in self.generators])


class LegacyStreams:
    """SiT's randomness: the global generators, seeded per rank and never per sample."""

    def __init__(self, seed: int, batch: int, guided: bool, device: torch.device | str) -> None:
        torch.manual_seed(seed)
        self.batch, self.guided, self.device = batch, guided, device

    def start(self, shape: tuple[int, ...], num_classes: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(self.batch, *shape, device=self.device)
        return z, torch.randint(0, max(num_classes, 1), (self.batch,), device=self.device)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """A step's noise: SiT draws it on the CPU, and for both halves of a guided batch."""
        halves = 2 if self.guided else 1
        return torch.randn(halves * self.batch, *shape)[: self.batch].to(self.device)

    def like(self, x: Tensor) -> Tensor:
        return self.noise(tuple(x.shape[1:])).to(x)
