"""Sampling: the network's prediction as a velocity and a noise, and a solver along them.

ODE: dx = v dt.   SDE: dx = (v + D score) dt + sqrt(2 D) dW, the same marginals for every D >= 0.
DDPM: x_s drawn from q(x_s | x_t, data), the data being the network's guess; DDIM draws nothing.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .guidance import Guidance, network
from .likelihood import Likelihood, rademacher, solve_likelihood
from .path import DIFFUSION_FORMS, Schedule, check_known, choose
from .solvers import (
    ODE_METHODS,
    SDE_METHODS,
    Noise,
    batch_rms,
    integrate,
    worst_sample_rms,
)
from .transport import MARGIN, Transport, time_of

FEW_STEPS, FEW_TICKS = 25, 50  # of `sample_few`
DDPM_CALLS = 250  # where there is no clock whose ticks count

# From the last time to the data: (x, size, s, velocity, noise, D / sigma). None stays where it is.
LastStep = Callable[[Tensor, float, Schedule, Tensor, Tensor, Tensor], Tensor]
LAST_STEPS: dict[str | None, LastStep | None] = {
    "Mean": lambda x, size, s, velocity, noise, rate: x + size * (velocity - rate * noise),
    "Euler": lambda x, size, s, velocity, noise, rate: x + size * velocity,
    "Tweedie": lambda x, size, s, velocity, noise, rate: (x - s.sigma * noise) / s.alpha,
    None: None,
}


class Sampler:
    """SiT's sampler interface. Each method returns `fn(z, model_fn, **model_kwargs)`.

    `model_fn(x, t, **model_kwargs)` returns a prediction (B, ...), or an `Output` that holds one.
    z (B, ...) is the start. The state is integrated in its dtype, in float32 where that is shorter;
    the model sees z's dtype then, and the result has it. The result is (1, B, ...): only the final
    sample, `result[-1]`, is kept. Nothing of a sampler is differentiated.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def sample_ode(
        self,
        *,
        sampling_method: str = "dopri5",
        num_steps: int = 50,
        atol: float = 1e-6,
        rtol: float = 1e-3,
        reverse: bool = False,
        guidance: Guidance | None = None,
        per_sample_error: bool = True,
    ) -> Callable[..., Tensor]:
        """The probability flow from noise to data.

        Args:
            sampling_method: one of ODE_METHODS; adaptive ones use atol and rtol, not num_steps.
            num_steps: time points, ends included, as in SiT: Euler makes num_steps - 1 calls.
            reverse: from data back to noise.
            per_sample_error: adaptive steps must suit every sample; False averages the error
                over the batch, as the public code does.

        Raises:
            ValueError: an unknown method, or fewer than two time points.
        """
        check_known(ODE_METHODS, sampling_method, "ODE sampling method")
        times = self.times(self.interval(), num_steps)
        if reverse:
            times.reverse()

        @torch.no_grad()
        def sample(z: Tensor, model_fn: Callable[..., Any], **model_kwargs: Any) -> Tensor:
            predict = network(model_fn, model_kwargs, guidance, z.dtype)

            def velocity(x: Tensor, t: float, start: float) -> Tensor:
                return self.transport.velocity(predict(x, t, start), x, filled(t, x))

            return integrate(
                velocity,
                widened(z),
                times,
                method=sampling_method,
                atol=atol,
                rtol=rtol,
                norm=worst_sample_rms if per_sample_error else batch_rms,
            ).to(z.dtype)[None]

        return sample

    def sample_sde(
        self,
        *,
        sampling_method: str = "Euler",
        diffusion_form: str = "SBDM",
        diffusion_norm: float = 1.0,
        last_step: str | None = "Mean",
        last_step_size: float = 0.04,
        num_steps: int = 250,
        guidance: Guidance | None = None,
        randn: Noise = torch.randn_like,
    ) -> Callable[..., Tensor]:
        """A diffusion from noise to data; SiT's best results use the form "sigma".

        Args:
            sampling_method: one of SDE_METHODS.
            diffusion_form, diffusion_norm: D(t), one of DIFFUSION_FORMS and its factor, at least 0.
            last_step, last_step_size: one of LAST_STEPS, from t = 1 - last_step_size to the data.
            num_steps: time points, ends included. With a last step, Euler makes num_steps calls.
            randn: x -> standard normal noise like x, called once per step.

        Raises:
            ValueError: an unknown name, fewer than two time points, a negative norm, a last step
                that is not in [0, 1) or leaves no time before it.
        """
        solve = choose(SDE_METHODS, sampling_method, "SDE sampling method")
        form = choose(DIFFUSION_FORMS, diffusion_form, "diffusion form")
        finish = choose(LAST_STEPS, last_step, "last step")
        if not 0 <= last_step_size < 1:
            raise ValueError(f"last_step_size is {last_step_size}; it must lie in [0, 1)")
        if diffusion_norm < 0:
            raise ValueError(f"diffusion_norm is {diffusion_norm}; it must be at least 0")
        transport = self.transport
        interval = self.interval(
            last_step_size if finish else 0.0, divides_by_alpha=diffusion_form == "SBDM"
        )
        times = self.times(interval, num_steps)

        def diffusion(x: Tensor, t: float) -> Tensor:
            time = filled(t, x)
            return form(time, transport.path.schedule(time), diffusion_norm)

        def rate(x: Tensor, t: float) -> Tensor:
            """D / sigma, so that D score = -rate noise is finite at the data too, where D vanishes
            with sigma: within MARGIN of them the rate is held, there it would be 0 / 0."""
            held = min(t, 1.0 - MARGIN)
            return diffusion(x, held) / transport.path.schedule(filled(held, x)).sigma

        @torch.no_grad()
        def sample(z: Tensor, model_fn: Callable[..., Any], **model_kwargs: Any) -> Tensor:
            predict = network(model_fn, model_kwargs, guidance, z.dtype)

            def velocity_and_noise(x: Tensor, t: float, start: float) -> tuple[Tensor, Tensor]:
                pred, time = predict(x, t, start), filled(t, x)
                return transport.velocity(pred, x, time), transport.noise(pred, x, time)

            def drift(x: Tensor, t: float, start: float) -> Tensor:
                velocity, noise = velocity_and_noise(x, t, start)
                return velocity - rate(x, t) * noise

            x = solve(drift, diffusion, widened(z), times, randn)
            if finish is not None:
                end = times[-1]
                velocity, noise = velocity_and_noise(x, end, end)
                schedule = transport.path.at(filled(end, x), x)
                x = finish(x, last_step_size, schedule, velocity, noise, rate(x, end))
            return x.to(z.dtype)[None]

        return sample

    def sample_ddpm(
        self,
        *,
        num_steps: int | None = None,
        ddim: bool = False,
        guidance: Guidance | None = None,
        randn: Noise = torch.randn_like,
    ) -> Callable[..., Tensor]:
        """Ancestral sampling (DDPM, arXiv 2006.11239; its smaller variance), on any path.

        Args:
            num_steps: network calls, on a clock at most its ticks; None: all ticks, else 250.
            ddim: no noise between steps (arXiv 2010.02502), and ticks that begin at the last one
                and lie evenly to the data, which diffusers calls trailing (arXiv 2305.08891).
            randn: x -> standard normal noise like x, called once per step but the last.

        Raises:
            ValueError: fewer than two steps, or more than the clock has ticks.
        """
        transport, steps = self.transport, self.transport.path.steps
        num_steps = (steps or DDPM_CALLS) if num_steps is None else num_steps
        if num_steps < 2:
            raise ValueError(f"num_steps is {num_steps}; at least 2 steps are needed")
        if steps:
            if num_steps > steps:
                raise ValueError(f"{num_steps} steps, but {transport.path.name} has {steps}")
            ticks = time_grid(steps - 1, 0, num_steps, whole=True)
            if ddim:  # diffusers' arithmetic: halves are rounded as there
                ends = np.arange(steps, 0, -steps / num_steps)[:num_steps]
                ticks = (ends.round() - 1).tolist()
            times = [time_of(tick, steps) for tick in ticks]
            ends = [*map(self.at, times), (1.0, 0.0)]
        else:
            *times, end = self.times(transport.sample_interval(), num_steps + 1)
            ends = [*map(self.at, times), self.at(end)]

        @torch.no_grad()
        def sample(z: Tensor, model_fn: Callable[..., Any], **model_kwargs: Any) -> Tensor:
            predict = network(model_fn, model_kwargs, guidance, z.dtype)
            x = widened(z)
            for t, ((alpha, sigma), (alpha_next, sigma_next)) in zip(
                times, pairwise(ends), strict=True
            ):
                data = transport.data(predict(x, t, t), x, filled(t, x))
                ratio = alpha / alpha_next
                kept = sigma_next / sigma  # of the noise in x_t
                if not ddim:
                    kept *= ratio * kept
                x = kept * x + (alpha_next - kept * alpha) * data
                if sigma_next and not ddim:
                    variance = sigma**2 - (ratio * sigma_next) ** 2  # of x_t about ratio x_s
                    x = x + sigma_next / sigma * max(variance, 0.0) ** 0.5 * randn(x)
            return x.to(z.dtype)[None]

        return sample

    def sample_few(
        self, *, guidance: Guidance | None = None, randn: Noise = torch.randn_like
    ) -> Callable[..., Tensor]:
        """A quick look, as training takes it: Heun, or ancestral sampling on a clock."""
        if steps := self.transport.path.steps:
            few = min(FEW_TICKS, steps)
            return self.sample_ddpm(num_steps=few, guidance=guidance, randn=randn)
        return self.sample_ode(sampling_method="heun2", num_steps=FEW_STEPS, guidance=guidance)

    def times(self, interval: tuple[float, float], num_steps: int) -> list[float]:
        """num_steps times over an interval, ends included, evenly on the transport's clock."""
        if self.transport.shift == 1:
            return time_grid(*interval, num_steps)
        return [self.transport.within(interval, way) for way in time_grid(0.0, 1.0, num_steps)]

    def at(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at t, in double precision on the host."""
        schedule = self.transport.path.schedule(torch.tensor(t, dtype=torch.float64))
        return schedule.alpha.item(), schedule.sigma.item()

    def interval(self, *args: Any, **kwargs: Any) -> tuple[float, float]:
        """`Transport.sample_interval`, where time is continuous.

        Raises:
            ValueError: the path is a clock.
        """
        if self.transport.path.steps:
            raise ValueError(
                f"{self.transport.path.name} is a discrete diffusion: sample it by DDPM"
            )
        return self.transport.sample_interval(*args, **kwargs)

    def sample_ode_likelihood(
        self,
        *,
        sampling_method: str = "dopri5",
        num_steps: int = 50,
        atol: float = 1e-6,
        rtol: float = 1e-3,
        probe: Noise = rademacher,
    ) -> Callable[..., Likelihood]:
        """The log-density of data under the flow: fn(x, model_fn, **model_kwargs) -> Likelihood.

        Args:
            sampling_method, num_steps, atol, rtol: as for `sample_ode`; data of a shorter dtype are
                carried back in float32, which the result keeps.
            probe: x -> random signs (or any noise with identity covariance) like x, drawn once.

        Raises:
            ValueError: an unknown method, or fewer than two time points.
        """
        check_known(ODE_METHODS, sampling_method, "ODE sampling method")
        times = self.times(self.interval(), num_steps)[::-1]

        def evaluate(x: Tensor, model_fn: Callable[..., Any], **model_kwargs: Any) -> Likelihood:
            predict = network(model_fn, model_kwargs, dtype=x.dtype)
            x = widened(x)

            def velocity(x: Tensor, t: float) -> Tensor:
                return self.transport.velocity(predict(x, t, t), x, filled(t, x))

            return solve_likelihood(
                velocity, x, times, probe(x), method=sampling_method, atol=atol, rtol=rtol
            )

        return evaluate


def time_grid(start: float, end: float, num_steps: int, *, whole: bool = False) -> list[float]:
    """num_steps equally spaced times on the host: stepping through them never asks the device.

    `whole`: rounded, as ticks of a clock are."""
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; at least 2 time points are needed")
    times = torch.linspace(start, end, num_steps, dtype=torch.float64)
    return (times.round() if whole else times).tolist()


def widened(z: Tensor) -> Tensor:
    """z in float32 where its dtype is shorter: hundreds of small steps round away in bfloat16."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def filled(t: float, x: Tensor) -> Tensor:
    """t as a 0-dim tensor beside x."""
    return torch.full((), t, dtype=x.dtype, device=x.device)
