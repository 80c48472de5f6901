"""Contexts of random features, and float64 restatements shared by the tests of the rivals."""

import torch
from torch import Tensor

from layersync import Context


def features(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random features with a part that all images share, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape[1:], generator=generator)
    return (torch.randn(shape, generator=generator) + shared).to(dtype).requires_grad_()


def context(blocks: dict[int, Tensor] | None = None, **given) -> Context:
    """Of a 4-channel 4 x 4 latent, 2 images or as many as the blocks have."""
    blocks = blocks or {}
    batch = len(next(iter(blocks.values()), torch.empty(2)))
    x, noise = torch.randn(2, batch, 4, 4, 4)
    fields = dict(x=x, noise=noise, t=torch.full((batch,), 0.5), x_t=(x + noise) / 2, cond={})
    return Context(blocks, **(fields | given))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def assert_compiles(regulariser, inputs: Context, of: Tensor) -> None:
    """Value and gradient are the same in one graph, forward and backward."""
    # aot_eager traces forward and backward whole without a C++ compiler.
    compiled = torch.compile(regulariser.penalty, fullgraph=True, backend="aot_eager")
    eager, traced = regulariser.penalty(inputs), compiled(inputs)
    torch.testing.assert_close(traced, eager)
    torch.testing.assert_close(gradient(traced, of), gradient(eager, of))
