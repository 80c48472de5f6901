"""Solvers as free functions, each the algorithm box of its paper; they know no model and no path.

A field is (x, t, start) -> dx/dt: t the time asked for, start the time at which the step began.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Field = Callable[[Tensor, float, float], Tensor]
Noise = Callable[[Tensor], Tensor]


def euler(field: Field, x: Tensor, times: Sequence[float]) -> Tensor:
    """Order 1: one call of the field per step."""
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * field(x, t, t)
    return x


def heun(field: Field, x: Tensor, times: Sequence[float]) -> Tensor:
    """Order 2: the mean of the slopes at both ends of a step, two calls."""
    for t, t_next in pairwise(times):
        dt = t_next - t
        slope = field(x, t, t)
        x = x + 0.5 * dt * (slope + field(x + dt * slope, t_next, t))
    return x


def euler_maruyama(
    drift: Field,
    diffusion: Callable[[Tensor, float], Tensor],
    x: Tensor,
    times: Sequence[float],
    randn: Noise,
) -> Tensor:
    """dx = drift dt + sqrt(2 D) dW with D = diffusion(x, t): one call of the drift per step."""
    for t, t_next in pairwise(times):
        dt = t_next - t
        jump = (2 * dt * diffusion(x, t)).sqrt() * randn(x)
        x = x + dt * drift(x, t, t) + jump
    return x


def stochastic_heun(
    drift: Field,
    diffusion: Callable[[Tensor, float], Tensor],
    x: Tensor,
    times: Sequence[float],
    randn: Noise,
) -> Tensor:
    """Noise first, then a deterministic Heun step along the drift: two calls per step."""
    for t, t_next in pairwise(times):
        dt = t_next - t
        x = x + (2 * dt * diffusion(x, t)).sqrt() * randn(x)
        slope = drift(x, t, t)
        x = x + 0.5 * dt * (slope + drift(x + dt * slope, t_next, t))
    return x


LOOPS = {"euler": euler, "heun2": heun, "heun": heun}  # "heun2" is torchdiffeq's name
FIXED_GRID = ("midpoint", "heun3", "rk4", "explicit_adams", "implicit_adams")  # torchdiffeq's
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")  # torchdiffeq's
ODE_METHODS = (*LOOPS, *FIXED_GRID, *ADAPTIVE)
SDE_METHODS = {"Euler": euler_maruyama, "Heun": stochastic_heun}


def batch_rms(error: Tensor) -> Tensor:
    """torchdiffeq's own norm: an average over the batch, where easy samples hide hard ones."""
    return error.square().mean().sqrt()


def worst_sample_rms(error: Tensor) -> Tensor:
    """The largest root mean square of any sample of (B, ...)."""
    return error.flatten(1).square().mean(1).sqrt().max()


def integrate(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    *,
    method: str,
    atol: float,
    rtol: float,
    norm: Callable[[Tensor], Tensor] = worst_sample_rms,
) -> Tensor:
    """The state at times[-1] of dx/dt = field from x at times[0]; only that one is kept.

    `times` may rise or fall. Adaptive methods use only its ends, and the tolerances in `norm`;
    their steps may be rejected, so to the field every time is its own start.
    """
    if method in LOOPS:
        return LOOPS[method](field, x, times)

    from torchdiffeq import odeint  # for rare and adaptive solvers only

    start: float | None = None  # of the step, on a fixed grid

    def slope(t: Tensor, state: Tensor) -> Tensor:
        return field(state, float(t), float(t) if start is None else start)

    def begin(t: Tensor, state: Tensor, dt: Tensor) -> None:
        nonlocal start
        start = float(t)

    grid = torch.tensor(times, device=x.device, dtype=x.dtype)
    ends = grid[[0, -1]]
    if method in FIXED_GRID:
        options = {"grid_constructor": lambda func, state, t: grid}
        slope.callback_step = begin  # torchdiffeq calls it before every step
    else:
        # A step ends at the last time: by default it runs past it, where VP has no sigma, and the
        # result is interpolated.
        options = {"norm": norm, "step_t": ends[1:]}

    return odeint(slope, x, ends, method=method, atol=atol, rtol=rtol, options=options)[-1]
