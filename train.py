"""Train a SiT or an MDM with LayerSync, or without; fine-tune Wan2.1 or CogVideoX.

python train.py --preset digits
torchrun --nproc_per_node=8 train.py --preset t1-xl
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import domains
from domains.feed import Feed
from layersync import alarms
from models import Denoiser, adapt
from runtime import checkpoint, distributed, signals
from runtime.config import TrainConfig, parse
from runtime.distributed import Ranks
from runtime.ema import slow_ema
from runtime.entry import asked_of_user, run
from runtime.errors import InputError, Requeue
from runtime.log import Log
from runtime.plan import Needs, costs, measured_rate
from runtime.precision import deterministic, slow_precision
from runtime.presets import PRESETS
from runtime.pulse import Pulse
from runtime.resume import mark, opened_folder, starting_point
from runtime.saver import Saver
from runtime.untrusted import parsed
from training import Trainer, build, needs_of, with_length

if TYPE_CHECKING:
    from evaluations.in_training import TrainingScore


def main() -> None:
    config = parse(TrainConfig, PRESETS)
    ranks = distributed.start(config.device)
    deterministic(config.deterministic)
    with asked_of_user():
        config, domain, transport, model, method = build(config, ranks.device)
    if config.dry_run:
        return ranks.from_main(lambda: print_dry_run(config, model))

    images = domain.train_set(augment=config.hflip)
    config = with_length(config, len(images), ranks.size)
    start = ranks.from_main(lambda: starting_point(config, len(images)))
    origin = checkpoint.read(start.ckpt, verify=False) if start.ckpt else None
    if origin and not start.resumes:
        with asked_of_user(about=start.ckpt):
            weights = adapt(
                origin.ema, model, origin.architecture,
                reversed_time=origin.reversed_time, pruned=config.prune_blocks,
            )  # fmt: skip
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
            score.try_out(trainer.generate)
        folder = Path(ranks.from_main(lambda: opened_folder(start)))
        if score:
            score.keep(folder)
        log = opened_log(folder, trainer, feed, needs)
        if method.note and state.step == 0:
            log.say(method.note)
        previews = config.sample_every and ranks.from_main(lambda: trainer.can_decode(log))
        saver = Saver(
            folder, ranks, keep_last=config.keep_last, milestone_every=config.milestone_every
        )
        with signals.deferred(), Pulse(ranks, state.step, patience=config.hang_timeout) as pulse:
            try:
                train(trainer, feed, log, saver, pulse, score, previews=previews)
            except FloatingPointError:  # on all ranks
                close(log, pulse)
                raise
            close(log, pulse)


def opened_log(folder: Path, trainer: Trainer, feed: Feed, needs: Needs) -> Log:
    """The log of a run, which has said what is trained."""
    config = trainer.config
    log = Log(
        folder, trainer.ranks, start=trainer.state.step, stop=config.max_steps,
        images_per_step=config.global_batch_size, flops_per_image=needs.flops,
        waited=lambda: feed.waited,
    )  # fmt: skip
    log.open_writers(dataclasses.asdict(config))
    log.say(f"{folder}: {needs.parameters:,} parameters, {trainer.summary()}")
    device = trainer.ranks.device
    for note in (
        slow_ema(config.ema_decay, config.max_steps), slow_precision(config.precision, device)
    ):  # fmt: skip
        if note:
            log.say(note)
    return log


def train(
    trainer: Trainer, feed: Feed, log: Log, saver: Saver, pulse: Pulse,
    score: "TrainingScore | None", *, previews: bool,
) -> None:  # fmt: skip
    """All steps that are left.

    Raises:
        Requeue: a signal has asked to stop; what was done is saved.
        FloatingPointError: training broke down, and going back to a checkpoint did not help.
    """
    config, state = trainer.config, trainer.state
    batches = checked_batches(feed, log, pulse)

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
                    roll_back(trainer, feed, log, saver)
                continue
        if trainer.logs_telemetry and done % config.telemetry_every == 0:
            with aside("telemetry"):
                found = trainer.telemetry()
                log.row(done, "telemetry", found)
                first, may_vanish = first_telemetry(log), trainer.regulariser.may_vanish
                if trainer.reg_weight(done):
                    for alarm in alarms(found, first, done, may_vanish=may_vanish):
                        log.say(f"warning: {alarm}")
        if score and (last or done % config.score_every == 0):
            with aside("scores"):  # before the save: a run that dies between them scores again
                log.row(done, "scores", score(trainer.generate), **score.facts())
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


def first_telemetry(log: Log) -> dict[str, float]:
    """The run's first sample, whichever of its processes took it; {} on ranks that do not speak."""
    if not log.ranks.is_main:
        return {}
    with open(log.folder / "log.jsonl") as lines:
        rows = map(parsed, lines)
        return next((row["telemetry"] for row in rows if "telemetry" in row), {})


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
    if log.ranks.is_main:
        mark(log.folder, sentence)
    close(log, pulse)
    raise Requeue


def close(log: Log, pulse: Pulse) -> None:
    """On all ranks: the first one that leaves early ends those that have not, after seconds."""
    with pulse.doing("closing the log", aside=True):
        log.close()
        log.ranks.barrier()


def roll_back(trainer: Trainer, feed: Feed, log: Log, saver: Saver) -> None:
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
    state.roll_back(checkpoint.read(path, verify=False))
    feed.seek(state.step, state.guard.shift)
    log.rewind(state.step, rollback={"from": done, "shift": state.guard.shift}, **trainer.counts())
    log.say(
        f"warning: training broke down by step {done}: back to step {state.step}, and on with "
        f"other data (shifted by {state.guard.shift} batches)"
    )


def checked_batches(feed: Feed, log: Log, pulse: Pulse) -> Iterator[domains.Batch]:
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
    if isinstance(domain, domains.MotionDomain):
        from evaluations.motion.in_training import MotionScore

        return MotionScore(config, domain, ranks)
    from evaluations.images.in_training import ImageScore

    return ImageScore(config, domain, ranks, folder)


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
