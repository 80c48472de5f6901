"""`train.py --score-every`: a score of the EMA model as it trains, on the same seeds every time."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

# Numbers of samples -> what the model draws (B, ...), as the data are, and the domain's choices
# (B,) that it was told.
Draw = Callable[[range], tuple[Tensor, Tensor]]


class TrainingScore(ABC):
    """Scores a model by --score-samples samples; opened, on every rank, before the run."""

    @abstractmethod
    def try_out(self, draw: Draw) -> None:
        """Find out before the run whether its samples can be scored.

        Raises:
            InputError: they cannot.
        """

    def keep(self, folder: Path) -> None:  # noqa: B027
        """Leave in the run's folder what it has to be resumed with; most scores need nothing."""

    @abstractmethod
    def __call__(self, draw: Draw) -> dict[str, float]:
        """The scores, the same on every rank."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a row of scores depends on: images, how many; extractor and reference, names."""
