"""Features of chosen blocks of any torch model, through hooks that live only inside a `with`."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def record_blocks(
    modules: Sequence[nn.Module], numbers: Collection[int]
) -> Iterator[dict[int, Tensor]]:
    """Record the outputs of blocks `numbers` (counted from 1) while the `with` is open.

        with record_blocks(model.blocks, sync.blocks) as blocks:
            loss = criterion(model(x), y)
        loss = loss + sync.weight(step) * sync(blocks)

    The hooks only store the tensor, with its graph. They are gone when the `with` ends, so that
    sampling keeps nothing and activation checkpointing may recompute unseen in the backward pass.
    A block that returns a tuple is represented by its first element.

    Raises:
        ValueError: a number outside the blocks; a block whose output is no (B, N, D) tensor;
            reentrant checkpointing, which would cut the features from the graph.
    """
    for number in numbers:
        if not 1 <= number <= len(modules):
            raise ValueError(
                f"block {number} does not exist: the model has blocks 1 to {len(modules)}"
            )
    blocks: dict[int, Tensor] = {}
    training = torch.is_grad_enabled()

    def hook_of(number: int):
        def hook(_module, _inputs, output) -> None:
            features = output[0] if isinstance(output, tuple) else output
            if not isinstance(features, Tensor) or features.ndim != 3:
                raise ValueError(f"block {number} returns no (batch, tokens, width) tensor")
            if training and not torch.is_grad_enabled():
                raise ValueError(
                    f"block {number} ran without gradients inside record_blocks: use "
                    "checkpoint(..., use_reentrant=False), or close the `with` before no_grad code"
                )
            blocks[number] = features

        return hook

    with ExitStack() as stack:
        for number in numbers:
            handle = modules[number - 1].register_forward_hook(hook_of(number))
            stack.callback(handle.remove)
        yield blocks
