"""Activations, gradients and data that are not finite: those steps change nothing and are counted.

python -m tests.faults.nan --count 100
"""

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import train
from tests.faults.harness import (
    TINY,
    Forked,
    assert_same_run,
    broken_files,
    finished,
    last_state,
    say,
    script,
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
    rollback(draw, folder, min(flags.count, 5))


def rollback(draw: random.Random, folder: Path, count: int) -> None:
    """A series that is too long leads back to the checkpoint and on with other data."""
    every, most = 10, 2
    starts = [every * (number + 1) + draw.randint(2, 6) for number in range(count)]
    last = every * (count + 2)
    words = [*TINY, "--ckpt-every", every, "--max-skipped", most, "--max-steps", last]
    out = folder / "rollbacks"
    words = [*words, "--log-every", 1, "--results-dir", out]
    series = [range(start, start + most + 1) for start in starts]
    finished(Forked("train", words, folder / "out.txt", in_series(series)))
    guard = last_state(out, last)["guard"]
    skipped = count * (most + 1)
    assert (guard["rollbacks"], guard["skipped"]) == (count, skipped), guard
    shift = sum(run[-1] - run[0] // every * every for run in series)
    assert guard["shift"] == shift, (guard, shift)
    assert not broken_files(out)
    say(f"{count} series of {most + 1}: {count} ways back, data shifted by {shift} batches")


def in_series(series: list[range]) -> Callable[[], None]:
    """Each is met once, and not again on the way after it."""

    class Injected(train.Trainer):
        def step(self, batches):
            undo: list[Callable[[], None]] = []
            now = self.state.step + 1
            if series and now in series[0]:
                in_a_gradient(self, math.nan, undo.append)
            metrics = super().step(batches)
            for action in undo:
                action()
            if series and now == series[0][-1]:
                del series[0]
            return metrics

    def inside() -> None:
        train.Trainer = Injected

    return inside


if __name__ == "__main__":
    script(main, count=100)
