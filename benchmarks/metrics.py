"""The trace of the matrix root beside scipy's sqrtm, and precision and recall in both precisions.

OMP_NUM_THREADS=1 python -m benchmarks.metrics
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import LEAST, Measured, MeasureFlags, beside, parse, publish, take_turns
from evaluations.metrics import Moments, precision_recall, trace_of_root
from runtime import distributed
from runtime.entry import run
from runtime.errors import InputError
from runtime.random import generator


@dataclass(frozen=True)
class Flags(MeasureFlags):
    """Measure what the metrics cost once features are there, beside what others compute it with.

    The trace is computed on the CPU, as by frechet_distance; distances on --device.
    """

    rounds: int = 3  # every contestant runs once per round, in rotating order
    calls: int = 1  # timed calls per round; sqrtm takes 10 to 40 s
    settle: int = 0  # untimed calls before them
    warmup: int = 1  # untimed calls before the first round
    dimension: int = 2048  # of features; Inception's have 2048
    full: int = 4096  # features of a covariance of full rank
    few: int = 1000  # features of one that is not
    reference: int = 2000  # features of precision and recall; ADM's references have 10,000
    samples: int = 4000  # and 50,000 samples are asked for


OURS, THEIRS = "trace_of_root", "scipy.linalg.sqrtm"


def main() -> None:
    least = {name: 4 for name in ("full", "few", "reference", "samples")}
    flags = parse(Flags, LEAST | {"dimension": 1} | least)
    device = distributed.start_alone("benchmarks.metrics", flags.device).device
    sqrtm = scipy_sqrtm()
    for rank, n in (("full rank", flags.full), ("few features", flags.few)):
        a, b = (Moments.of(features(n, flags, side)).covariance for side in ("a", "b"))
        calls = {
            THEIRS: lambda a=a, b=b: sqrtm((a @ b).numpy()).trace().real,
            OURS: lambda a=a, b=b: trace_of_root(a, b),
        }
        title = f"trace of the root of a product, D = {flags.dimension}, {rank} (N = {n})"
        compare(title, calls, lambda trace: {"trace": float(trace)}, torch.device("cpu"), flags)

    sets = features(flags.reference, flags, "a"), features(flags.samples, flags, "b")
    reference, samples = (x.relu().float().to(device) for x in sets)
    calls = {
        "float32": lambda: precision_recall(reference, samples),
        "half": lambda: precision_recall(reference, samples, half=True),
    }
    title = (
        f"precision and recall, D = {flags.dimension}, {flags.reference} references, "
        f"{flags.samples} samples"
    )
    compare(title, calls, lambda result: result._asdict(), device, flags)


def scipy_sqrtm() -> Callable[[Any], Any]:
    try:
        from scipy.linalg import sqrtm
    except ImportError as error:
        raise InputError(
            "the comparison is with scipy, which is not installed: pip install scipy"
        ) from error
    return sqrtm


def features(n: int, flags: Flags, side: str) -> Tensor:
    """(n, D) in float64, with a covariance whose eigenvalues fall as 1 / rank."""
    spread = torch.arange(1, flags.dimension + 1, dtype=torch.float64).rsqrt()
    random = generator("cpu", "features", side)
    return spread * torch.randn(n, flags.dimension, dtype=torch.float64, generator=random)


def compare(
    title: str, calls: Mapping[str, Callable[[], Any]], columns: Callable[[Any], dict[str, float]],
    device: torch.device, flags: Flags,
) -> None:  # fmt: skip
    """Time calls by turns; speedups are over the first one, and the values are printed too."""
    values = {name: [call() for _ in range(flags.warmup)][-1] for name, call in calls.items()}
    seconds = take_turns(calls, device, flags)
    measured = {name: Measured(name, 1, found, 0, 0) for name, found in seconds.items()}
    first = next(iter(measured.values()))
    rows = [
        one.times() | beside(first, one) | columns(values[name]) for name, one in measured.items()
    ]
    publish("metrics", title, rows, flags, device)


if __name__ == "__main__":
    run(main)
