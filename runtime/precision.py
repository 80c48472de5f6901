"""Arithmetic of a run: fp32 | tf32 | bf16 by one name, and the attention kernel by another."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import InputError
from .hardware import multiplies_bf16

ATTENTION = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def default_precision(device: torch.device) -> str:
    return "tf32" if device.type == "cuda" else "fp32"


def slow_precision(precision: str, device: torch.device) -> str | None:
    """What to say where products in bfloat16 are made of others."""
    if precision != "bf16" or multiplies_bf16(device):
        return None
    return (
        "note: this CPU multiplies slower in bfloat16 than in float32, and --precision bf16 takes "
        "twice as long as fp32 or longer"
    )


def deterministic(asked: bool) -> None:
    """Kernels that give the same bits every time, for the whole process; before CUDA is used."""
    if asked != torch.are_deterministic_algorithms_enabled():  # to set it imports the compiler: 2 s
        torch.use_deterministic_algorithms(asked)
    torch.backends.cudnn.deterministic = asked
    if asked:  # cuBLAS reads it when it makes its first handle
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def compiles(asked: str, device: torch.device) -> str:
    """ "on" or "off" for --compile; a fresh machine without a GPU may have no C++ compiler."""
    return {"auto": "on" if device.type == "cuda" else "off"}.get(asked, asked)


class Arithmetic:
    """How a run computes: `with arithmetic():` around all that the network does.

    Args:
        precision: "fp32", "tf32" or "bf16" (float32 weights, bfloat16 products).
        attention: a key of ATTENTION, or "auto": the first of them, in that order, that can run.
            torch's own order depends on the version of cuDNN that it was built with.
    """

    def __init__(self, precision: str, device: torch.device, attention: str = "auto") -> None:
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        # Compiled graphs have the kernel built in, but torch's cache does not ask for it.
        torch.compiler.config.cache_key_tag = f"attention={attention}"
        self.bf16, self.device = precision == "bf16", device
        self.asked = attention
        self.order = list(ATTENTION.values()) if attention == "auto" else [ATTENTION[attention]]
        if attention == "auto" and torch.are_deterministic_algorithms_enabled():
            self.order = [ATTENTION["flash"], ATTENTION["math"]]  # in the backward pass too

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.kernels(), self.autocast():
            yield

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def kernels(self) -> AbstractContextManager:
        """The attention kernels alone: for the backward pass too, where activation checkpointing
        computes the blocks again."""
        return sdpa_kernel(self.order, set_priority=True)

    def attention(self, tokens: int, heads: int, head_dim: int) -> str:
        """The kernel that attention of this shape runs on, as torch chooses it for training.

        Raises:
            InputError: the one that was asked for cannot.
        """
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        q = torch.empty(1, heads, tokens, head_dim, dtype=dtype, device=self.device)
        q.requires_grad_()
        try:
            with self():
                F.scaled_dot_product_attention(q, q, q)
                chosen = SDPBackend(torch._fused_sdp_choice(q, q, q))
        except RuntimeError as error:
            raise InputError(
                f"--attention {self.asked} cannot run on {self.device.type} in {dtype} with heads "
                f"of {head_dim}: use --attention auto"
            ) from error
        return next(name for name, kernel in ATTENTION.items() if kernel == chosen)


def cast_products(model: nn.Module, precision: str) -> nn.Module:
    """For sampling in bf16: keep the weights of products in bfloat16. Autocast rounds them so in
    every call; the results are the same to the bit, without that work."""
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                module.to(torch.bfloat16)
    return model


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Without gradients, autocast and TF32, whatever the caller's settings; they are restored.

    Scores are compared in their third digit, and TF32 has three.
    """
    backends = torch.backends
    switches = (
        backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
        backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn,
    )  # fmt: skip
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        # The older switch too: torch raises where it is asked for and disagrees with the newer.
        matmul = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                yield
        finally:
            torch.set_float32_matmul_precision(matmul)
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
