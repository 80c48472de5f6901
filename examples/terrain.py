"""A modality in one file: profiles of a mountain, 1-D signals cut from matplotlib's elevation map.

python examples/terrain.py train.py --dataset_name terrain --model SiT-Ti/4 --max-steps 1000
python examples/terrain.py sample.py ODE --ckpt results/000-SiT-Ti-4-SiT-Training
"""

import runpy
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import domains  # noqa: E402
from domains.domain import Batch, Domain  # noqa: E402
from domains.order import Draws  # noqa: E402
from runtime.files import atomic_write  # noqa: E402

LENGTH = 64  # points of a profile, 90 m apart
HELD_OUT = 80  # rows of the map, at its southern end
DIRECTIONS = ("west to east", "north to south")
SPREAD = 50.0  # meters; the deviation of heights within a profile


class Heights:
    """int16 meters above the profile's mean <-> what the model sees, of unit deviation."""

    identity = {"name": "heights", "spread": SPREAD}
    uses_noise = False

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return stored.float() / SPREAD

    def decode(self, x: Tensor) -> Tensor:
        return (x.float() * SPREAD).round().clamp(-32768, 32767).to(torch.int16)

    def to(self, device: torch.device | str) -> "Heights":
        return self


class Profiles(torch.utils.data.Dataset):
    """Every profile of a map (H, W): first those along its rows, then those along its columns."""

    decodes = False  # a slice of an array: worker processes would cost more than they save

    def __init__(self, heights: np.ndarray) -> None:
        windows = np.lib.stride_tricks.sliding_window_view
        along = [windows(part, LENGTH, axis=1).reshape(-1, LENGTH) for part in (heights, heights.T)]
        self.heights = np.concatenate(along)
        self.labels = np.repeat(np.arange(2), [len(part) for part in along])

    def __len__(self) -> int:
        return len(self.heights)

    def __getitems__(self, draws: Draws) -> Batch:
        heights = self.heights[draws.index].astype(np.float32)
        raw = (heights - heights.mean(1, keepdims=True)).round().astype(np.int16)
        parts = (raw[:, None], self.labels[draws.index], draws.index)
        return Batch(*map(torch.from_numpy, parts), problems=[])


@dataclass(frozen=True)
class Terrain(Domain):
    """Profiles of 64 heights under two classes: the direction in which they run."""

    codec = Heights()
    num_classes = len(DIRECTIONS)

    @classmethod
    def create(cls, name: str, **_) -> "Terrain":
        return cls(name, raw_shape=(1, LENGTH), shape=(1, LENGTH), vae="none")

    @cached_property
    def map(self) -> np.ndarray:
        """int16 (344, 403), in meters: the Jacksboro fault in Tennessee."""
        from matplotlib import cbook

        with cbook.get_sample_data("jacksboro_fault_dem.npz") as file:
            return file["elevation"]

    def train_set(self, *, augment: bool = True) -> Profiles:
        return Profiles(self.map[:-HELD_OUT])

    def held_out_set(self) -> Profiles:
        return Profiles(self.map[-HELD_OUT:])

    def titles(self, chosen: Tensor) -> list[str]:
        return [DIRECTIONS[number] for number in chosen.tolist()]

    def arrays(self, raw: Tensor) -> np.ndarray:
        """int16 (B, LENGTH, 1)."""
        return raw.transpose(1, 2).cpu().numpy()

    def save_grid(self, raw: Tensor, path, *, cond=None, titles=()) -> None:
        """A sheet of line plots."""
        from matplotlib.figure import Figure

        side = int(np.ceil(len(raw) ** 0.5))
        figure = Figure(figsize=(2 * side, 1.2 * side), layout="tight")
        panels = figure.subplots(side, side, squeeze=False, sharey=True).flat
        for panel in panels:
            panel.axis("off")
        for profile, panel in zip(raw[:, 0].cpu(), panels, strict=False):
            panel.fill_between(range(LENGTH), profile, profile.min() - 20)
        with atomic_write(path) as file:
            figure.savefig(file, format="png")


domains.DATASETS["terrain"] = domains.Row(
    create=Terrain.create,
    defaults=domains.default_flags(LENGTH, len(DIRECTIONS), "none", hflip=False),
    takes_data_path=False,
)

if __name__ == "__main__":
    sys.argv = sys.argv[1:]  # the command and its flags
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
