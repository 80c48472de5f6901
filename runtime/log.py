"""The log of a run: one JSON line and one readable line every so often; TensorBoard; wandb."""

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .distributed import Ranks
from .errors import LocalError
from .files import atomic_write, named
from .hardware import peak_flops
from .untrusted import parsed

SHOWN = 8  # numbers of images in a line for people


class Log:
    """Means of what `add` was given, written by rank 0 when `write` is called.

    The values stay on the device until then: a log line costs one all-reduce and the loop's only
    host synchronization.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, *, start: int, stop: int, images_per_step: int,
        flops_per_image: float = 0.0, waited: Callable[[], float] = lambda: 0.0,
    ) -> None:  # fmt: skip
        self.folder, self.ranks = folder, ranks
        self.stop, self.images_per_step = stop, images_per_step
        self.waited, self.last_waited = waited, waited()
        at_best = peak_flops(ranks.device)
        self.mfu_per_rate = flops_per_image / (at_best * ranks.size) if at_best else None
        self.values: dict[str, list[Tensor]] = {}
        self.skipped = 0
        self.said: set[str] = set()  # of the images that were replaced
        self.last_step, self.last_time = start, time.perf_counter()
        self.file = None
        self.writers: list[Any] = []
        if ranks.is_main:
            cut_after(folder / "log.jsonl", start)
            self.file = open(folder / "log.jsonl", "a", buffering=1)

    def open_writers(self, config: dict[str, Any]) -> None:
        """TensorBoard and wandb, as the flags `tensorboard` and `wandb` say, on rank 0."""
        if not self.ranks.is_main:
            return
        if config["tensorboard"]:
            try:
                self.writers.append(TensorBoard(self.folder, self.last_step))
            except ImportError:
                self.say("TensorBoard is not installed: no events are written")
        if config["wandb"]:
            self.writers.append(Wandb(self.folder, config))

    def add(self, **values: Tensor) -> None:
        """Values of a step; NaN where there are none, as of a step that was skipped."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value.detach())

    def write(self, step: int, **facts: float | int) -> None:
        """Write the means since the last call; every rank must call."""
        names = sorted(self.values)
        means = [torch.stack(self.values[name]).float().nanmean() for name in names]
        means.append(means[0].new_tensor(self.skipped * self.ranks.size))  # a sum over ranks
        *values, skipped = self.ranks.mean(torch.stack(means)).tolist()
        means = zip(names, values, strict=True)
        row = {name: value for name, value in means if math.isfinite(value)}
        facts |= {"skipped": round(skipped)} if skipped else {}
        self.values = {}
        now = time.perf_counter()
        seconds = (now - self.last_time) / (step - self.last_step)
        waited = (self.waited() - self.last_waited) / (now - self.last_time)
        rate = self.images_per_step / seconds
        self.last_step, self.last_time, self.last_waited = step, now, self.waited()
        row = {
            "step": step,
            **row,
            **facts,
            "images_per_second": rate,
            **({"mfu": rate * self.mfu_per_rate} if self.mfu_per_rate else {}),
            "data_wait": waited,
            "seconds_left": seconds * (self.stop - step),
        }
        if self.ranks.is_main:
            self.append(row)
            self.tell(lambda writer: writer.scalars(row))
            self.say(readable(row, self.stop))

    def say(self, text: str) -> None:
        """One line for people, on rank 0."""
        if self.ranks.is_main:
            print(text, flush=True)
            path = self.folder / "log.txt"
            with named(path), open(path, "a") as file:
                file.write(text + "\n")

    def append(self, row: dict[str, Any]) -> None:
        """One line of log.jsonl, on rank 0."""
        with named(self.file.name):
            self.file.write(json.dumps(row) + "\n")

    def row(self, step: int, kind: str, values: dict[str, float], **facts: Any) -> None:
        """What is looked at now and then: a row {"step", kind: values, **facts} of its own. Values
        that are not finite are said, and in no file: JSON has none."""
        if self.ranks.is_main:
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self.append({"step": step, kind: finite, **facts})
            scalars = {"step": step, **{f"{kind}/{k}": v for k, v in finite.items()}}
            self.tell(lambda writer: writer.scalars(scalars))
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"step {step:>{len(str(self.stop))}}/{self.stop}  {kind}: {shown}")

    def skipped_step(self, step: int, reason: str, images: list[int]) -> None:
        """A row {"step", "skipped_step": why, "images": numbers in the data set} of its own."""
        if self.ranks.is_main:
            row = {"step": step, "skipped_step": reason, "images": images}
            self.append(row)
            some = ", ".join(map(str, images[:SHOWN])) + ", ..." * (len(images) > SHOWN)
            self.say(f"step {step:>{len(str(self.stop))}}/{self.stop}  skipped: {reason}; {some}")

    def rewind(self, step: int, **facts: Any) -> None:
        """The run has gone back to this step: what was logged since is dropped, but log.txt tells.

        Args:
            facts: a row of the step that comes next.
        """
        self.values, self.last_step = {}, step
        if self.ranks.is_main:
            self.file.close()
            cut_after(self.folder / "log.jsonl", step)
            self.file = open(self.folder / "log.jsonl", "a", buffering=1)
            self.append({"step": step + 1, **facts})
            self.tell(lambda writer: writer.rewind(step))

    def picture(self, step: int, path: Path) -> None:
        self.tell(lambda writer: writer.picture(step, path))

    def tell(self, action: Callable[[Any], None]) -> None:
        """TensorBoard and wandb, whose own errors say of no file what it is."""
        with named(self.folder):
            for writer in self.writers:
                action(writer)

    def problems(self, sentences: list[str]) -> None:
        """Count the images that a rank had to replace, and say of each so once."""
        for sentence in sentences:
            self.skipped += 1
            if sentence in self.said:
                continue
            self.said.add(sentence)
            print(f"skipped ({self.skipped}): {sentence}", file=sys.stderr, flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside (checkpoints, previews) out of the throughput."""
        begin = time.perf_counter()
        yield
        self.last_time += time.perf_counter() - begin

    def close(self) -> None:
        self.tell(lambda writer: writer.close())
        if self.file:
            self.file.close()


class TensorBoard:
    def __init__(self, folder: Path, start: int) -> None:
        self.folder = folder / "tensorboard"
        self.writer = self.opened(start)

    def opened(self, start: int):
        from torch.utils.tensorboard import SummaryWriter

        # Steps that a killed run had logged and a resumed one does again are shown once.
        return SummaryWriter(self.folder, purge_step=start + 1)

    def rewind(self, step: int) -> None:
        self.writer.close()
        self.writer = self.opened(step)

    def scalars(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def picture(self, step: int, path: Path) -> None:
        self.writer.add_image("samples", read_image(path), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of its own in wandb for every run folder; its id is kept there for resuming."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise LocalError("--wandb needs wandb: pip install 'layersync[wandb]'") from error
        self.wandb = wandb
        id_file = folder / "wandb-id.txt"
        if not id_file.exists():
            with atomic_write(id_file) as file:
                file.write(secrets.token_hex(4).encode())
        try:
            self.run = wandb.init(
                # An argument beats the environment; WANDB_ENTITY is read by wandb itself.
                project=os.environ.get("WANDB_PROJECT", "LayerSync"),
                name=folder.name,
                id=id_file.read_text(),
                resume="allow",
                dir=str(folder),
                config=config,
            )
        except wandb.errors.Error as error:
            raise LocalError(  # rank 0 alone talks to wandb
                f"--wandb: {str(error).split('. ')[0]}: run `wandb login` once, or set "
                "WANDB_MODE=offline"
            ) from error

    def scalars(self, row: dict[str, float]) -> None:
        self.run.log(row, step=int(row["step"]))

    def rewind(self, step: int) -> None:
        """wandb's steps only rise: it leaves out those that are done again."""

    def picture(self, step: int, path: Path) -> None:
        self.run.log({"samples": self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


def read_image(path: Path):
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def readable(row: dict[str, float], stop: int) -> str:
    parts = [f"step {row['step']:>{len(str(stop))}}/{stop}"]
    parts += [f"{name} {row[name]:.4f}" for name in ("loss", "velocity", "reg") if name in row]
    parts += [f"grad {row['grad_norm']:.3f}"] if "grad_norm" in row else []
    parts += [f"{row['images_per_second']:.0f} images/s"]
    parts += [f"{row['mfu']:.1%} MFU"] if "mfu" in row else []
    parts += [f"{row['data_wait']:.0%} waiting for data"] if row.get("data_wait", 0) > 0.01 else []
    parts += [f"{clock(row['seconds_left'])} left"]
    return "  ".join(parts)


def clock(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours}:{minutes:02d}:{round(seconds) % 60:02d}"


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if not path.exists():
        return
    lines = path.read_text(errors="replace").splitlines()
    kept = []
    for line in lines:
        try:
            if parsed(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # it was cut off when the run was killed
            continue
    if kept != lines:
        with atomic_write(path) as file:
            file.write("".join(line + "\n" for line in kept).encode())
