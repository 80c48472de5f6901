"""The batch of all ranks, for losses and means that are not a sum over images."""

import torch
import torch.distributed as dist
from torch import Tensor


def alone() -> bool:
    """One process; some builds of torch know no other."""
    return not (dist.is_available() and dist.is_initialized())


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over the ranks, outside the graph; x itself where there is one process."""
    if alone():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


class Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        whole = x.new_empty(dist.get_world_size() * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(whole, x.contiguous())
        return whole

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return sum_over_ranks(grad).chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """(B, ...) of every rank -> (ranks * B, ...) on every rank, with gradients to every rank.

    A rank's gradient is the sum of what all ranks' losses say of it: DDP's average over ranks then
    is the gradient of one loss of the joint batch. All ranks hold equally many images.
    """
    return x if alone() else Gather.apply(x)
