"""One run's model, objective, optimizer and EMA, and the step that moves them.

python train.py --preset digits
"""

import dataclasses
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import domains
from domains.codecs import first_difference
from domains.order import positions
from methods import Method
from models import Denoiser, check_state
from runtime import parallel
from runtime.checkpoint import Checkpoint
from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.draws import StepDraws, draws_of_step
from runtime.ema import EMA
from runtime.errors import InputError
from runtime.log import Log
from runtime.precision import Arithmetic
from runtime.random import SampleStreams, seed_of
from runtime.state import TrainState
from transport import Guidance, Losses, Sampler, TrainingStep, Transport


class Trainer:
    """The model, its objective, the optimizer and the EMA of one run, and the step that moves them.

    Call `step` with an iterator of batches that are on the device. Nothing in it waits for the
    device: what it returns are tensors that are still being computed.
    """

    def __init__(
        self, config: TrainConfig, domain: domains.Domain, transport: Transport, model: Denoiser,
        method: Method, ranks: Ranks,
    ) -> None:  # fmt: skip
        self.config, self.domain, self.ranks = config, domain, ranks
        self.codec = domain.codec.to(ranks.device)
        self.transport, self.model, self.regulariser = transport, model, method.regulariser
        self.targets = method.targets.to(ranks.device) if method.targets else None
        names = method.targets.identity if method.targets else []
        self.target_names = {f"target {number}": name for number, name in enumerate(names, start=1)}
        self.arithmetic = Arithmetic(config.precision, ranks.device, config.attention)
        self.attention = self.arithmetic.attention(*model.attention_shape)
        self.logs_telemetry = self.regulariser is not None and config.telemetry_every > 0
        training_step = TrainingStep(model, transport, self.regulariser).to(ranks.device)
        ema = EMA(model, config.ema_decay)
        # Where a method looks at no teacher, it is not asked.
        self.teacher = method.teacher.to(ranks.device) if method.teacher else ema.model
        self.uses_teacher = bool(self.regulariser and self.regulariser.teacher_blocks)
        if config.compile == "on":
            model.compile_blocks()
            training_step.compile_losses()
            if self.uses_teacher:
                self.teacher.compile_blocks()
        if config.shard:
            parallel.shard(training_step, model.blocks, ranks, train=True)
            parallel.shard(ema.model, ema.model.blocks, ranks, train=False)
            self.training_step = training_step
        else:
            self.training_step = parallel.replicate(training_step, ranks, self.example_loss)
        self.state = TrainState(
            model, ema, self.regulariser or nn.Identity(),
            lr=config.lr, weight_decay=config.weight_decay, clip=config.clip_grad_norm,
            betas=(config.adam_beta1, config.adam_beta2), spike_sigma=config.spike_sigma,
            warmup=config.lr_warmup,
        )  # fmt: skip

    def step(self, batches: Iterator[domains.Batch]) -> dict[str, Tensor]:
        """One step of the optimizer over `grad_accum` micro-batches of this rank.

        Returns:
            0-dim tensors, means over the micro-batches: loss, velocity, reg; grad_norm, before
            clipping, where the log asks for it. NaN, where the step was skipped.
        """
        config, ranks, step = self.config, self.ranks, self.state.step
        weights = self.weights(step)
        of_batch = self.step_draws(step)
        parts = []
        for micro, batch in enumerate(islice(batches, config.grad_accum)):
            draws = of_batch.at(positions(
                config.global_batch_size, rank=ranks.rank, ranks=ranks.size,
                micro=micro, micro_batches=config.grad_accum,
            ))  # fmt: skip
            last = micro == config.grad_accum - 1
            losses = self.backward(batch, draws, weights, micro=micro, last=last)
            self.latest = batch
            parts.append(torch.stack(losses).detach())
        loss, velocity, reg = torch.stack(parts).mean(0)
        # Of the two terms, the one that no schedule switches on or off tells of spikes.
        seen = ranks.mean(velocity.clone()) if config.spike_sigma else None
        norm, skipped = self.state.update(seen)
        metrics = dict(loss=loss, velocity=velocity, reg=reg)
        metrics |= {"grad_norm": norm} if self.reports(step + 1) else {}
        return {name: value.masked_fill(skipped, math.nan) for name, value in metrics.items()}

    def step_draws(self, step: int) -> StepDraws:
        """The random numbers of a step that this codec and this method use."""
        return draws_of_step(
            self.config, self.domain.shape, step, self.ranks.device,
            posterior=self.codec.uses_noise, teacher=self.uses_teacher,
        )  # fmt: skip

    def backward(
        self, batch: domains.Batch, draws: StepDraws, weights: dict[str, Tensor], *,
        micro: int, last: bool,
    ) -> Losses:  # fmt: skip
        """The gradients of a micro-batch's mean loss, added to those there are."""
        inputs = self.inputs(batch, draws)
        if self.model.has_dropout:  # as a function of the step and of where it is computed
            where = (self.state.step, self.ranks.rank, micro)
            torch.manual_seed(seed_of(self.config.global_seed, "dropout", *where))
        sync = parallel.gradient_sync(self.training_step, last=last)
        with sync, self.arithmetic.kernels():
            with self.arithmetic.autocast():
                targets = self.targets(batch) if self.targets else ()
                losses = self.training_step(**inputs, **weights, targets=targets)
            # A loss that is not finite makes the whole gradient so, which all ranks see.
            (losses.total / (self.config.grad_accum * losses.total.isfinite())).backward()
        return losses

    def inputs(self, batch: domains.Batch, draws: StepDraws) -> dict[str, Any]:
        """What the training step sees of a micro-batch, besides weights and targets."""
        return {
            "x": self.codec.to_input(self.codec.encode(batch.raw), draws.posterior),
            "noise": draws.noise,
            "t": self.transport.times(draws.time),
            "cond": self.model.drop(batch.cond, draws.dropped),
            "mask": batch.mask,
            "token_mask": self.token_mask(batch),
            "ema": self.teacher,
            "uniform": draws.teacher,
        }

    def token_mask(self, batch: domains.Batch) -> Tensor | None:
        """(B, N), true where the regulariser counts: a token is a frame, where lengths differ."""
        valid = batch.mask is not None and self.config.sync_tokens == "valid"
        return batch.mask.flatten(1) if valid else None

    def weights(self, step: int) -> dict[str, Tensor]:
        """The factors of both terms, as tensors: a number would be part of a compiled graph."""
        velocity = self.regulariser.velocity_weight(step) if self.regulariser else 1.0
        factors = {"weight": self.reg_weight(step), "velocity_weight": velocity}
        return {k: torch.full((), v, device=self.ranks.device) for k, v in factors.items()}

    def example_loss(self, module: nn.Module) -> Tensor:
        """The loss of a micro-batch of zeros."""
        config, device = self.config, self.ranks.device
        size = config.global_batch_size // (self.ranks.size * config.grad_accum)
        x, zeros = (torch.zeros(size, *axes, device=device) for axes in (self.domain.shape, ()))
        cond = {
            name: value.to(device).expand(size, *value.shape[1:])
            for name, value in self.model.example_condition().items()
        }
        targets = self.targets.example(size, device) if self.targets else ()
        with self.arithmetic():
            return module(
                x, x, zeros, cond, **self.weights(0), ema=self.teacher,
                uniform=zeros, targets=targets,
            ).total  # fmt: skip

    def telemetry(self) -> dict[str, float]:
        """What the features and the gradients of both terms look like, on the latest micro-batch.

        Changes nothing that is trained: its random numbers are those of the step to come, and the
        gradients are thrown away. Costs two steps and a forward pass. `unit_ratio` is what
        `grad_ratio` would be at weight 1: it tells of a term that is not switched on, too.
        """
        batch = self.latest
        weights = self.weights(self.state.step)
        weight = weights["weight"]
        weights["weight"] = torch.ones_like(weight)  # the gradient is proportional to it
        draws = self.step_draws(self.state.step).at(positions(
            self.config.global_batch_size, rank=self.ranks.rank, ranks=self.ranks.size,
            micro=0, micro_batches=self.config.grad_accum,
        ))  # fmt: skip
        zero = torch.zeros((), device=self.ranks.device)
        norms = {}
        for term in weights:
            alone = {name: weights[name] if name == term else zero for name in weights}
            self.backward(batch, draws, alone, micro=0, last=True)
            norms[term] = self.state.grad_norm(self.model.parameters())  # not the projectors'
            self.state.opt.zero_grad(set_to_none=True)
        ratio = norms["weight"] / norms["velocity_weight"]
        found = {"grad_ratio": weight * ratio, "unit_ratio": ratio}
        found |= self.look(batch, draws)
        names = sorted(found)
        means = self.ranks.mean(torch.stack([found[name].float() for name in names]))
        return dict(zip(names, means.tolist(), strict=True))

    @torch.no_grad()
    def look(self, batch: domains.Batch, draws: StepDraws) -> dict[str, Tensor]:
        """The regulariser's own view of its blocks."""
        inputs, weights = self.inputs(batch, draws), self.weights(self.state.step)
        with self.arithmetic():
            return self.training_step(**inputs, **weights, watch=True)

    def is_finite(self) -> bool:
        """Whether all that a checkpoint would hold is numbers; waits for the device."""
        return self.ranks.mean(self.state.is_finite()).item() == 1

    def counts(self) -> dict[str, int]:
        """Of the run so far, after a look of the guard; only what there is."""
        guard = self.state.guard
        found = {"skipped_steps": guard.skipped, "rollbacks": guard.rollbacks}
        return {name: count for name, count in found.items() if count}

    def attach(self, batch: domains.Batch) -> domains.Batch:
        """The batch with the features that the method aligns to."""
        return self.targets.attach(batch) if self.targets else batch

    def reg_weight(self, step: int) -> float:
        return self.regulariser.weight(step) if self.regulariser else 0.0

    def reports(self, step: int) -> bool:
        """Whether a log line is written after this many steps."""
        every = (self.config.log_every, self.config.ckpt_every)
        return step == self.config.max_steps or any(step % steps == 0 for steps in every)

    def resume(self, origin: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: naming the first tensor that does not fit, or another VAE than then.
        """
        state = self.state
        for module, weights in ((state.model, origin.model), (state.ema.model, origin.ema)):
            if weights:
                check_state(module, weights)
        check_state(state.regulariser, origin.regulariser)
        ours = self.domain.identity
        if key := first_difference(origin.codec, ours):
            raise ValueError(self.domain.unlike(key, origin.codec[key], ours[key]))
        if origin.targets != self.target_names:
            was, now = (", ".join(one.values()) for one in (origin.targets, self.target_names))
            raise ValueError(f"it was aligned to features of {was}, but those here are of {now}")
        self.state.resume(origin)

    def content(self) -> dict[str, Any]:
        """What a checkpoint of this run stores."""
        return self.state.content() | {
            "args": dataclasses.asdict(self.config),
            "architecture": self.model.config,
            "codec": self.domain.identity,
            "targets": self.target_names,
        }

    def can_decode(self, log: Log) -> bool:
        """Whether samples can be shown; found out before the run, not at its first preview."""
        x = torch.zeros(1, *self.domain.shape, device=self.ranks.device)
        try:
            self.codec.decode(x)
            self.domain.condition(self.previewed())
        except InputError as error:
            log.say(f"no previews: {error}")
            return False
        return True

    def preview(self, path: Path) -> None:
        """A sheet of EMA samples, the same seeds and classes every time."""
        if not (self.ranks.is_main or self.config.shard):  # a sharded network needs all ranks
            return
        chosen = self.previewed()
        x, _ = self.sample(range(len(chosen)), chosen=chosen, cfg_scale=self.config.cfg_scale)
        if self.ranks.is_main:
            cond, titles = self.domain.condition(chosen), self.domain.titles(chosen)
            self.domain.save_grid(self.codec.decode(x), path, cond=cond, titles=titles)

    def previewed(self) -> Tensor:
        """The choices of a preview (16,)."""
        return torch.tensor(
            domains.evenly_spaced(16, self.domain.choices), device=self.ranks.device
        )

    def generate(self, numbers: range) -> tuple[Tensor, Tensor]:
        """Unguided EMA samples (B, ...) by their numbers, as the data are, and their choices (B,),
        in the order of an evaluation."""
        x, chosen = self.sample(numbers)
        return self.codec.decode(x), chosen

    @torch.no_grad()
    def sample(
        self, numbers: range, *, chosen: Tensor | None = None, cfg_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """What the EMA model draws (B, C, *axes), and choices of the domain (B,), those of its
        evaluation unless given."""
        domain = self.domain
        scale = cfg_scale if self.model.is_conditional else 1.0  # else both halves are the same
        streams = SampleStreams(numbers, self.config.global_seed, self.ranks.device)
        z, drawn = streams.start(domain.shape, domain.choices)
        chosen = domain.chosen(numbers, drawn) if chosen is None else chosen
        sample = Sampler(self.transport).sample_few(
            guidance=Guidance(scale, self.model.null, domain.guided_channels),
            randn=streams.like,
        )
        with self.arithmetic():
            x = sample(z, self.state.ema.model, **domain.condition(chosen))[-1]
        return x, chosen

    def summary(self) -> str:
        config = self.config
        return (
            f"{config.model}, {self.regulariser or 'no regulariser'}, {config.precision}, "
            f"attention by {self.attention}{', compiled' if config.compile == 'on' else ''}"
        )
