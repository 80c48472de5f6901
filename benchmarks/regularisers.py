"""What every regulariser of train.py costs: time and memory beside plain SiT, by paired rounds.

OMP_NUM_THREADS=2 python -m benchmarks.regularisers --model SiT-S/2 --batch 8 --rounds 20
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.ours import LEAST, StepFlags, config_of, one_process, step_of, trainer_of
from benchmarks.report import Contestant, cost, interleave, parse, publish
from layersync import admissible_pairs
from methods import METHODS
from models import architecture
from runtime.distributed import Ranks
from runtime.entry import asked_of_user, run
from runtime.errors import InputError
from training import build

VANILLA = "vanilla"


@dataclass(frozen=True)
class Flags(StepFlags):
    """Measure the training step under each regulariser that train.py knows, interleaved.

    A percent needs many rounds; on a GPU, --calls 20 --settle 3 --warmup 30.
    """

    rounds: int = 12  # every contestant runs once per round, in rotating order
    only: tuple[str, ...] = ()  # some --loss-type beside vanilla; none: all


# --loss-type -> the flags that it does not run without, for a depth.
NEEDED: dict[str, Callable[[int], dict[str, Any]]] = {
    "multiple_sync": lambda depth: {"multi_blocks_match": str(admissible_pairs(depth)[:2])},
}


def main() -> None:
    flags = parse(Flags, LEAST)
    ranks = one_process(flags.device)
    unknown = set(flags.only) - set(METHODS)
    if unknown:
        raise InputError(f"--only {min(unknown)}: choose from {', '.join(METHODS)}")
    with asked_of_user():
        depth = architecture(flags.model)["depth"]
    others = [name for name in flags.only or METHODS if name != VANILLA]
    asked = {name: {"loss_type": name} for name in (VANILLA, *others)}
    for name in asked:
        asked[name] |= NEEDED.get(name, lambda depth: {})(depth)
    for name in others:
        if refusal := refused(flags, ranks, asked[name]):
            print(f"{name} is left out: {refusal}")
            del asked[name]
    contestants = [
        Contestant(name, partial(built, flags, ranks, chosen), flags.batch)
        for name, chosen in asked.items()
    ]
    measured = interleave(contestants, ranks.device, flags)
    rows = [one.row() | cost(measured[VANILLA], one) for one in measured.values()]
    title = f"training step of {flags.model} under each regulariser, percent over vanilla"
    publish("regularisers", title, rows, flags, ranks.device)


def built(flags: Flags, ranks: Ranks, asked: dict[str, Any]) -> Callable[[], Any]:
    return step_of(trainer_of(flags, ranks, **asked))


def refused(flags: Flags, ranks: Ranks, asked: dict[str, Any]) -> str | None:
    """Why a regulariser cannot run on synthetic latents here; None if it can."""
    try:
        build(config_of(flags, **asked), ranks.device)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    run(main)
