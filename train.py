"""Train a SiT or an MDM with LayerSync, or without; fine-tune Wan2.1 or CogVideoX.

python train.py --preset digits
torchrun --nproc_per_node=8 train.py --preset t1-xl
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import domains
from domains.codecs import difference
from domains.feed import Feed
from domains.order import positions
from layersync import alarms
from methods import METHODS, Method, check_flags
from models import Denoiser, Task, adapt, architecture, check_state, create, train_flops
from runtime import checkpoint, distributed, parallel, signals
from runtime.checkpoint import Checkpoint
from runtime.config import TrainConfig, parse
from runtime.distributed import Ranks
from runtime.draws import StepDraws, draws_of_step
from runtime.ema import EMA, slow_ema
from runtime.entry import asked_of_user, run
from runtime.errors import InputError, Requeue
from runtime.hardware import memory
from runtime.log import Log
from runtime.plan import GIB, Needs, costs, measured_rate
from runtime.precision import Arithmetic, compiles, default_precision, deterministic
from runtime.presets import PRESETS
from runtime.pulse import Pulse
from runtime.random import SampleStreams, seed_of
from runtime.resume import mark, opened_folder, starting_point
from runtime.saver import Saver
from runtime.state import TrainState
from transport import Guidance, Losses, Sampler, TrainingStep, Transport, create_transport

if TYPE_CHECKING:
    from evaluations.images.in_training import TrainingScore


def main() -> None:
    config = parse(TrainConfig, PRESETS)
    ranks = distributed.start(config.device)
    deterministic(config.deterministic)
    with asked_of_user():
        config, domain, transport, model, method = build(config, ranks.device)
    if config.dry_run:
        return ranks.from_main(lambda: print_dry_run(config, model))

    images = domain.train_set(augment=config.hflip)
    config = with_length(config, len(images), ranks.size, method.least_images)
    start = ranks.from_main(lambda: starting_point(config, len(images)))
    origin = checkpoint.read(start.ckpt, verify=False) if start.ckpt else None
    if origin and not start.resumes:
        with asked_of_user(about=start.ckpt):
            weights = adapt(
                origin.ema, model, reversed_time=origin.reversed_time, pruned=config.prune_blocks
            )
        model.load_state_dict(weights)
    trainer = Trainer(config, domain, transport, model, method, ranks)
    state = trainer.state
    if origin and start.resumes:
        with asked_of_user(about=start.ckpt):
            trainer.resume(origin)
    if origin and not trainer.is_finite():
        raise InputError(f"{start.ckpt} holds numbers that are not finite")
    del origin
    if state.step >= config.max_steps:
        return ranks.from_main(lambda: print(f"{start.folder} is finished: step {state.step}"))

    needs = needs_of(model)
    with Feed(config, images, ranks, trainer.attach) as feed:
        feed.seek(state.step, state.guard.shift)  # what is wrong with the data shows here
        if config.plan:
            return print_plan(trainer, feed, needs)
        score = score_of(config, domain, ranks, Path(start.folder) if start.resumes else None)
        if score:
            score.try_out(trainer.draw)
        folder = Path(ranks.from_main(lambda: opened_folder(start)))
        if score:
            score.keep(folder)
        log = Log(
            folder, ranks, start=state.step, stop=config.max_steps,
            images_per_step=config.global_batch_size, flops_per_image=needs.flops,
            waited=lambda: feed.waited,
        )  # fmt: skip
        log.open_writers(dataclasses.asdict(config))
        log.say(f"{folder}: {needs.parameters:,} parameters, {trainer.summary()}")
        if note := slow_ema(config.ema_decay, config.max_steps):
            log.say(note)
        if method.note and state.step == 0:
            log.say(method.note)
        previews = config.sample_every and ranks.from_main(lambda: trainer.can_decode(log))
        saver = Saver(
            folder, ranks, keep_last=config.keep_last, milestone_every=config.milestone_every
        )
        with signals.deferred(), Pulse(ranks, state.step, patience=config.hang_timeout) as pulse:
            train(trainer, feed, log, saver, pulse, score, previews=previews)
        log.close()


def train(
    trainer: "Trainer", feed: Feed, log: Log, saver: Saver, pulse: Pulse,
    score: "TrainingScore | None", *, previews: bool,
) -> None:  # fmt: skip
    """All steps that are left.

    Raises:
        Requeue: a signal has asked to stop; what was done is saved.
        FloatingPointError: training broke down, and going back to a checkpoint did not help.
    """
    config, state = trainer.config, trainer.state
    batches = sound(feed, log, pulse)
    looked: dict[str, float] = {}  # the first sample of telemetry

    @contextmanager
    def aside(what: str) -> Iterator[None]:
        with log.paused(), pulse.doing(what, aside=True):
            yield

    while state.step < config.max_steps:
        metrics = trainer.step(batches)
        done = state.step
        pulse.at(done)
        log.add(**metrics)
        saver.check()
        last = done == config.max_steps
        stops = pulse.stops() and not last
        saves = last or stops or done % config.ckpt_every == 0
        reports = trainer.reports(done)
        if reports or stops:
            for step, reason in state.guard.look(done).items():
                log.skipped_step(step, reason, feed.images_of(step))
            log.write(done, reg_weight=trainer.reg_weight(done - 1), **trainer.counts())
            # Judged where an uninterrupted run is, too; a checkpoint holds nothing but numbers.
            broke_down = reports and state.guard.broke_down(config.max_skipped)
            if broke_down or (saves and not trainer.is_finite()):
                with aside("going back to a checkpoint"):
                    go_back(trainer, feed, log, saver)
                continue
        if trainer.watches and done % config.telemetry_every == 0:
            with aside("telemetry"):
                found = trainer.telemetry()
                log.row(done, "telemetry", found)
                looked = looked or found
                for alarm in alarms(found, looked, done) if trainer.reg_weight(done) else ():
                    log.say(f"warning: {alarm}")
        if score and (last or done % config.score_every == 0):
            with aside("scores"):  # before the save: a run that dies between them scores again
                log.row(done, "scores", score(trainer.draw), **score.facts())
        # What is saved amid skipped steps is nothing to go back to.
        if saves and (last or stops or not state.guard.in_row):
            with aside("saving"):
                saver.save(done, trainer.content() | {"images": len(feed.images)})
        if stops:
            stop(done, log, saver, pulse)
        if previews and (last or done % config.sample_every == 0):
            with aside("previews"):
                path = log.folder / "samples" / f"{done:07d}.png"
                trainer.preview(path)
                log.picture(done, path)
    with pulse.doing("saving", aside=True):
        saver.wait()
        trainer.ranks.barrier()


def stop(done: int, log: Log, saver: Saver, pulse: Pulse) -> None:
    """
    Raises:
        Requeue: always, once the checkpoint is on disk.
    """
    with pulse.doing("saving", aside=True):
        saver.wait()
        log.ranks.barrier()
    sentence = f"stopped by a signal after step {done}, which is saved: --resume auto goes on"
    log.say(sentence)
    log.close()
    if log.ranks.is_main:
        mark(log.folder, sentence)
    raise Requeue


def go_back(trainer: "Trainer", feed: Feed, log: Log, saver: Saver) -> None:
    """To the newest checkpoint, and on with other data than those that training broke down on.

    Raises:
        FloatingPointError: there is none, or it did not help before.
    """
    state, done = trainer.state, trainer.state.step
    saver.wait()
    every = trainer.config.ckpt_every
    path = trainer.ranks.from_main(lambda: checkpoint.last_good(log.folder, every))
    if path is None:
        raise FloatingPointError(
            f"training broke down by step {done}, before its first checkpoint: lower --lr or give "
            "--clip-grad-norm"
        )
    state.go_back(checkpoint.read(path, verify=False))
    feed.seek(state.step, state.guard.shift)
    log.rewind(state.step, rollback={"from": done, "shift": state.guard.shift}, **trainer.counts())
    log.say(
        f"warning: training broke down by step {done}: back to step {state.step}, and on with "
        f"other data (shifted by {state.guard.shift} batches)"
    )


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
        made_by = method.targets.identity if method.targets else []
        self.made_by = {f"target {number}": name for number, name in enumerate(made_by, start=1)}
        self.arithmetic = Arithmetic(config.precision, ranks.device, config.attention)
        self.attention = self.arithmetic.attention(*model.attention_shape)
        self.watches = self.regulariser is not None and config.telemetry_every > 0
        training_step = TrainingStep(model, transport, self.regulariser).to(ranks.device)
        ema = EMA(model, config.ema_decay)
        # Where a method looks at no teacher, it is not asked.
        self.teacher = method.teacher.to(ranks.device) if method.teacher else ema.model
        self.looks_up = bool(self.regulariser and self.regulariser.teacher_blocks)
        if config.compile == "on":
            model.compile_blocks()
            training_step.compile_losses()
            if self.looks_up:
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
            spike_sigma=config.spike_sigma, warmup=config.lr_warmup,
        )  # fmt: skip

    def step(self, batches: Iterator[domains.Batch]) -> dict[str, Tensor]:
        """One step of the optimizer over `grad_accum` micro-batches of this rank.

        Returns:
            0-dim tensors, means over the micro-batches: loss, velocity, reg; grad_norm, before
            clipping, where the log asks for it. NaN, where the step was skipped.
        """
        config, ranks, step = self.config, self.ranks, self.state.step
        weights = self.weights(step)
        of_batch = self.draws(step)
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

    def draws(self, step: int) -> StepDraws:
        """The random numbers of a step that this codec and this method use."""
        return draws_of_step(
            self.config, self.domain.shape, step, self.ranks.device,
            posterior=self.codec.uses_noise, teacher=self.looks_up,
        )  # fmt: skip

    def backward(
        self, batch: domains.Batch, draws: StepDraws, weights: dict[str, Tensor], *,
        micro: int, last: bool,
    ) -> Losses:  # fmt: skip
        """The gradients of a micro-batch's mean loss, added to those there are."""
        inputs = self.inputs(batch, draws)
        if self.model.draws:  # dropout, as a function of the step and of where it is computed
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
        draws = self.draws(self.state.step).at(positions(
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
        if key := difference(origin.codec, ours):
            raise ValueError(self.domain.unlike(key, origin.codec[key], ours[key]))
        if origin.targets != self.made_by:
            was, now = (", ".join(one.values()) for one in (origin.targets, self.made_by))
            raise ValueError(f"it was aligned to features of {was}, but those here are of {now}")
        self.state.resume(origin)

    def content(self) -> dict[str, Any]:
        """What a checkpoint of this run stores."""
        return self.state.content() | {
            "args": dataclasses.asdict(self.config),
            "architecture": self.model.config,
            "codec": self.domain.identity,
            "targets": self.made_by,
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

    def previewed(self, count: int = 16) -> Tensor:
        """Choices spread over all that there are (count,)."""
        choices = max(self.domain.choices, 1)
        return torch.arange(count, device=self.ranks.device) * choices // count

    def draw(self, numbers: range) -> tuple[Tensor, Tensor]:
        """Unguided EMA samples by their numbers: uint8 (B, C, H, W), and their classes (B,)."""
        x, y = self.sample(numbers)
        return self.codec.decode(x), y

    @torch.no_grad()
    def sample(
        self, numbers: range, *, chosen: Tensor | None = None, cfg_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """What the EMA model draws (B, C, *axes), and choices of the domain (B,), random ones
        unless given."""
        domain = self.domain
        streams = SampleStreams(numbers, self.config.global_seed, self.ranks.device)
        z, drawn = streams.start(domain.shape, domain.choices)
        chosen = drawn if chosen is None else chosen
        sample = Sampler(self.transport).sample_few(
            guidance=Guidance(cfg_scale, self.model.null, domain.guided_channels),
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


def build(
    config: TrainConfig, device: torch.device
) -> tuple[TrainConfig, domains.Domain, Transport, Denoiser, Method]:
    """The parts that the flags describe, and the flags with every `None` decided.

    Raises:
        ValueError: flags that do not go together.
    """
    pretrained = config.pretrained or architecture(config.model).get("pretrained")
    domain = domains.build(
        config.dataset_name, data_path=config.data_path, image_size=config.image_size,
        num_classes=config.num_classes, vae=config.vae, text_encoder=config.text_encoder,
        num_frames=config.num_frames, frame_stride=config.frame_stride, pretrained=pretrained,
        cache_dir=config.cache_dir, skip_corrupt=config.skip_corrupt,
    )  # fmt: skip
    config = dataclasses.replace(
        config,
        image_size=domain.image_size,
        pretrained=pretrained,
        num_classes=domain.num_classes,
        vae=domain.vae,
        text_encoder=domain.text_encoder,
        num_frames=domain.num_frames,
        frame_stride=domain.frame_stride,
        precision=config.precision or default_precision(device),
        compile=compiles(config.compile, device),
    )
    transport = create_transport(
        config.path_type, config.prediction, config.loss_weight, config.train_eps,
        config.sample_eps, config.time_shift,
    )  # fmt: skip
    task = Task(
        domain.shape, domain.num_classes, domain.multi_label, domain.text_width,
        transport.path.steps, config.learn_sigma, config.mask_frames,
        (config.path_type, config.prediction), config.precision == "bf16",
    )  # fmt: skip
    new = partial(
        create, config.model, task, depth=config.depth, hidden_size=config.hidden_size,
        num_heads=config.num_heads, dropout=config.dropout, pretrained=pretrained,
        lora_rank=config.lora_rank, lora_alpha=config.lora_alpha,
    )  # fmt: skip
    if not pretrained:
        model = described(new)  # all that a dry run shows
    if pretrained or not config.dry_run:
        torch.manual_seed(config.global_seed)
        model = new()
    if config.shard and pretrained_parts(model):
        raise InputError("--shard is for networks that are trained whole: give --lora-rank 0")
    model.activation_checkpointing = config.activation_checkpointing
    model.keeps_condition_token = config.sync_tokens == "all"
    check_flags(config)
    config, method = METHODS[config.loss_type](config, model, domain)
    return config, domain, transport, model, method


def described(new: Callable[[], Denoiser]) -> Denoiser:
    """A model on the meta device: shapes alone.

    Raises:
        InputError: more weights than this machine has memory.
    """
    try:
        with torch.device("meta"):
            model = new()
    except RuntimeError as error:
        if "overflowed" not in str(error):
            raise
        raise InputError("these flags are of a model of more bytes than a number holds") from error
    parameters = sum(p.numel() for p in model.parameters())
    if 4 * parameters > memory():
        raise InputError(
            f"these flags are of a model of {parameters:,} parameters, {4 * parameters / GIB:,.0f} "
            f"GiB, and this machine has {memory() / GIB:.0f} GiB"
        )
    return model


def with_length(config: TrainConfig, images: int, ranks: int, least: int = 1) -> TrainConfig:
    """The flags with `max_steps` decided.

    Raises:
        InputError: the global batch does not fit the data or the processes.
    """
    batch, parts = config.global_batch_size, ranks * config.grad_accum
    if batch < 1 or batch % parts:
        raise InputError(
            f"--global-batch-size {batch} is not divisible by {ranks} processes x "
            f"{config.grad_accum} micro-batches"
        )
    if batch // parts < least:
        raise InputError(
            f"--loss-type {config.loss_type} compares images: a micro-batch needs {least} or more, "
            f"and --global-batch-size {batch} gives {batch // parts}"
        )
    if images < batch:
        raise InputError(
            f"the data set has {images} images, fewer than one --global-batch-size {batch}"
        )
    steps = config.epochs * (images // batch) if config.max_steps is None else config.max_steps
    return dataclasses.replace(config, max_steps=steps)


def sound(feed: Feed, log: Log, pulse: Pulse) -> Iterator[domains.Batch]:
    """The batches, what is wrong in them said or raised."""
    while True:
        with pulse.doing("waiting for data"):
            batch = next(feed)
        log.problems(batch.problems)
        yield batch


def score_of(
    config: TrainConfig, domain: domains.Domain, ranks: Ranks, folder: Path | None
) -> "TrainingScore | None":
    """What --score-every computes; opened before the run, so that it is refused before it."""
    if not config.score_every:
        return None
    from evaluations.images.in_training import TrainingScore

    return TrainingScore(config, domain, ranks, folder)


def needs_of(model: Denoiser) -> Needs:
    outside = pretrained_parts(model)
    own = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in outside)
    return Needs(own, train_flops(model), sum(p.numel() * p.element_size() for p in outside))


def pretrained_parts(model: Denoiser) -> list[nn.Parameter]:
    """Parameters that are not trained and in no checkpoint."""
    stored = model.state_dict().keys()
    return [p for name, p in model.named_parameters() if name not in stored]


def print_dry_run(config: TrainConfig, model: Denoiser) -> None:
    """The resolved flags, and what the model needs."""
    flags = [f"  {name:24} {value}" for name, value in dataclasses.asdict(config).items()]
    print("\n".join(flags + needs_of(model).lines()))


def print_plan(trainer: Trainer, batches: Iterator[domains.Batch], needs: Needs) -> None:
    """What the model needs, and the run at the rate of a few steps."""
    left = trainer.config.max_steps - trainer.state.step
    rate = measured_rate(lambda: trainer.step(batches)["loss"], left)
    summary = f"step                       {trainer.summary()}"
    lines = costs(needs, rate, trainer.config, trainer.ranks, left=left)
    trainer.ranks.from_main(lambda: print("\n".join([*needs.lines(), summary, *lines])))


if __name__ == "__main__":
    run(main)
