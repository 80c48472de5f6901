"""A picture grid from one checkpoint.

python sample.py ODE --ckpt results/000-SiT-Ti-2-digits
"""

from collections.abc import Sequence
from pathlib import Path

import torch

import domains
from domains import Condition
from runtime import distributed
from runtime.config import GridDDPM, GridFlags, GridODE, GridSDE, parse_sampling
from runtime.entry import run
from runtime.errors import InputError
from runtime.random import SampleStreams
from sampling import open_checkpoint
from transport import PROTOCOLS

MODES = {"ODE": GridODE, "SDE": GridSDE, "DDPM": GridDDPM}


def main() -> None:
    flags = parse_sampling(MODES, PROTOCOLS)
    ranks = distributed.start(flags.device)
    if ranks.size > 1:
        raise InputError("sample.py draws one picture in one process: use sample_ddp.py for more")
    opened = open_checkpoint(flags, ranks.device)
    cond, titles = asked_for(flags, opened.domain)
    cond = {name: value.to(ranks.device) for name, value in cond.items()}
    count = len(cond["y"])
    streams = SampleStreams(range(count), flags.seed, ranks.device)
    z, _ = streams.start(opened.domain.shape, opened.domain.choices)
    raw = opened.draw(flags, streams, z, cond)
    opened.domain.save_grid(raw, Path(flags.out), cond=cond, titles=titles)
    print(
        f"{count} samples, guidance {flags.cfg_scale:g}, {opened.network.calls} network calls: "
        f"{flags.out}"
    )


def asked_for(flags: GridFlags, domain: domains.Domain) -> tuple[Condition, list[str]]:
    """The condition of the samples that --prompts or --class-labels ask for, and their titles.

    Raises:
        InputError: the model knows no such thing.
    """
    if flags.num_frames and not flags.prompts:
        raise InputError("--num-frames is of the samples of --prompts: give both")
    if flags.prompts and flags.class_labels:
        raise InputError("--prompts and --class-labels do not go together")
    if flags.prompts:
        return domain.prompted(flags.prompts, flags.num_frames), list(flags.prompts)
    labels = flags.class_labels or domains.evenly_spaced(16, domain.choices)
    check_labels(labels, domain)
    chosen = torch.tensor(labels)
    return domain.condition(chosen), domain.titles(chosen)


def check_labels(labels: Sequence[int], domain: domains.Domain) -> None:
    choices = domain.choices
    for label in labels:
        if not 0 <= label < max(choices, 1):
            raise InputError(
                f"class id {label} is out of range: there are {choices} {domain.choices_are}, "
                f"0 to {max(choices, 1) - 1}"
            )


if __name__ == "__main__":
    run(main)
