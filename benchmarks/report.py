"""Interleaved measurement, tables, and one JSON line per row.

Speeds drift with clocks, heat and other people's work. So what is compared runs in one process, a
few calls each in turn, round after round in rotating order, and ratios are taken within a round.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import tyro

from runtime.config import checked
from runtime.entry import speaks
from runtime.errors import InputError
from runtime.hardware import facts
from runtime.text import columns

GIB = 2**30
CPU = torch.profiler.ProfilerActivity.CPU
SECOND_CALL = "benchmarks: second call"


@dataclass(frozen=True)
class MeasureFlags:
    rounds: int = 6  # every contestant runs once per round, in rotating order
    calls: int = 3  # timed calls per round (a GPU wants 20 and more)
    settle: int = 1  # untimed calls before them, after another contestant used the caches
    warmup: int = 2  # untimed calls before the first round; compiling happens there
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    out: str = "results/benchmarks.jsonl"  # every row is appended here as a line of JSON


Flags = TypeVar("Flags", bound=MeasureFlags)
LEAST = {"rounds": 1, "calls": 1, "settle": 0, "warmup": 1}  # AdamW makes its state in the first


def parse(flags: type[Flags], least: Mapping[str, int] | None = None) -> Flags:
    """The command line as one of the benchmarks' dataclasses.

    Args:
        least: smallest values of a benchmark's own numbers, besides LEAST.

    Raises:
        InputError: a number below its smallest value, or outside the range of train.py's flag.
    """
    parsed = checked(tyro.cli(flags, args=sys.argv[1:], console_outputs=speaks()))
    for name, smallest in (LEAST | dict(least or {})).items():
        if getattr(parsed, name) < smallest:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(parsed, name)}: give {smallest} or more"
            )
    return parsed


class Contestant(NamedTuple):
    """One row of a table: `build` makes the function that is timed; it may return anything."""

    name: str
    build: Callable[[], Callable[[], Any]]
    images: int  # that one call works on


class Measured(NamedTuple):
    """What a contestant took.

    step_bytes is the peak of a call above what is held between calls; held_bytes is what is held:
    weights, optimizer, EMA, and where a loop keeps them, gradients.
    """

    name: str
    images: int
    seconds: np.ndarray  # (rounds, calls), of one call
    step_bytes: int
    held_bytes: int

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def images_per_s(self) -> float:
        return self.images / self.median

    def times(self) -> dict[str, Any]:
        """The first columns of a table."""
        low, high = (float(1e3 * q) for q in np.percentile(self.seconds, [10, 90]))
        return {"row": self.name, "ms": 1e3 * self.median, "ms_p10": low, "ms_p90": high}

    def row(self) -> dict[str, Any]:
        """The columns of a table of calls that work on images."""
        return self.times() | {
            "images_per_s": self.images_per_s,
            "step_gib": self.step_bytes / GIB,
            "peak_gib": (self.held_bytes + self.step_bytes) / GIB,
        }


class Ratio(NamedTuple):
    """A quotient of every round: its median, smallest and largest."""

    median: float
    low: float
    high: float


def speedup(slow: Measured, fast: Measured) -> Ratio:
    """How many times the images per second of `slow` the contestant `fast` makes, by rounds."""
    per_image = [np.median(one.seconds, axis=1) / one.images for one in (slow, fast)]
    ratios = per_image[0] / per_image[1]
    return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def beside(base: Measured, one: Measured) -> dict[str, float]:
    """The columns of a paired comparison: `one` beside `base`, measured in the same rounds."""
    ratio = speedup(base, one)
    return {"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high}


def cost(base: Measured, one: Measured) -> dict[str, float]:
    """What `one` costs over `base`, in percent: of time per image in the same rounds, and of the
    peak of memory."""
    slower = speedup(one, base)
    memory = [m.step_bytes + m.held_bytes for m in (base, one)]
    return {
        "time_percent": 100 * (slower.median - 1),
        "time_percent_low": 100 * (slower.low - 1),
        "time_percent_high": 100 * (slower.high - 1),
        "memory_percent": 100 * (memory[1] / memory[0] - 1),
    }


def interleave(
    contestants: Sequence[Contestant], device: torch.device, flags: MeasureFlags
) -> dict[str, Measured]:
    """Build and warm up all, then time them by turns; by name, in the order given."""
    calls, held = {}, {}
    for one in contestants:
        before = HELD[device.type]()
        calls[one.name] = one.build()
        for _ in range(flags.warmup):
            calls[one.name]()
        held[one.name] = HELD[device.type]() - before
    steps = {name: PEAKS[device.type](call) for name, call in calls.items()}
    seconds = take_turns(calls, device, flags)
    return {
        one.name: Measured(one.name, one.images, seconds[one.name], steps[one.name], held[one.name])
        for one in contestants
    }


def take_turns(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, flags: MeasureFlags
) -> dict[str, np.ndarray]:
    """Time calls that are warm, in rotating order: seconds (rounds, calls), by name."""
    seconds, names = {name: [] for name in calls}, list(calls)
    for number in range(flags.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(flags.settle):
                calls[name]()
            seconds[name].append(CLOCKS[device.type](calls[name], flags.calls))
    return {name: np.array(found) for name, found in seconds.items()}


def host_seconds(call: Callable[[], Any], count: int) -> list[float]:
    """The time of each of `count` calls in a row."""
    ends = [time.perf_counter()]
    for _ in range(count):
        call()
        ends.append(time.perf_counter())
    return np.diff(ends).tolist()


def device_seconds(call: Callable[[], Any], count: int) -> list[float]:
    """The same between events on the stream: the host may run ahead, as it does in training."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    ends = zip(events[:-1], events[1:], strict=True)
    return [begin.elapsed_time(end) / 1e3 for begin, end in ends]


def host_peak(call: Callable[[], Any]) -> int:
    """Bytes of tensors that a call has at most beyond those that it finds, as torch's CPU allocator
    reports them to the profiler. Of two calls the second: it may free what the first one left."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr
    with torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
        call()
        with torch.profiler.record_function(SECOND_CALL):
            call()
    events = profile.profiler.kineto_results.events()
    (begin,) = (event.start_ns() for event in events if event.name() == SECOND_CALL)
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    levels = np.cumsum([size for start, size in memory if start >= begin])
    return int(max(levels, default=0))


def device_peak(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def host_held() -> int:
    """Bytes of the CPU tensors that exist, gradients among them; not the compiler's fake ones."""
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    found += [one.grad for one in found if one.is_leaf and one.grad is not None]
    storages = [one.untyped_storage() for one in found if one.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


CLOCKS = {"cpu": host_seconds, "cuda": device_seconds}
PEAKS = {"cpu": host_peak, "cuda": device_peak}
HELD = {"cpu": host_held, "cuda": torch.cuda.memory_allocated}


def publish(
    benchmark: str, title: str, rows: Sequence[Mapping[str, Any]], flags: MeasureFlags,
    device: torch.device, **conditions: Any,
) -> None:  # fmt: skip
    """Print rows as a table and append each to `--out`, with what its figures depend on.

    Args:
        rows: alike; {"row": name, column: number or None, ...}.
        conditions: more that the figures depend on, the attention kernel say.

    Raises:
        InputError: `--out` cannot be written.
    """
    print(f"\n{title}\n{table(rows)}", flush=True)
    common = {
        "benchmark": benchmark, "table": title, "flags": asdict(flags), **conditions,
        **facts(device), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    out = Path(flags.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "a") as file:
            for row in rows:
                file.write(json.dumps({**row, **common}) + "\n")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns, the keys as their head; numbers to four digits, `-` for None."""
    if not rows:
        return "(no rows)"
    head, cells = list(rows[0]), [[shown(value) for value in row.values()] for row in rows]
    return columns(head, cells)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
