"""Train a SiT with LayerSync, or without.

python train.py --preset digits
torchrun --nproc_per_node=8 train.py --preset t1-xl
"""

import ast
import contextlib
import dataclasses
import warnings
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import domains
from domains.order import GlobalBatches, positions
from layersync import SCHEDULES, LayerSync, Regulariser, check_pairs, default_pair, default_weight
from models import SiT, adapt, architecture, check_state
from runtime import checkpoint, distributed
from runtime.checkpoint import Checkpoint
from runtime.config import TrainConfig, parse
from runtime.ema import EMA
from runtime.entry import asked_of_user, run
from runtime.errors import InputError
from runtime.log import Log
from runtime.precision import arithmetic, default_precision
from runtime.presets import PRESETS
from runtime.random import SampleStreams, generator
from runtime.resume import opened_folder, starting_point
from transport import Guidance, Sampler, TrainingStep, Transport, create_transport


def main() -> None:
    config = parse(TrainConfig, PRESETS)
    ranks = distributed.start(config.device)
    with asked_of_user():
        config, domain, transport, model, regulariser = build(config, ranks.device)
    if config.dry_run:
        return ranks.from_main(lambda: print(plan(config, model)))

    images, codec = domain.train_set(), domain.codec.to(ranks.device)
    config = with_length(config, len(images), ranks.size)
    start = ranks.from_main(lambda: starting_point(config))
    state = TrainState(config, model, regulariser, ranks.device)
    if start.ckpt:
        with asked_of_user(about=start.ckpt):
            state.load(checkpoint.read(start.ckpt), start.resumes)
    if state.step >= config.max_steps:
        return ranks.from_main(lambda: print(f"{start.folder} is finished: step {state.step}"))
    batches = iter(loader(config, domain, images, ranks, start=state.step))
    first = next(batches).checked()  # what is wrong with the data shows before anything is written

    folder = Path(ranks.from_main(lambda: opened_folder(start)))
    log = Log(
        folder, ranks, start=state.step, stop=config.max_steps,
        images_per_step=config.global_batch_size,
    )  # fmt: skip
    log.open_writers(dataclasses.asdict(config))
    log.say(f"{folder}: {model_line(config, model, regulariser)}")
    autocast = arithmetic(config.precision, ranks.device)
    training_step = wrap(TrainingStep(model, transport, regulariser), domain.shape, ranks)
    batches = chain([first], batches)
    for step in range(state.step, config.max_steps):
        reg_weight = regulariser.weight(step) if regulariser else 0.0
        weight = torch.full((), reg_weight, device=ranks.device)
        of_batch = draws_of_step(
            config, domain.shape, step, ranks.device, posterior=codec.uses_noise
        )
        for micro, batch in enumerate(islice(batches, config.grad_accum)):
            batch = batch.checked()
            here = positions(
                config.global_batch_size, rank=ranks.rank, ranks=ranks.size,
                micro=micro, micro_batches=config.grad_accum,
            )  # fmt: skip
            raw, y = (tensor.to(ranks.device, non_blocking=True) for tensor in (batch.raw, batch.y))
            draws = of_batch.at(here)
            x = codec.to_input(codec.encode(raw), draws.posterior)
            cond = model.drop({"y": y}, draws.dropped)
            t = transport.times(draws.time)
            with gradient_sync(training_step, last=micro == config.grad_accum - 1):
                with autocast:
                    losses = training_step(x, draws.noise, t, cond, weight)
                (losses.total / config.grad_accum).backward()
            log.add(loss=losses.total, velocity=losses.velocity, reg=losses.reg)
            log.problems(batch.problems)
        log.add(grad_norm=state.update())

        done = step + 1
        last = done == config.max_steps
        saves = last or done % config.ckpt_every == 0
        if saves or done % config.log_every == 0:
            log.write(done, reg_weight=reg_weight)  # finds what is not finite, before it is saved
        if saves:
            with log.paused():
                if ranks.is_main:
                    state.save(folder, config)
        if config.sample_every and (last or done % config.sample_every == 0):
            with log.paused(), autocast:
                path = folder / "samples" / f"{done:07d}.png"
                if ranks.is_main:
                    preview(path, state.ema.model, transport, domain, config, ranks.device)
                    log.picture(done, path)
    log.close()


def build(
    config: TrainConfig, device: torch.device
) -> tuple[TrainConfig, domains.Domain, Transport, SiT, Regulariser | None]:
    """The parts that the flags describe, and the flags with every `None` decided.

    Raises:
        ValueError: flags that do not go together.
    """
    domain = domains.build(
        config.dataset_name, data_path=config.data_path, image_size=config.image_size,
        num_classes=config.num_classes, vae=config.vae, cache_dir=config.cache_dir,
        skip_corrupt=config.skip_corrupt,
    )  # fmt: skip
    network = architecture(
        config.model, depth=config.depth, hidden_size=config.hidden_size, num_heads=config.num_heads
    )
    config = dataclasses.replace(
        config,
        image_size=domain.raw_shape[-1],
        num_classes=domain.num_classes,
        vae=domain.vae,
        precision=config.precision or default_precision(device),
    )
    config, regulariser = REGULARISERS[config.loss_type](config, network["depth"])
    transport = create_transport(
        config.path_type, config.prediction, config.loss_weight, config.train_eps, config.sample_eps
    )
    torch.manual_seed(config.global_seed)
    model = SiT(
        input_size=domain.shape[1:], in_channels=domain.shape[0], num_classes=domain.num_classes,
        learn_sigma=config.learn_sigma,
        class_dropout_prob=0.0,  # this loop drops labels itself, as a function of (seed, step)
        **network,
    )  # fmt: skip
    model.activation_checkpointing = config.activation_checkpointing
    return config, domain, transport, model, regulariser


# What the builder of a regulariser makes of the flags and the model's depth: the flags with its own
# defaults decided, and the regulariser, None for plain SiT.
Built = tuple[TrainConfig, Regulariser | None]


def vanilla(config: TrainConfig, depth: int) -> Built:
    return config, None


def layer_sync(config: TrainConfig, depth: int) -> Built:
    student, teacher = default_pair(depth)
    config = dataclasses.replace(
        config,
        encoder_depth=student if config.encoder_depth is None else config.encoder_depth,
        gt_encoder_depth=teacher if config.gt_encoder_depth is None else config.gt_encoder_depth,
    )
    return synced([(config.encoder_depth, config.gt_encoder_depth)], config, depth)


def multiple_sync(config: TrainConfig, depth: int) -> Built:
    try:
        pairs = [(int(s), int(t)) for s, t in ast.literal_eval(config.multi_blocks_match)]
    except (ValueError, SyntaxError, TypeError):
        pairs = []
    if not pairs:
        raise InputError(
            f"--multi-blocks-match {config.multi_blocks_match!r} names no pairs: "
            "write it like '[(2,6),(4,8)]'"
        )
    return synced(pairs, config, depth)


def synced(pairs: list[tuple[int, int]], config: TrainConfig, depth: int) -> Built:
    check_pairs(pairs, depth)
    if config.reg_schedule != "constant" and config.reg_schedule_steps < 1:
        raise InputError(f"--reg-schedule {config.reg_schedule} needs --reg-schedule-steps N")
    weight = default_weight(depth) if config.reg_weight is None else config.reg_weight
    sync = LayerSync(
        pairs,
        weight,
        schedule=SCHEDULES[config.reg_schedule](config.reg_schedule_steps),
        stop_gradient=config.stop_gradient,
        reverse=config.reverse_sync,
    )
    return dataclasses.replace(config, reg_weight=weight), sync


REGULARISERS = {
    "layer_sync": layer_sync,
    "multiple_sync": multiple_sync,
    "vanilla": vanilla,
}


class Draws(NamedTuple):
    """The random numbers of one step for the whole global batch."""

    noise: Tensor  # (B, C, *axes), x_0
    time: Tensor  # (B,), uniform in [0, 1)
    dropped: Tensor  # (B,), labels replaced by the null
    posterior: Tensor | None  # (B, C, *axes), of a codec that draws

    def at(self, positions: slice) -> "Draws":
        """Those of some positions of the batch."""
        return Draws(*(draw if draw is None else draw[positions] for draw in self))


def draws_of_step(
    config: TrainConfig, shape: tuple[int, ...], step: int, device: torch.device, *,
    posterior: bool = False,
) -> Draws:  # fmt: skip
    """Every rank draws the whole global batch and uses its own positions, so that what a position
    sees does not depend on the number of ranks, and resuming needs the step alone."""
    batch = config.global_batch_size
    random = generator(device, config.global_seed, "step", step)
    kwargs = dict(generator=random, device=device)
    return Draws(
        noise=torch.randn(batch, *shape, **kwargs),
        time=torch.rand(batch, **kwargs),
        dropped=torch.rand(batch, **kwargs) < config.class_dropout_prob,
        posterior=torch.randn(batch, *shape, **kwargs) if posterior else None,
    )


class TrainState:
    """All that a checkpoint must hold to go on exactly."""

    def __init__(
        self,
        config: TrainConfig,
        model: SiT,
        regulariser: Regulariser | None,
        device: torch.device,
    ) -> None:
        self.clip = config.clip_grad_norm or float("inf")
        self.model = model.to(device)
        self.regulariser = (regulariser or nn.Identity()).to(device)
        self.ema = EMA(model, config.ema_decay)
        self.parameters = [*model.parameters(), *self.regulariser.parameters()]
        self.opt = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay
        )
        self.step = 0

    def update(self) -> Tensor:
        """Clip, optimizer, EMA; returns the norm of the gradient before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        self.step += 1
        return norm

    def load(self, origin: Checkpoint, resumes: bool) -> None:
        """Go on from a checkpoint, or start a fine-tuning from its EMA weights.

        Raises:
            ValueError: naming the first tensor that does not fit.
        """
        if not resumes:
            weights = adapt(origin.ema, self.model, reversed_time=origin.reversed_time)
            self.model.load_state_dict(weights)
            self.ema.model.load_state_dict(weights)
            return
        if origin.reversed_time:
            raise ValueError("a file of REPA cannot be resumed as a SiT: use --fine-tune")
        if not origin.opt or not origin.model or origin.step is None:
            raise ValueError(
                "there is no optimizer state or step, so it cannot be resumed: "
                "use --fine-tune to start from its EMA weights"
            )
        for module, weights in ((self.model, origin.model), (self.ema.model, origin.ema)):
            check_state(module, weights)
            module.load_state_dict(weights)
        self.regulariser.load_state_dict(origin.regulariser)
        flags = {name: self.opt.param_groups[0][name] for name in ("lr", "weight_decay")}
        try:
            self.opt.load_state_dict(origin.opt)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError("its optimizer state is not that of this model") from error
        for group in self.opt.param_groups:  # --resume-anyway may have changed them
            group.update(flags)
        self.step = origin.step

    def save(self, folder: Path, config: TrainConfig) -> None:
        path = folder / "checkpoints" / f"{self.step:07d}.pt"
        content = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "opt": self.opt.state_dict(),
            "args": dataclasses.asdict(config),
            "train_steps": self.step,
            "architecture": self.model.config,
            "regulariser": self.regulariser.state_dict(),
        }
        checkpoint.save(path, content)
        checkpoint.prune(folder, config.keep_last, config.milestone_every)


def with_length(config: TrainConfig, images: int, ranks: int) -> TrainConfig:
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
    if images < batch:
        raise InputError(
            f"the data set has {images} images, fewer than one --global-batch-size {batch}"
        )
    steps = config.epochs * (images // batch) if config.max_steps is None else config.max_steps
    return dataclasses.replace(config, max_steps=steps)


def loader(config: TrainConfig, domain, images, ranks, *, start: int) -> DataLoader:
    order = GlobalBatches(
        len(images), config.global_batch_size, seed=config.global_seed, start=start,
        stop=config.max_steps, rank=ranks.rank, ranks=ranks.size, micro_batches=config.grad_accum,
    )  # fmt: skip
    return DataLoader(
        images, batch_sampler=order, collate_fn=domain.collate, num_workers=config.num_workers,
        pin_memory=ranks.device.type == "cuda",
    )  # fmt: skip


def wrap(training_step: TrainingStep, shape: tuple[int, ...], ranks) -> nn.Module:
    """Model and regulariser in one DDP module, so that projectors' gradients are averaged too."""
    if ranks.size == 1:
        return training_step
    device = ranks.device
    with warnings.catch_warnings():
        # torch 2.13 renamed broadcast_buffers; older ones know only this name.
        warnings.simplefilter("ignore", FutureWarning)
        ddp = DistributedDataParallel(
            training_step, device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True, broadcast_buffers=False,
        )  # fmt: skip
    # DDP regroups its buckets after the first backward pass, which changes the order of its sums.
    # Two throw-away passes settle that, so that a resumed run adds up as an uninterrupted one.
    zeros, one = torch.zeros(1, *shape, device=device), torch.zeros(1, device=device)
    for _ in range(2):
        ddp(zeros, zeros, one, {"y": one.long()}, one.sum()).total.backward()
    ddp.zero_grad(set_to_none=True)
    return ddp


def gradient_sync(module: nn.Module, *, last: bool) -> contextlib.AbstractContextManager:
    """Gradients are averaged over ranks in the last micro-batch only."""
    return contextlib.nullcontext() if last or not hasattr(module, "no_sync") else module.no_sync()


@torch.no_grad()
def preview(
    path: Path, model: SiT, transport: Transport, domain, config: TrainConfig, device: torch.device
) -> None:
    """A sheet of EMA samples, the same seeds and classes every time."""
    count = 16
    streams = SampleStreams(range(count), config.global_seed, device)
    classes = max(domain.num_classes, 1)
    y = torch.arange(count, device=device) * classes // count
    guidance = Guidance(config.cfg_scale, model.null, domain.guided_channels)
    sample = Sampler(transport).sample_ode(sampling_method="heun2", num_steps=25, guidance=guidance)
    z, _ = streams.start(domain.shape, domain.num_classes)
    x = sample(z, model, y=y)[-1]
    domain.save_grid(domain.codec.decode(x), path)


def model_line(config: TrainConfig, model: SiT, regulariser: Regulariser | None) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"{config.model}, {parameters:,} parameters, {regulariser or 'no regulariser'}"


def plan(config: TrainConfig, model: SiT) -> str:
    """What --dry-run prints."""
    flags = [f"  {name:24} {value}" for name, value in dataclasses.asdict(config).items()]
    parameters = sum(p.numel() for p in model.parameters())
    states = 20 * parameters / 2**30  # float32 weights, gradients, two moments, EMA
    file = 16 * parameters / 2**30  # the same without gradients
    return "\n".join(
        [
            *flags,
            f"parameters                 {parameters:,}",
            f"memory per process         {states:.2f} GiB for weights, gradients, AdamW and EMA, "
            "before activations",
            f"checkpoint                 {file:.2f} GiB each",
        ]
    )


if __name__ == "__main__":
    run(main)
