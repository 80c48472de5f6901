"""What a run is computed on, and how fast that could be at best."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CPU_INFO, INTEL = Path("/proc/cpuinfo"), "GenuineIntel"
# Dense bfloat16 FLOP/s of the data sheets, by a part of the device's name; the first that fits.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A6000": 155e12,
    "4090": 165e12,
    "3090": 71e12,
}


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bfloat16 peak in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def facts(device: torch.device) -> dict[str, Any]:
    """What figures depend on, as plain data: device, power limit, clocks, versions, commit."""
    found: dict[str, Any] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **versions(),
        "commit": said_by(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
        ),
    }
    if device.type == "cuda":
        query = ["nvidia-smi", f"--id={device.index or 0}", "--format=csv,noheader"]
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "power_limit": said_by(*query, "--query-gpu=power.limit"),
            # What it runs at, right after the work, and could at most: less is throttled.
            "sm_clock": said_by(*query, "--query-gpu=clocks.sm"),
            "sm_clock_max": said_by(*query, "--query-gpu=clocks.max.sm"),
        }
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return said_of_cpu("model name") or platform.processor() or "cpu"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32; so where it cannot be known.

    An AMD EPYC gains by avx512_bf16; an Intel Xeon makes half as many products a second by it as
    in float32, and gains by amx_bf16 alone.
    """
    known = said_of_cpu("flags") if device.type == "cpu" else None  # of x86 alone
    if known is None:
        return True
    gains = {"amx_bf16"} if said_of_cpu("vendor_id") == INTEL else {"amx_bf16", "avx512_bf16"}
    return bool(gains & set(known.split()))


def said_of_cpu(key: str) -> str | None:
    """What Linux says of the first core."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key)
    return next(values, None)


def versions() -> dict[str, str | None]:
    """Of what computes a result, for the JSON beside it."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": installed("numpy"),
        "torchdiffeq": installed("torchdiffeq"),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def said_by(*command: str) -> str | None:
    """A command's output; None where it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
