"""Figure 2: what each method draws from the same noise as training goes on.

python -m experiments.figure2 --preset digits
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from domains import evenly_spaced
from evaluations import pages
from runtime import checkpoint, distributed
from runtime.config import GridODE
from runtime.entry import run
from runtime.random import SampleStreams
from sampling import open_checkpoint
from transport import PROTOCOLS

from . import table
from .rows import dispersive, layer_sync, vanilla
from .runs import Run
from .scoring import SCORINGS
from .sweep import Experiment, Setting, sweep

COLUMNS, SAMPLES = 8, 4  # checkpoints of a run, and seeds that are drawn from each


def runs(setting: Setting) -> list[Run]:
    kept = dict(ckpt_every=max(1, setting.steps // COLUMNS), keep_last=0)
    methods = (vanilla(), dispersive(), layer_sync())
    return [Run(method.name, method.flags | kept) for method in methods]


def draw(folders: list[Path], out: Path) -> None:
    """progress.png: a panel per run, a row per seed of the noise, a column per checkpoint."""
    results = table.read(folders)
    first = results[0].record["seed"]
    chosen = [folder for folder in folders if table.read_run(folder).record["seed"] == first]
    asked = "cpu" if "--device cpu" in results[0].record["commands"][0] else "auto"
    device = distributed.start(asked).device
    figure, axes = pages.figure_of(len(chosen), 1)
    for folder, axis in zip(chosen, axes.flat, strict=True):
        files = [file for one in checkpoint.runs(folder) for file in checkpoint.files_of(one)]
        strip = torch.cat([drawn(file, device) for file in files], -1)  # a column per checkpoint
        axis.imshow(strip.permute(1, 2, 0).numpy())
        width = strip.shape[-1] // len(files)
        axis.set_xticks(
            [width * (n + 0.5) for n in range(len(files))], [int(file.stem) for file in files]
        )
        axis.set_yticks([])
        axis.set_title(table.read_run(folder).record["name"])
    pages.save(figure, out / "progress.png")


def drawn(file: Path, device: torch.device) -> Tensor:
    """Samples of fixed seeds and classes, one under the other: uint8
    (3, SAMPLES * (H + 2), W + 2)."""
    protocol = {k: v for k, v in PROTOCOLS["paper-ode"].items() if k != "mode"}
    flags = GridODE(**protocol, ckpt=str(file))
    opened = open_checkpoint(flags, device)
    small = SCORINGS.get(opened.domain.name)
    if small and small.time_points:
        flags = GridODE(**protocol | {"num_sampling_steps": small.time_points}, ckpt=str(file))
    streams = SampleStreams(range(SAMPLES), flags.seed, device)
    z, _ = streams.start(opened.domain.shape, opened.domain.num_classes)
    classes = torch.tensor(evenly_spaced(SAMPLES, opened.domain.num_classes), device=device)
    cond = opened.domain.condition(classes)
    raw = F.pad(opened.draw(flags, streams, z, cond).cpu(), (1, 1, 1, 1), value=255)
    return raw.expand(-1, 3, -1, -1).transpose(0, 1).flatten(1, 2)


FIGURE = Experiment("figure2", "Figure 2: progress", ("fig2",), runs, finish=draw)
main = partial(sweep, FIGURE)

if __name__ == "__main__":
    run(main)
