"""What every network here is: a stack of blocks over tokens, and how its blocks are looked at."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Output(NamedTuple):
    """pred is like x; blocks is {number: (B, N, D)} for the blocks asked for, else empty."""

    pred: Tensor | None  # None where only blocks were asked for
    blocks: dict[int, Tensor]


class Task(NamedTuple):
    """What data, path and flags ask of a network."""

    shape: tuple[int, ...]  # of x, (C, *axes)
    num_classes: int = 0
    multi_label: bool = False  # several of the classes at once
    text_width: int = 0  # of embedded texts; 0: none
    steps: int | None = None  # ticks of the path's clock; None: it has none
    learn_sigma: bool = True  # SiT's doubled output
    mask_frames: bool = False  # no attention to padding
    pads: bool = False  # lengths differ: a condition has a mask
    objective: tuple[str, str] = ("Linear", "velocity")  # the path, and what is predicted on it
    bf16: bool = False  # what is not trained may be kept in bfloat16


class Denoiser(nn.Module, ABC):
    """x_t (B, C, *axes), t (B,) with t = 1 at the data, and a condition -> Output.

    Attributes:
        config: the constructor's arguments, as checkpoints store them.
        grid, patch: tokens along each axis of x, and what of x a token is.
        blocks: the modules that are counted from 1, tokens first among what they take.
        activation_checkpointing: compute blocks again in the backward pass.
        skipped_blocks: numbers of blocks that are left out.
        has_dropout: whether it draws random numbers in train mode.
        own_precision: whether it computes in the precision of its weights, whatever the run's.
        keeps_condition_token: whether blocks are returned with the condition's token before the
            others, of networks that have one (MDM).
    """

    config: dict[str, Any]
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    blocks: nn.ModuleList
    num_classes = text_width = 0
    has_dropout = False
    own_precision = False
    keeps_condition_token = False

    def __init__(self) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.skipped_blocks: frozenset[int] = frozenset()

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    @abstractmethod
    def attention_shape(self) -> tuple[int, int, int]:
        """Tokens, heads, and the width of a head."""

    @property
    def width(self) -> int:
        """Of the tokens in its blocks."""
        _, heads, head_width = self.attention_shape
        return heads * head_width

    @property
    @abstractmethod
    def is_conditional(self) -> bool: ...

    @property
    @abstractmethod
    def compiled_parts(self) -> list[nn.Module]:
        """What `compile_blocks` compiles, one by one."""

    @classmethod
    @abstractmethod
    def made_for(cls, task: Task, **size: Any) -> "Denoiser":
        """A new network.

        Raises:
            ValueError: it is not for such a task.
        """

    @abstractmethod
    def like(self, **changes: Any) -> "Denoiser":
        """A new network of this architecture."""

    @abstractmethod
    def example_condition(self) -> dict[str, Tensor]:
        """A condition of one sample; its values do not matter."""

    @abstractmethod
    def null(self, cond: dict[str, Any]) -> dict[str, Any]:
        """The unconditional counterpart of a batch's condition."""

    @abstractmethod
    def drop(self, cond: dict[str, Any], where: Tensor) -> dict[str, Any]:
        """The condition with its rows at `where` (B,) bool replaced by the null."""

    def restore_rest(self) -> None:
        """Compute, or read, what a state dict does not hold, after it was loaded into a model
        without memory.

        Raises:
            ValueError: it is not to be had.
        """

    def randomize_gates(self) -> None:
        """Let blocks that begin as the identity do something, for teachers of random weights."""

    def skip_blocks(self, numbers: Iterable[int]) -> None:
        """Take blocks out, counted from 1: what they are given passes on (the paper's Table 8).

        Raises:
            ValueError: a block that the model does not have, or cannot be without.
        """
        self.skipped_blocks = frozenset(numbers)
        for number in self.skipped_blocks:
            self.check_block(number)

    def check_block(self, number: int) -> None:
        if not 1 <= number <= self.depth:
            raise ValueError(f"block {number} does not exist: choose 1 to {self.depth}")

    def compile_blocks(self, **options: Any) -> None:
        """torch.compile the blocks and the final layer one by one, in place.

        The blocks share one graph, so it takes as long for XL as for S, and features and gradients
        are there between them. Copy the model before, not after: a copy of a compiled block
        computes with the original's weights. `options` go to torch.compile, which makes a graph for
        every batch size, at most `torch._dynamo.config.recompile_limit` of them.
        """
        # Sizes are few: guidance within an interval uses two.
        options = {"fullgraph": True, "dynamic": False} | options
        for part in self.compiled_parts:
            # Its forward alone: the hooks of FSDP and of `record_blocks` stay outside.
            part.forward = torch.compile(part.forward, **options)

    def through_blocks(
        self, x: Tensor, *others: Any, return_blocks: tuple[int, ...], only_blocks: bool
    ) -> tuple[Tensor | None, dict[int, Tensor]]:
        """Tokens after the last block, and after the blocks asked for; with `only_blocks` the pass
        ends at the deepest of these, and there are no tokens.

        Raises:
            ValueError: a block that the model does not have.
        """
        for number in return_blocks:
            self.check_block(number)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            if number in self.skipped_blocks:
                pass
            elif self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *others, use_reentrant=False)
            else:
                x = block(x, *others)
            if number in return_blocks:
                found[number] = x
                if only_blocks and len(found) == len(set(return_blocks)):
                    return None, found
        return x, found
