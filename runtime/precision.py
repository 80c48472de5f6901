"""Arithmetic of a run: fp32 | tf32 | bf16, by one name."""

import torch


def arithmetic(precision: str | None, device: torch.device) -> torch.autocast:
    """Set the precision of float32 products and return the autocast to run the network under.

    Args:
        precision: "fp32", "tf32" or "bf16"; None is tf32 on a GPU and fp32 on a CPU.
    """
    precision = precision or ("tf32" if device.type == "cuda" else "fp32")
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
