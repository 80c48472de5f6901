"""The density of data under the flow: log p(x1) = log N(x0) - integral of div v dt, t = 0 to 1.

The divergence is Hutchinson's estimate probe^T (dv/dx) probe (FFJORD, arXiv 1810.01367).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .solvers import integrate, worst_sample_rms


class Likelihood(NamedTuple):
    """log_density (B,) in nats and bits_per_dim (B,) of the model's own continuous input.

    For pixels u in 0..255 shown as x = u / 127.5 - 1 (dequantised uniformly), bits per pixel value
    are bits_per_dim + log2(127.5). `noise` (B, ...) is where the data came from at the start.
    """

    log_density: Tensor
    bits_per_dim: Tensor
    noise: Tensor


def solve_likelihood(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    times: Sequence[float],
    probe: Tensor,
    *,
    method: str,
    atol: float,
    rtol: float,
) -> Likelihood:
    """Carry data x (B, ...) back along falling `times`; the velocity must be differentiable in x.

    Over all probes the log-density is unbiased; one probe is held for the whole solution, so that
    adaptive solvers meet a smooth field.
    """

    def field(state: Tensor, t: float, start: float) -> Tensor:
        """d/dt of [x, integral of the divergence], flattened to (B, D + 1)."""
        with torch.enable_grad():
            point = state[:, :-1].view_as(x).detach().requires_grad_()
            v = velocity(point, t)
            (pulled,) = torch.autograd.grad((v * probe).sum(), point)
        divergence = (pulled * probe).flatten(1).sum(1, keepdim=True)
        return torch.cat([v.detach().flatten(1), divergence], dim=1)

    def norm(error: Tensor) -> Tensor:
        """The divergence is judged by itself, or D accurate pixels would hide it."""
        return torch.maximum(worst_sample_rms(error[:, :-1]), worst_sample_rms(error[:, -1:]))

    with torch.no_grad():
        state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
        state = integrate(field, state, times, method=method, atol=atol, rtol=rtol, norm=norm)
        noise, change = state[:, :-1], state[:, -1]
        dimensions = noise.shape[1]
        prior = -0.5 * (noise.square().sum(1) + dimensions * math.log(2 * math.pi))
        log_density = prior + change
        bits_per_dim = -log_density / (dimensions * math.log(2))
    return Likelihood(log_density, bits_per_dim, noise.view_as(x))


def rademacher(x: Tensor) -> Tensor:
    """Random signs like x."""
    return torch.randint_like(x, 2) * 2 - 1
