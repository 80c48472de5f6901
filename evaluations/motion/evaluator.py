"""T2M's evaluator as a folder: the networks, their words, and what they normalize features by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from domains.humanml3d import LOUD, LOUDER, Caption, read_statistics, statistic
from runtime.errors import InputError
from runtime.files import sha256_of
from runtime.precision import plain_float32

from . import networks
from .words import FILES, Vocabulary, read_vocabulary

# Where its parts lie in a folder of MDM, of text-to-motion, or of those that followed them.
HOMES = ("t2m", "checkpoints/t2m", "t2m/t2m", ".")
NETWORKS = tuple(f"{home}/text_mot_match/model/finest.tar" for home in HOMES)
GLOVE = tuple(f"{home}/{FILES[0]}" for home in ("glove", "t2m/glove"))
MEAN = ("dataset/t2m_mean.npy", "t2m_mean.npy") + tuple(
    f"{home}/Comp_v6_KLD01/meta/mean.npy" for home in HOMES
)

TOLERANCE = 1.2  # AMASS processed anew differs a little


class Statistics(NamedTuple):
    """What features are normalized by."""

    mean: np.ndarray  # float32 (263,)
    std: np.ndarray

    def normalized(self, motion: np.ndarray) -> np.ndarray:
        return (motion - self.mean) / self.std


@dataclass(frozen=True)
class Evaluator:
    networks: networks.Matching
    vocabulary: Vocabulary
    statistics: Statistics
    sha256: str  # of finest.tar
    trained_on: str | None  # None: as T2M publishes it
    device: torch.device

    @property
    def name(self) -> str:
        return f"trained on {self.trained_on}" if self.trained_on else "T2M"

    @property
    def distance(self) -> str:
        """What its Frechet distance is called: the published numbers are T2M's alone."""
        return "fd_trained" if self.trained_on else "fid"

    @property
    def width(self) -> int:
        return self.networks.motion_encoder.output_net[-1].out_features

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "width": self.width}

    def see(self, motions: Tensor, lengths: Tensor) -> Tensor:
        """Normalized motions (B, T, 263) and their lengths in frames -> (B, width), on the host."""
        with plain_float32(self.device):
            return self.networks.motions(motions.to(self.device), lengths).cpu()

    def read(self, captions: list[Caption]) -> Tensor:
        """-> (B, width), on the host."""
        with plain_float32(self.device):
            words = self.vocabulary.words([caption.tokens for caption in captions])
            return self.networks.texts(words).cpu()


def open_evaluator(folder: Path, data: str, device: torch.device) -> Evaluator:
    """
    Args:
        data: HumanML3D's folder, whose Std.npy tells whether the evaluator's is its own.

    Raises:
        InputError: a part is missing, damaged or of something else.
    """
    file = found(folder, NETWORKS)
    vocabulary = read_vocabulary(found(folder, GLOVE).parent)
    mean = found(folder, MEAN)
    std = found(folder, (str(mean.relative_to(folder)).replace("mean", "std"),))
    statistics = Statistics(statistic(mean), statistic(std))
    check_statistics(statistics, std, read_statistics(data)[1])
    loaded = networks.load(file)
    return Evaluator(
        loaded.networks.to(device), vocabulary, statistics, sha256_of(file), loaded.trained_on,
        device,
    )  # fmt: skip


def found(folder: Path, places: tuple[str, ...]) -> Path:
    for place in places:
        if (folder / place).is_file():
            return folder / place
    raise InputError(
        f"{folder} has no {Path(places[0]).name}: looked for {', '.join(places)}; "
        "MDM's folder after its prepare/download_t2m_evaluators.sh and download_glove.sh has all "
        "parts, or train one with python -m experiments.motion_evaluator"
    )


def check_statistics(statistics: Statistics, path: Path, data_std: np.ndarray) -> None:
    """
    Raises:
        InputError: these are not the deviations of the evaluator of this data.
    """
    if (statistics.std <= 0).any():
        raise InputError(f"{path} has {statistics.std.min():g}: deviations are more than 0")
    ratio = data_std / statistics.std
    loud, others = np.median(ratio[LOUD]), np.median(np.delete(ratio, LOUD))
    if max(loud / LOUDER, LOUDER / loud, others, 1 / others) > TOLERANCE:
        raise InputError(
            f"{path} is not the evaluator's own for this data: the data's Std.npy is {loud:.3g} "
            f"times it for the root and the feet, where {LOUDER} belongs, and {others:.3g} times "
            "for the others, where 1 does; t2m_std.npy is another file than Std.npy"
        )
