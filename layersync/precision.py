"""Matrix products in true float32, forward and backward, whatever the run's autocast and TF32."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("layersync::float32_product", mutates_args=())
def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, k) @ (B, k, m) -> (B, n, m), with neither autocast nor TF32.

    TF32 keeps three digits: a distance between near features, a small difference of large
    products, would be lost in them. An operator of its own, because the switches must also hold
    while its backward pass runs, and inside a compiled graph.
    """
    switch = torch.backends.cuda.matmul
    before, switch.fp32_precision = switch.fp32_precision, "ieee"
    # The older switch too, and read second: torch raises where the two disagree.
    older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(a.device.type, enabled=False):
            return torch.bmm(a, b)
    finally:
        torch.set_float32_matmul_precision(older)
        switch.fp32_precision = before


@float32_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


def keep_factors(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def gradients_of_factors(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    a, b = ctx.saved_tensors
    return float32_product(grad, b.mT), float32_product(a.mT, grad)


float32_product.register_autograd(gradients_of_factors, setup_context=keep_factors)


@register_flop_formula(torch.ops.layersync.float32_product)
def flops(a_shape: tuple[int, ...], b_shape: tuple[int, ...], **_) -> int:
    batch, n, k = a_shape
    return 2 * batch * n * k * b_shape[-1]
