"""Activations, gradients and data that are not finite: those steps change nothing and are counted.

python -m tests.faults.nan --count 100
"""

import argparse
import json
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import train
from runtime.errors import REQUEUE
from runtime.signals import asked
from tests.commands import assert_same_state
from tests.faults.harness import (
    TINY,
    Forked,
    assert_same_run,
    broken_files,
    finished,
    last_state,
    say,
    script,
    until,
)

VALUES = (math.nan, math.inf, -math.inf)
STEPS_PER_FAULT = 4  # so that most of them stand alone


def in_an_activation(trainer: train.Trainer, value: float, stand: Callable[[], None]) -> None:
    """One number of what a block hands on."""

    def hurt(module, inputs, output: Tensor) -> Tensor:
        output = output.clone()
        output.view(-1)[7] = value
        return output

    handle = trainer.model.blocks[1].register_forward_hook(hurt)
    stand(handle.remove)


def in_a_gradient(trainer: train.Trainer, value: float, stand: Callable[[], None]) -> None:
    """One number of one parameter's."""

    def hurt(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    stand(trainer.model.blocks[2].mlp.fc1.weight.register_hook(hurt).remove)


def in_the_batch(trainer: train.Trainer, value: float, stand: Callable[[], None]) -> None:
    """One number of what the model is given."""
    inputs = trainer.inputs

    def hurt(batch, draws) -> dict:
        found = inputs(batch, draws)
        found["x"] = found["x"].clone()
        found["x"].view(-1)[3] = value
        return found

    trainer.inputs = hurt
    stand(lambda: setattr(trainer, "inputs", inputs))


PLACES = {"activation": in_an_activation, "gradient": in_a_gradient, "batch": in_the_batch}


def injected(faults: dict[int, tuple[str, float]]) -> Callable[[], None]:
    """What a child does so that these steps, from 1, are hit: {step: (place, value)}."""

    class Injected(train.Trainer):
        def step(self, batches):
            place, value = faults.get(self.state.step + 1, (None, 0.0))
            before = [p.detach().clone() for p in self.watched()] if place else []
            undo: list[Callable[[], None]] = []
            if place:
                PLACES[place](self, value, undo.append)
            metrics = super().step(batches)
            for action in undo:
                action()
            if place:
                after = self.watched()
                assert all(map(torch.equal, before, after)), f"{place}: weights or EMA have moved"
            return metrics

        def watched(self) -> list[Tensor]:
            return [*self.state.parameters, *self.state.ema.model.parameters()]

    def inside() -> None:
        train.Trainer = Injected

    return inside


def main(flags: argparse.Namespace, folder: Path) -> None:
    draw = random.Random(f"{flags.seed} nan")
    last = flags.count * STEPS_PER_FAULT
    chosen = sorted(draw.sample(range(1, last), flags.count))
    faults = {step: (draw.choice(list(PLACES)), draw.choice(VALUES)) for step in chosen}
    words = [*TINY, "--ckpt-every", last, "--max-skipped", last, "--log-every", 1]

    def through(name: str, *stops: int) -> Path:
        for stop in stops:
            more = ["--results-dir", folder / name, "--resume", "auto", "--max-steps", stop]
            finished(Forked("train", [*words, *more], folder / "out.txt", injected(faults)))
        return folder / name

    straight = through("straight", last)
    in_parts = through("in-parts", *sorted(draw.sample(range(1, last), 2)), last)
    assert_same_run(straight, in_parts, last)
    state = last_state(straight, last)
    (log,) = straight.glob("*/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    named = [row["step"] for row in rows if "skipped_step" in row]
    assert named == chosen, f"injected in {chosen}, logged {named}"
    assert state["guard"]["skipped"] == rows[-1]["skipped_steps"] == len(chosen)
    taken = {moments["step"].item() for moments in state["opt"]["state"].values()}
    assert taken == {last - len(chosen)}, f"the optimizer counts {taken}"
    assert not broken_files(folder)
    each = ", ".join(f"{[p for p, _ in faults.values()].count(name)} in {name}" for name in PLACES)
    say(
        f"{last} steps, {len(chosen)} injected ({each}): as many named, counted and without effect "
        "on weights and EMA; the same in three parts"
    )
    rollbacks(draw, folder, min(flags.count // 2, 5))


def rollbacks(draw: random.Random, folder: Path, count: int) -> None:
    """Batches in a row that are bad lead back to the checkpoint and on with others; to the same
    bits where signals stop the run before, amid and behind such a row."""
    every, most = 10, 2
    starts = [2 * every * number + draw.randint(2, 6) for number in range(1, count + 1)]
    bad = {start + more for start in starts for more in range(most + 1)}
    last = 2 * every * (count + 1)
    words = [*TINY, "--ckpt-every", every, "--max-skipped", most, "--max-steps", last]

    def through(name: str, stops: list[int], *more: str | int) -> dict:
        start = [*words, *more, "--resume", "auto", "--results-dir", folder / name]
        for stop in stops:
            running = Forked("train", start, folder / "out.txt", over(bad, stop))
            assert running.wait() == REQUEUE, running.log.read_text()[-1500:]
        finished(Forked("train", start, folder / "out.txt", over(bad)))
        assert not broken_files(folder / name)
        return last_state(folder / name, last)

    guard = through("rollbacks", [], "--log-every", 1)["guard"]
    skipped, shift = count * (most + 1), lost_batches(bad, every, most, last)
    found = guard["rollbacks"], guard["skipped"], guard["shift"]
    assert found == (count, skipped, shift), f"{found}, not {(count, skipped, shift)}"
    say(f"{count} series of {most + 1}: {count} ways back, data shifted by {shift} batches")

    # Skipped steps are looked for every 10 steps, and signals come in between.
    stops = [start + (-1, 1, most + 1)[number % 3] for number, start in enumerate(starts)]
    straight, stopped = through("straight-back", []), through("stopped", stops)
    assert_same_state(straight, stopped)
    for part in (straight, stopped):
        part["guard"]["running"] = part["guard"]["running"].tolist()
    assert straight["guard"] == stopped["guard"], f"{straight['guard']}, {stopped['guard']}"
    say(f"{len(stops)} signals around them: the end is equal")


def lost_batches(bad: set[int], every: int, most: int, last: int) -> int:
    """The shift in the end of a run that looks after every step, one step after the other."""
    step = shift = saved = in_row = 0
    while step < last:
        in_row = in_row + 1 if step + shift in bad else 0
        step += 1
        if in_row > most:
            step, shift, in_row = saved, shift + step - saved, 0
        elif step % every == 0 and not in_row:
            saved = step
    return shift


def over(bad: set[int], stop: int | None = None) -> Callable[[], None]:
    """Batches by their numbers, which only rise: gradients of `bad` are not finite, and before the
    batch `stop` a signal comes."""

    class Injected(train.Trainer):
        def step(self, batches):
            undo: list[Callable[[], None]] = []
            now = self.state.step + self.state.guard.shift
            if now == stop:
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: asked.by, "the signal")
            if now in bad:
                in_a_gradient(self, math.nan, undo.append)
            metrics = super().step(batches)
            for action in undo:
                action()
            return metrics

    def inside() -> None:
        train.Trainer = Injected

    return inside


if __name__ == "__main__":
    script(main, count=100)
