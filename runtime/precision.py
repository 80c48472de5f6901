"""Arithmetic of a run: fp32 | tf32 | bf16, by one name."""

import torch


def default_precision(device: torch.device) -> str:
    return "tf32" if device.type == "cuda" else "fp32"


def arithmetic(precision: str, device: torch.device) -> torch.autocast:
    """Set the precision of float32 products and return the autocast to run the network under.

    Args:
        precision: "fp32", "tf32" or "bf16" (float32 weights, bfloat16 products).
    """
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
