"""Table 9: FLOPs and time of a regulariser alone over the batch: linear, or quadratic.

python -m experiments.table9
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from evaluations import pages
from layersync import Context, Regulariser
from runtime import distributed
from runtime.config import TrainConfig
from runtime.entry import asked_of_user, run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.hardware import facts
from runtime.text import columns
from training import build

OF_ITS_OWN_BLOCKS = {"layer_sync": "linear", "dispersive": "quadratic"}  # in the batch: the paper


@dataclass(frozen=True)
class Flags:
    """Count and time the forward and backward pass of regularisers on random features."""

    loss_type: tuple[str, ...] = tuple(OF_ITS_OWN_BLOCKS)  # of train.py
    model: str = "SiT-Ti/2"  # its depth and width are the features'
    tokens: int = 16  # per image; SiT on 256 pixels has 256
    batch: tuple[int, ...] = (32, 64, 128, 256, 512)  # images per call, two sizes or more
    repeats: int = 10  # timed calls; the median counts
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    out: Path = Path("results/experiments/table9")  # the folder of the JSON, table and plot


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    if len(flags.batch) < 2 or min(flags.batch) < 2 or min(flags.tokens, flags.repeats) < 1:
        raise InputError("--batch takes two sizes or more, of 2 or more; the others are 1 or more")
    if len(set(flags.batch)) < len(flags.batch):
        raise InputError("--batch takes sizes that differ")
    device = distributed.start_alone("experiments.table9", flags.device).device
    rows = []
    for name in flags.loss_type:
        if name not in OF_ITS_OWN_BLOCKS:
            raise InputError(
                f"--loss-type {name}: choose from {', '.join(OF_ITS_OWN_BLOCKS)}, which look at "
                "nothing but the model's own blocks"
            )
        config = TrainConfig(dataset_name="synthetic", model=flags.model, loss_type=name)
        with asked_of_user():
            *_, model, method = build(config, device)
        regulariser = method.regulariser
        width = model.width
        rows.append(row_of(name, regulariser.to(device), flags, width, device))
    write(rows, flags, device)


def row_of(
    name: str, regulariser: Regulariser, flags: Flags, width: int, device: torch.device
) -> dict[str, Any]:
    points = []
    for batch in flags.batch:
        random = torch.Generator(device).manual_seed(0)
        context = context_of(regulariser, (batch, flags.tokens, width), random)
        points.append(
            {
                "batch": batch,
                "flops": flops(regulariser, context),
                "milliseconds": 1e3 * seconds(regulariser, context, flags.repeats),
            }
        )
    return {
        "loss_type": name,
        "paper": OF_ITS_OWN_BLOCKS.get(name),
        "exponent_of_flops": exponent(flags.batch, [one["flops"] for one in points]),
        "exponent_of_time": exponent(flags.batch, [one["milliseconds"] for one in points]),
        "points": points,
    }


def context_of(
    regulariser: Regulariser, shape: tuple[int, int, int], random: torch.Generator
) -> Context:
    """Random features in place of the blocks."""
    device = random.device
    blocks = {
        number: torch.randn(shape, generator=random, device=device, requires_grad=True)
        for number in regulariser.blocks
    }
    nothing = torch.empty(0, device=device)
    return Context(blocks, nothing, nothing, nothing, nothing, {})


def flops(regulariser: Regulariser, context: Context) -> int:
    """Of the forward and backward pass, counted by torch."""
    with FlopCounterMode(display=False, custom_mapping=ELEMENTWISE) as counter:
        regulariser.penalty(context).backward()
    return counter.get_total_flops()


def of_each_element(*shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """One FLOP per element of what is read or written, whichever is more."""
    sizes = [math.prod(s) for s in (*shapes, out_shape) if isinstance(s, (tuple, torch.Size))]
    return max(sizes, default=0)


aten = torch.ops.aten
# torch counts matrix products alone, and a cosine has none: these are its own rules for the rest.
ELEMENTWISE = {
    operation: of_each_element
    for operation in (
        aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.exp, aten.log, aten.sqrt, aten.pow,
        aten.sum, aten.mean, aten.linalg_vector_norm, aten.logsumexp, aten.clamp, aten.clamp_min,
        aten.maximum, aten.where, aten.masked_fill, aten.masked_fill_, aten.div_, aten.add_,
        aten.mul_, aten.sub_, aten.addcmul,
    )
}  # fmt: skip


def seconds(regulariser: Regulariser, context: Context, repeats: int) -> float:
    """The median time of a forward and backward pass."""
    device = next(iter(context.blocks.values())).device
    times = []
    for _ in range(repeats + 1):  # the first one is a warm-up
        start = time.perf_counter()
        waited(regulariser.penalty(context), device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def waited(loss: Tensor, device: torch.device) -> None:
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exponent(batch: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log value over log batch: 1 is linear, 2 quadratic."""
    x, y = ([math.log(one) for one in series] for series in (batch, values))
    return statistics.linear_regression(x, y).slope


def write(rows: list[dict[str, Any]], flags: Flags, device: torch.device) -> None:
    shape = {"model": flags.model, "tokens": flags.tokens}
    write_json(flags.out / "table9.json", {**shape, "rows": rows, **facts(device)})
    head = ["", "batch", "MFLOP", "ms", "FLOPs ~ batch ^", "time ~ batch ^", "paper"]
    lines = [
        [row["loss_type"], str(point["batch"]), f"{point['flops'] / 1e6:.2f}",
         f"{point['milliseconds']:.3f}", f"{row['exponent_of_flops']:.2f}",
         f"{row['exponent_of_time']:.2f}", row["paper"] or "-"]
        for row in rows for point in row["points"]
    ]  # fmt: skip
    print(columns(head, lines))
    figure, axes = pages.figure_of(1, 2)
    for axis, key in zip(axes.flat, ("flops", "milliseconds"), strict=True):
        for row in rows:
            values = [point[key] for point in row["points"]]
            axis.loglog(flags.batch, values, marker="o", label=row["loss_type"])
        axis.set_title(key)
        axis.set_xlabel("batch")
        axis.legend()
    pages.save(figure, flags.out / "table9.png")
    print(flags.out)


if __name__ == "__main__":
    run(main)
