"""What every regulariser of train.py costs: time and memory beside plain SiT, by paired rounds.

OMP_NUM_THREADS=2 python -m benchmarks.regularisers --model SiT-S/2 --batch 8 --rounds 20
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.encoder import EncoderFlags, aligned
from benchmarks.ours import LEAST, config_of, step_of
from benchmarks.report import Contestant, cost, interleave, parse, publish
from layersync import admissible_pairs
from methods import METHODS
from models import architecture
from runtime import distributed
from runtime.distributed import Ranks
from runtime.entry import asked_of_user, run
from runtime.errors import InputError
from training import Trainer, build

VANILLA = "vanilla"


@dataclass(frozen=True)
class Flags(EncoderFlags):
    """Measure the training step under each regulariser that train.py knows, interleaved.

    A percent needs many rounds; on a GPU, --calls 20 --settle 3 --warmup 30.
    """

    rounds: int = 12  # every contestant runs once per round, in rotating order
    only: tuple[str, ...] = ()  # some --loss-type beside vanilla; none: all


def two_pairs(flags: Flags, device: torch.device) -> tuple[Any, ...]:
    pairs = str(admissible_pairs(architecture(flags.model)["depth"])[:2])
    return build(config_of(flags, loss_type="multiple_sync", multi_blocks_match=pairs), device)


# --loss-type -> the parts of its run, where its name and synthetic latents do not make them.
NEEDED: dict[str, Callable[[Flags, torch.device], tuple[Any, ...]]] = {
    "multiple_sync": two_pairs,
    "repa": partial(aligned, stored=False),
    "external": partial(aligned, stored=True),
}


def main() -> None:
    flags = parse(Flags, LEAST)
    ranks = distributed.start_alone("benchmarks.regularisers", flags.device)
    unknown = set(flags.only) - set(METHODS)
    if unknown:
        raise InputError(f"--only {min(unknown)}: choose from {', '.join(METHODS)}")
    with asked_of_user():
        parts_of(flags, ranks, VANILLA)  # says at once what is wrong with the flags
    others = [name for name in flags.only or METHODS if name != VANILLA]
    refusals = {name: refused(flags, ranks, name) for name in others}
    for name, refusal in refusals.items():
        if refusal:
            print(f"{name} is left out: {refusal}")
    contestants = [
        Contestant(name, partial(built, flags, ranks, name), flags.batch)
        for name in (VANILLA, *others)
        if not refusals.get(name)
    ]
    measured = interleave(contestants, ranks.device, flags)
    rows = [one.row() | cost(measured[VANILLA], one) for one in measured.values()]
    title = f"training step of {flags.model} under each regulariser, percent over vanilla"
    publish("regularisers", title, rows, flags, ranks.device)


def parts_of(flags: Flags, ranks: Ranks, name: str) -> tuple[Any, ...]:
    if name in NEEDED:
        return NEEDED[name](flags, ranks.device)
    return build(config_of(flags, loss_type=name), ranks.device)


def built(flags: Flags, ranks: Ranks, name: str) -> Callable[[], Any]:
    return step_of(Trainer(*parts_of(flags, ranks, name), ranks))


def refused(flags: Flags, ranks: Ranks, name: str) -> str | None:
    """Why a regulariser cannot run on synthetic latents here; None if it can."""
    try:
        parts_of(flags, ranks, name)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    run(main)
