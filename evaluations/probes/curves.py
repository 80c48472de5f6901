"""The scores of a probe over its training."""

from typing import NamedTuple

import numpy as np


class Curves(NamedTuple):
    values: np.ndarray  # (epochs, blocks)

    @property
    def final(self) -> list[float]:
        """Of the last epoch, by block."""
        return self.values[-1].tolist()

    @property
    def rising(self) -> bool:
        """Whether the last fifth of the training, at least its last epoch, has still added half a
        point: it is too short. One epoch alone cannot tell that it is not."""
        means = self.values.mean(1)
        if len(means) == 1:
            return True
        return bool(means[-1] - means[-1 - max(1, len(means) // 5)] > 0.005)

    @property
    def best(self) -> list[float]:
        """Over the epochs; chosen on the test images, so it flatters."""
        return self.values.max(0).tolist()
