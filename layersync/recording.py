"""Features of chosen blocks of any torch model, through hooks that live only inside a `with`."""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def find_blocks(model: nn.Module, *names: str) -> list[nn.Module]:
    """The modules of these names, in this order; of a ModuleList, ModuleDict or Sequential, its
    members.

        find_blocks(flux, "transformer_blocks", "single_transformer_blocks")  # counted through

    Raises:
        ValueError: a name that the model does not have, with the nearest ones.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    blocks: list[nn.Module] = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, filter(None, known), n=3, cutoff=0)
            nearest = f"near are {', '.join(near)}" if near else "it has no modules inside"
            raise ValueError(f"no module {name!r} in {type(model).__name__}: {nearest}")
        module = known[name]
        members = module.values() if isinstance(module, nn.ModuleDict) else module
        is_many = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        blocks.extend(members if is_many else [module])
    return blocks


@contextmanager
def record_blocks(
    modules: Sequence[nn.Module],
    numbers: Collection[int],
    tokens: Callable[[Any], Any] | None = None,
) -> Iterator[dict[int, Tensor]]:
    """Record the outputs of blocks `numbers` (counted from 1) while the `with` is open.

        with record_blocks(model.blocks, sync.blocks) as blocks:
            loss = criterion(model(x), y)
        loss = loss + sync.weight(step) * sync(blocks)

    The hooks only store the tensor, with its graph. They are gone when the `with` ends, so that
    sampling keeps nothing and activation checkpointing may recompute unseen in the backward pass;
    those of a copy of the model that was made inside do nothing from then on.

    Args:
        modules: all blocks of the model, in order: `model.blocks`, or `find_blocks(model, ...)`.
        tokens: picks the tokens (B, N, D) out of what a block returns, e.g.
            `lambda output: output[1]`. It may index, slice and transpose, but not compute: what it
            saved for the backward pass would confuse checkpointing. Without it, a block that
            returns a tuple is represented by the only tensor (B, N, D) of the tuple.

    Raises:
        ValueError: a number outside the blocks; a block that runs twice; one whose output has no
            (B, N, D) tensor, or several; reentrant checkpointing, which would cut the features
            from the graph; `tokens` that fails on what a block returns. When the `with` ends:
            features that were changed in place since, and are no longer the block's.
    """
    for number in numbers:
        if not 1 <= number <= len(modules):
            raise ValueError(
                f"block {number} does not exist: the model has blocks 1 to {len(modules)}"
            )
    blocks: dict[int, Tensor] = {}
    seen: dict[int, tuple[Tensor, int | None]] = {}
    training = torch.is_grad_enabled()
    recorded = set(numbers)

    def hook_of(number: int):
        def hook(_module, _inputs, output) -> None:
            if number not in recorded:
                return
            if training and not torch.is_grad_enabled():
                raise ValueError(
                    f"block {number} ran without gradients inside record_blocks: use "
                    "checkpoint(..., use_reentrant=False), or close the `with` before no_grad code"
                )
            if number in blocks:
                if is_recomputed():
                    return
                raise ValueError(
                    f"block {number} ran twice inside one record_blocks, and the features of which "
                    "time are meant is unclear: open a `with` for every forward pass"
                )
            features = only_tokens(number, chosen(number, output, tokens))
            blocks[number], seen[number] = features, (features, version(features))

        return hook

    with ExitStack() as stack:
        stack.callback(recorded.clear)
        for number in numbers:
            handle = modules[number - 1].register_forward_hook(hook_of(number))
            stack.callback(handle.remove)
        yield blocks
    for number, (features, then) in seen.items():
        if then is not None and version(features) != then:
            raise ValueError(
                f"the features of block {number}, or the tensor that they are a part of, were "
                "changed in place after it had returned them: let the block after it compute "
                "x = x + f(x), not x += f(x)"
            )


def version(features: Tensor) -> int | None:
    """How often a tensor was changed in place, counted on the host; None: not counted, under
    inference_mode and where the hook itself is compiled."""
    if torch.compiler.is_compiling() or features.is_inference():
        return None
    return features._version


def is_recomputed() -> bool:
    """Whether this runs within a backward pass, as activation checkpointing makes forwards run."""
    return torch._C._current_graph_task_id() != -1


def chosen(number: int, output: Any, tokens: Callable[[Any], Any] | None) -> Any:
    """What `tokens` picks out of a block's output."""
    if tokens is None:
        return output
    try:
        return tokens(output)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"tokens=... fails on what block {number} returns, a {type(output).__name__} ({error})"
        ) from error


def only_tokens(number: int, output: Any) -> Tensor:
    """The (B, N, D) tensor that a block's output is, or that alone is in the tuple."""
    found = [
        one
        for one in (output if isinstance(output, tuple) else (output,))
        if isinstance(one, Tensor) and one.ndim == 3
    ]
    if not found:
        raise ValueError(
            f"block {number} returns no (batch, tokens, width) tensor: make one of what it "
            "returns with record_blocks(..., tokens=lambda output: ...)"
        )
    if len(found) > 1:
        raise ValueError(
            f"block {number} returns {len(found)} (batch, tokens, width) tensors, of text and of "
            "images perhaps: choose with record_blocks(..., tokens=lambda output: output[1])"
        )
    return found[0]
