"""One training step over many ranks: replicated (DDP) or sharded (FSDP2), with equal results.

Also the way between sharded and whole tensors: checkpoints hold whole ones, so that either reads
what the other wrote."""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from .distributed import Ranks

# MiB of gradients per all-reduce: few and large ones, that still begin early in the backward pass.
BUCKET = 100


def replicate(module: nn.Module, ranks: Ranks, example: Callable[[nn.Module], Tensor]) -> nn.Module:
    """The module under DDP; itself where there is one rank.

    Args:
        example: module -> a loss of a batch like those to come. DDP regroups its buckets after
            the first backward pass, which changes the order of its sums; two throw-away passes
            settle that, so that a resumed run adds up as an uninterrupted one.
    """
    if ranks.size == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.13 renamed broadcast_buffers; older ones know only this name.
        warnings.simplefilter("ignore", FutureWarning)
        ddp = DistributedDataParallel(
            module, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
            gradient_as_bucket_view=True, broadcast_buffers=False, bucket_cap_mb=BUCKET,
        )  # fmt: skip
    # Blocks are compiled one by one; dynamo would cut them once more, along DDP's buckets.
    torch._dynamo.config.optimize_ddp = False
    before = [buffer.clone() for buffer in module.buffers()]
    for _ in range(2):
        example(ddp).backward()
    ddp.zero_grad(set_to_none=True)
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)
    return ddp


def shard(module: nn.Module, parts: Iterable[nn.Module], ranks: Ranks, *, train: bool) -> nn.Module:
    """The module with its parameters spread over the ranks (FSDP2, in place).

    Every part is gathered before its forward pass. In training it stays whole until its backward
    pass is over (ZeRO-2: what is saved is gradients, optimizer and EMA, and the ranks exchange as
    many bytes as DDP); a module that never goes backward lets it go at once.

    Args:
        parts: the modules inside that are gathered one by one.
    """
    if ranks.size == 1:
        return module
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for part in (*parts, module):
        fully_shard(part, mesh=mesh, reshard_after_forward=not train)
    return module


@contextlib.contextmanager
def gradient_sync(module: nn.Module, *, last: bool):
    """Gradients are averaged over ranks in the last micro-batch only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def whole(value: Any) -> Any:
    """A sharded tensor gathered (every rank must call, in the same order); others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; others as they are."""
    return value.to_local() if isinstance(value, DTensor) else value


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: this rank's part of it, if that is sharded."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device, like.dtype)
    # Every rank has read the whole tensor and keeps its part: nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_whole(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy a state dict of whole tensors into a module, sharded or not; names must agree."""
    state = module.state_dict()
    module.load_state_dict({name: placed(value, state[name]) for name, value in weights.items()})
