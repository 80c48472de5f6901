"""The training objective on a path: what the network is asked for, how it is scored, and when."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .path import PATHS, PREDICTIONS, Path, Schedule, check_known, choose, convert, tick_of

# Factor on the squared error of noise and score predictions (SiT); a velocity needs none.
LOSS_WEIGHTS: dict[str | None, Callable[[Schedule], Tensor]] = {
    None: lambda s: torch.ones_like(s.alpha),
    "velocity": lambda s: (s.wronskian / s.alpha) ** 2,
    "likelihood": lambda s: s.wronskian / (s.alpha * s.sigma),
}

# (s, prediction, data, noise) -> error: a target that is finite for every path, and what of the
# prediction is compared with it.
ERRORS: dict[str, Callable[[Schedule, Tensor, Tensor, Tensor], Tensor]] = {
    "velocity": lambda s, pred, data, noise: pred - (s.d_alpha * data + s.d_sigma * noise),
    "noise": lambda s, pred, data, noise: pred - noise,
    "score": lambda s, pred, data, noise: pred * s.sigma + noise,
    "data": lambda s, pred, data, noise: pred - data,
    "v_prediction": lambda s, pred, data, noise: pred - (s.alpha * noise - s.sigma * data),
}
# What a prediction's conversions divide by, and what therefore must not vanish in sampling.
DIVIDES_BY = {
    "velocity": "", "noise": "alpha", "score": "alpha", "data": "sigma", "v_prediction": "",
}  # fmt: skip

# How far sampling stays from an end of time at which a formula in use divides by zero.
MARGIN = 1e-3


@dataclass(frozen=True)
class Transport:
    """A path, what the network predicts on it, and the part of [0, 1] that is used.

    Args:
        path: a row of PATHS.
        prediction: one of PREDICTIONS.
        loss_weight: a key of LOSS_WEIGHTS; ignored by velocity predictions.
        train_eps, sample_eps: distance kept from t = 1, and from t = 0 where alpha(0) = 0.
        shift: how much more of training and of sampling's steps lies at noise; 1: evenly in t. See
            `shifted`.
    """

    path: Path
    prediction: str = "velocity"
    loss_weight: str | None = None
    train_eps: float = 0.0
    sample_eps: float = 0.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_known(PREDICTIONS, self.prediction, "prediction")
        check_known(LOSS_WEIGHTS, self.loss_weight, "loss weight")
        if self.path.steps and self.prediction not in ("data", "noise", "v_prediction"):
            raise ValueError(
                f"{self.path.name} is a discrete diffusion, which has no velocity: predict data or "
                "noise, or v_prediction"
            )
        if self.path.steps and self.path.pure_noise and self.prediction == "noise":
            raise ValueError(
                f"{self.path.name} begins without any signal, where a noise prediction tells "
                "nothing of the data: predict v_prediction or data"
            )
        if self.prediction in ("data", "v_prediction") and self.loss_weight:
            raise ValueError(
                f"loss weight {self.loss_weight!r}: {self.prediction} predictions take none"
            )
        if not self.shift > 0:
            raise ValueError(f"shift is {self.shift}; it must be more than 0")
        if self.path.steps and self.shift != 1:
            raise ValueError(f"{self.path.name} has ticks of its own: leave out the time's shift")
        for name in ("train_eps", "sample_eps"):
            if not 0 <= getattr(self, name) < 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 0.5)")

    def loss(
        self, pred: Tensor, x: Tensor, noise: Tensor, t: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Squared error of the prediction at x_t, mean over all but the batch: (B,), float32.

        Args:
            pred, x, noise: (B, C, *grid); x are data.
            t: (B,).
            mask: (B, 1, *grid), true where a position counts; a sample without any counts as 0.
        """
        x, noise = x.float(), noise.float()
        schedule = self.path.at(t, x)
        error = ERRORS[self.prediction](schedule, pred.float(), x, noise) ** 2
        if self.prediction != "velocity":
            error = error * LOSS_WEIGHTS[self.loss_weight](schedule)
        if mask is None:
            return error.flatten(1).mean(1)
        mask = mask.to(error.dtype).expand_as(error)
        return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    def times(self, u: Tensor) -> Tensor:
        """Training times for uniform u in [0, 1): stretched onto `train_interval`, and shifted; on
        a clock the middle of a tick."""
        if steps := self.path.steps:
            return time_of(tick_of(u, steps), steps)
        return self.within(self.train_interval(), u)

    def within(self, interval: tuple[float, float], u: Tensor) -> Tensor:
        """The time at u, 0 to 1, of the way from one end of an interval to the other, where the way
        is even on the clock that `shift` shifts."""
        start, end = (shifted(t, 1 / self.shift) for t in interval)
        return shifted(start + (end - start) * u, self.shift)

    def train_interval(self) -> tuple[float, float]:
        """(first, last) time of training."""
        return self.train_eps if self.path.pure_noise else 0.0, 1.0 - self.train_eps

    def sample_interval(
        self, last_step_size: float = 0.0, *, divides_by_alpha: bool = False
    ) -> tuple[float, float]:
        """(first, last) time of sampling; a last step of its own, if any, covers the rest.

        Where a formula in use divides by zero at an end (SiT samples NaN there), we keep MARGIN
        away from that end. `divides_by_alpha`: the sampler does so, besides the prediction.

        Raises:
            ValueError: the last step leaves no time before it.
        """
        by = DIVIDES_BY[self.prediction]
        start = self.sample_eps if self.path.pure_noise else 0.0
        end = 1.0 - (last_step_size or self.sample_eps)
        if start == 0 and self.path.pure_noise and (by == "alpha" or divides_by_alpha):
            start = MARGIN
        if end == 1 and (by == "sigma" or self.path.steep_end and by):
            end = 1.0 - MARGIN
        if end <= start:
            raise ValueError(
                f"a last step of {last_step_size} leaves no time before it: sampling starts at "
                f"t = {start}"
            )
        return start, end

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x = x_t that the network's prediction amounts to."""
        return convert(self.path.at(t, x), x, pred, self.prediction, "velocity")

    def data(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t] at x = x_t that the network's prediction amounts to."""
        return convert(self.path.at(t, x), x, pred, self.prediction, "data")

    def noise(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t] = -sigma score at x = x_t that the network's prediction amounts to."""
        return convert(self.path.at(t, x), x, pred, self.prediction, "noise")

    def training_losses(
        self,
        model: Callable[..., Any],
        x1: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        *,
        x0: Tensor | None = None,
        t: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """SiT's entry: {"loss": (B,), "pred": as x1} for data x1; noise and times drawn if absent.

        The training loop uses `TrainingStep`, which adds the regulariser.
        """
        x0 = torch.randn_like(x1) if x0 is None else x0
        t = self.times(torch.rand(x1.shape[0], device=x1.device)) if t is None else t
        x_t, _ = self.path.sample(x1, x0, t)
        pred = prediction_of(model(x_t, t, **(model_kwargs or {})))
        return {"loss": self.loss(pred, x1, x0, t, mask), "pred": pred}


def shifted(t: Any, shift: float) -> Any:
    """The time at which the straight path has `shift` times as much noise to signal as at t, as in
    Stable Diffusion 3 and Wan; 0 and 1 stay. The inverse is that of 1 / shift."""
    return t if shift == 1 else t / (t + shift * (1 - t))


def time_of(tick: Any, steps: int) -> Any:
    """The middle of a tick's stretch of time; see `tick_of`."""
    return 1 - (tick + 0.5) / steps


def prediction_of(output: Any) -> Tensor:
    """The prediction of a model that returns `Output(pred, blocks)` or just a tensor."""
    return output if isinstance(output, Tensor) else output.pred


def create_transport(
    path_type: str = "Linear",
    prediction: str = "velocity",
    loss_weight: str | None = None,
    train_eps: float | None = None,
    sample_eps: float | None = None,
    time_shift: float = 1.0,
) -> Transport:
    """A Transport with SiT's arguments, and a shift; epsilons left at None take SiT's defaults.

    Raises:
        ValueError: an unknown name, an epsilon outside [0, 0.5), or what does not go together.
    """
    path = choose(PATHS, path_type, "path")
    if path.steep_end:
        defaults = (1e-5, 1e-3)
    elif prediction != "velocity":
        defaults = (1e-3, 1e-3)
    else:
        defaults = (0.0, 0.0)
    return Transport(
        path=path,
        prediction=prediction,
        loss_weight=loss_weight,
        train_eps=defaults[0] if train_eps is None else train_eps,
        sample_eps=defaults[1] if sample_eps is None else sample_eps,
        shift=time_shift,
    )
