"""Classifier-free guidance (arXiv 2207.12598) on chosen channels, within an interval of t."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .transport import prediction_of

# (x, t, start) -> prediction in x's dtype, x (B, ...); t is the time asked for and start the time
# at which the solver's step began, both floats on the host.
Network = Callable[[Tensor, float, float], Tensor]

TIME_TOLERANCE = 1e-6  # so that rounding of a time grid does not move an end out of the interval


@dataclass(frozen=True)
class Guidance:
    """pred = uncond + scale (cond - uncond) in the interval, the conditional prediction outside.

    The interval is that of arXiv 2404.07724, there given in noise levels.

    Args:
        scale: 1 is no guidance.
        null: condition dict -> unconditional dict of the same batch size, e.g. `model.null`.
        channels: how many leading channels are guided; the others keep the conditional
            prediction. None guides all; public SiT guides 3 of 4.
        interval: (low, high) in t, both included, tested at the start of a step, so that all
            stages of a step decide alike (adaptive solvers: at each evaluation's own t).
    """

    scale: float
    null: Callable[[dict[str, Any]], dict[str, Any]]
    channels: int | None = None
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval {low} to {high}: give 0 <= low <= high <= 1")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance on {self.channels} channels: give at least 1, or None")

    def active(self, start: float) -> bool:
        """Whether a step that starts at this time lies in the interval."""
        low, high = self.interval
        return low - TIME_TOLERANCE <= start <= high + TIME_TOLERANCE

    def combine(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """The guided prediction, (B, C, ...) each."""
        guided = uncond + self.scale * (cond - uncond)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], cond[:, self.channels :]], dim=1)


def network(
    model_fn: Callable[..., Any],
    cond: dict[str, Any],
    guidance: Guidance | None = None,
    dtype: torch.dtype = torch.float32,
) -> Network:
    """`model_fn(x, t, **cond)` as the solvers see it: one call, on [cond; null] where guided.

    Args:
        dtype: of the start, in which the model is shown the state; float64 is shown in float32.

    Raises:
        ValueError: the null condition has what the condition lacks.
    """
    shown = torch.float32 if dtype == torch.float64 else dtype

    def call(x: Tensor, t: float, condition: dict[str, Any]) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        return prediction_of(model_fn(x.to(shown), times, **condition)).to(x.dtype)

    if guidance is None or guidance.scale == 1:
        return lambda x, t, start: call(x, t, cond)

    null = guidance.null(cond)
    if foreign := [name for name in null if name not in cond and null[name] is not None]:
        raise ValueError(
            f"guidance: the null condition has {', '.join(foreign)}, and the condition has not: "
            "give both the same names"
        )
    both = {
        name: torch.cat([value, null[name]]) if isinstance(value, Tensor) else value
        for name, value in cond.items()
    }

    def guided(x: Tensor, t: float, start: float) -> Tensor:
        if not guidance.active(start):
            return call(x, t, cond)
        return guidance.combine(*call(torch.cat([x, x]), t, both).chunk(2))

    return guided
