"""Paths from noise to data: x_t = alpha(t) x1 + sigma(t) x0, t = 0 is noise x0, t = 1 is data x1.

Everything of SiT (arXiv 2401.08740) that is a formula in alpha, sigma and their derivatives.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """alpha, sigma and their time derivatives at some t; four tensors of t's shape."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def wronskian(self) -> Tensor:
        """alpha' sigma - alpha sigma' > 0: the denominator that all conversions share."""
        return self.d_alpha * self.sigma - self.alpha * self.d_sigma

    @property
    def power(self) -> Tensor:
        """alpha^2 + sigma^2, 1 where the variance is kept."""
        return self.alpha**2 + self.sigma**2

    @property
    def growth(self) -> Tensor:
        """alpha' alpha + sigma' sigma, half the power's derivative."""
        return self.d_alpha * self.alpha + self.d_sigma * self.sigma


def linear(t: Tensor) -> Schedule:
    """x_t = t x1 + (1 - t) x0, the straight path; the paper's."""
    one = torch.ones_like(t)
    return Schedule(alpha=t, sigma=1 - t, d_alpha=one, d_sigma=-one)


def gvp(t: Tensor) -> Schedule:
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): keeps the variance (generalized VP)."""
    quarter = math.pi / 2
    # cos(pi t / 2), written so that it is exactly 0, and never negative, at t = 1.
    alpha, sigma = torch.sin(quarter * t), torch.sin(quarter * (1 - t))
    return Schedule(alpha, sigma, quarter * sigma, -quarter * alpha)


def vp(t: Tensor, low: float = 0.1, high: float = 20.0) -> Schedule:
    """Variance-preserving diffusion with beta from `low` (data) to `high` (noise)."""
    s = 1 - t
    log_alpha = -0.25 * s**2 * (high - low) - 0.5 * s * low
    alpha, sigma = torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))
    d_alpha = alpha * (0.5 * s * (high - low) + 0.5 * low)
    return Schedule(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)


def tick_of(t: Tensor, steps: int) -> Tensor:
    """The tick, 0 at the data to steps - 1, in whose stretch of [0, 1] t lies."""
    return (steps * (1 - t)).floor().clamp(0, steps - 1)


def cosine_diffusion(t: Tensor, steps: int) -> Schedule:
    """The discrete diffusion of arXiv 2102.09672 (MDM's): beta_i = 1 - f(i + 1) / f(i), at most
    0.999, of f(s) = cos((s / steps + 0.008) / 1.008 * pi / 2) ** 2. It has no velocity."""
    tick = tick_of(t, steps).double()

    def f(s: Tensor) -> Tensor:
        return torch.cos((s / steps + 0.008) / 1.008 * (math.pi / 2)) ** 2

    # The product of 1 - beta telescopes; only the last beta is cut.
    kept = torch.maximum(f(tick + 1), 0.001 * f(tick)) / f(torch.zeros_like(tick))
    none = torch.zeros_like(t)
    return Schedule(kept.sqrt().to(t.dtype), (1 - kept).sqrt().to(t.dtype), none, none)


def cogvideox_diffusion(t: Tensor, steps: int, shift: float = 3.0) -> Schedule:
    """CogVideoX's (arXiv 2408.06072): Stable Diffusion's scaled linear beta, with a signal to noise
    ratio `shift` times smaller, and stretched so that none of the signal is left at the last tick
    (arXiv 2305.08891). It has no velocity."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64, device=t.device)
    kept = torch.cumprod(1 - roots**2, dim=0)
    signal = (kept / (shift + (1 - shift) * kept)).sqrt()
    first, last = signal[0], signal[-1]
    alpha = ((signal - last) * (first / (first - last)))[tick_of(t, steps).long()]
    none = torch.zeros_like(t)
    return Schedule(alpha.to(t.dtype), (1 - alpha**2).sqrt().to(t.dtype), none, none)


class Path(NamedTuple):
    """A schedule, its name in flags and files, and where in time it is singular.

    pure_noise: alpha(0) = 0, so that noise and score predictions give no velocity at t = 0.
    steep_end: sigma' diverges at t = 1, where data have no velocity.
    steps: the ticks of a clock on which alone the path is defined, each a stretch of [0, 1] of
        equal length; None: time is continuous.
    """

    name: str
    schedule: Callable[[Tensor], Schedule]
    pure_noise: bool
    steep_end: bool
    steps: int | None = None

    def at(self, t: Tensor, x: Tensor) -> Schedule:
        """The schedule at t, (B,) or 0-dim, shaped to multiply x (B, ...)."""
        return self.schedule(t.view(-1, *[1] * (x.ndim - 1)))

    def sample(self, x1: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and its velocity u_t = d x_t / dt, for data x1, noise x0 (B, ...) and t (B,)."""
        s = self.at(t, x1)
        return s.alpha * x1 + s.sigma * x0, s.d_alpha * x1 + s.d_sigma * x0


PATHS = {
    path.name: path
    for path in (
        Path("Linear", linear, pure_noise=True, steep_end=False),
        Path("GVP", gvp, pure_noise=True, steep_end=False),
        Path("VP", vp, pure_noise=False, steep_end=True),
        *(
            Path(f"Cosine-{steps}", partial(cosine_diffusion, steps=steps), False, False, steps)
            for steps in (1000, 50)
        ),
        Path("CogVideoX", partial(cogvideox_diffusion, steps=1000), True, False, 1000),
    )
}

# What a network may predict, and (s, x_t, prediction) -> the same thing in another form. With the
# wronskian every quotient is finite wherever its limit is: only alpha = 0 and sigma = 0 remain.
# v_prediction is alpha noise - sigma data (arXiv 2202.00512), by diffusers' name for it.
PREDICTIONS = ("velocity", "noise", "score", "data", "v_prediction")
CONVERSIONS: dict[tuple[str, str], Callable[[Schedule, Tensor, Tensor], Tensor]] = {
    ("noise", "velocity"): lambda s, x, e: (s.d_alpha * x - s.wronskian * e) / s.alpha,
    ("score", "velocity"): lambda s, x, g: (s.d_alpha * x + s.sigma * s.wronskian * g) / s.alpha,
    ("velocity", "noise"): lambda s, x, v: (s.d_alpha * x - s.alpha * v) / s.wronskian,
    ("score", "noise"): lambda s, x, g: -s.sigma * g,
    ("velocity", "score"): lambda s, x, v: (s.alpha * v - s.d_alpha * x) / (s.sigma * s.wronskian),
    ("noise", "score"): lambda s, x, e: -e / s.sigma,
    ("data", "velocity"): lambda s, x, d: (s.d_sigma * x + s.wronskian * d) / s.sigma,
    ("data", "noise"): lambda s, x, d: (x - s.alpha * d) / s.sigma,
    ("data", "score"): lambda s, x, d: (s.alpha * d - x) / s.sigma**2,
    ("velocity", "data"): lambda s, x, v: (s.sigma * v - s.d_sigma * x) / s.wronskian,
    ("noise", "data"): lambda s, x, e: (x - s.sigma * e) / s.alpha,
    ("score", "data"): lambda s, x, g: (x + s.sigma**2 * g) / s.alpha,
    ("v_prediction", "velocity"): lambda s, x, v: (s.growth * x - s.wronskian * v) / s.power,
    ("v_prediction", "noise"): lambda s, x, v: (s.sigma * x + s.alpha * v) / s.power,
    ("v_prediction", "score"): lambda s, x, v: -(x + s.alpha / s.sigma * v) / s.power,
    ("v_prediction", "data"): lambda s, x, v: (s.alpha * x - s.sigma * v) / s.power,
    ("velocity", "v_prediction"): lambda s, x, u: (s.growth * x - s.power * u) / s.wronskian,
    ("noise", "v_prediction"): lambda s, x, e: (s.power * e - s.sigma * x) / s.alpha,
    ("score", "v_prediction"): lambda s, x, g: -s.sigma * (s.power * g + x) / s.alpha,
    ("data", "v_prediction"): lambda s, x, d: (s.alpha * x - s.power * d) / s.sigma,
}


def convert(s: Schedule, x: Tensor, value: Tensor, source: str, target: str) -> Tensor:
    """`value` of kind `source` at x = x_t as kind `target`; kinds are in PREDICTIONS."""
    return value if source == target else CONVERSIONS[source, target](s, x, value)


# (t, s, norm) -> D(t) of dx = (velocity + D score) dt + sqrt(2 D) dW; SiT's choices. Every D >= 0
# has the same marginals.
DIFFUSION_FORMS: dict[str, Callable[[Tensor, Schedule, float], Tensor]] = {
    "constant": lambda t, s, norm: norm * torch.ones_like(t),
    "SBDM": lambda t, s, norm: norm * s.sigma * s.wronskian / s.alpha,
    "sigma": lambda t, s, norm: norm * s.sigma,
    "linear": lambda t, s, norm: norm * (1 - t),
    "decreasing": lambda t, s, norm: 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda t, s, norm: norm * torch.sin(math.pi * t) ** 2,
}


def check_known(names: Collection[Any], name: Any, what: str) -> None:
    """An unknown name is a ValueError that lists the known ones."""
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(map(str, names))}")


def choose(table: Mapping[Any, Any], name: Any, what: str) -> Any:
    """table[name], checked as by `check_known`."""
    check_known(table, name, what)
    return table[name]
