"""Where a training run writes and what it starts from."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from . import checkpoint
from .checkpoint import Checkpoint
from .config import MAY_CHANGE, TrainConfig
from .errors import InputError


class Start(NamedTuple):
    folder: str  # of the run
    ckpt: str | None  # what it starts from
    resumes: bool  # exactly where that one stopped; else from its EMA weights alone


def starting_point(config: TrainConfig) -> Start:
    """Decide where this run writes and what it starts from; in order:

    1. --resume auto and there is a run of this model and name with a checkpoint: go on with it.
    2. --ckpt without --fine-tune: go on with that file, in its run's folder if it is the newest
       there, else in a new one, so that nothing is overwritten.
    3. --ckpt with --fine-tune: a new run that starts from its EMA weights.
    4. a new run.

    Raises:
        InputError: the checkpoint belongs to other flags, or does not exist.
    """
    label = checkpoint.run_label(config.model, config.wandb_run_name)
    results = Path(config.results_dir)
    if config.fine_tune and config.ckpt is None:
        raise InputError("--fine-tune needs --ckpt: the file or run folder to start from")
    if config.prune_blocks and not config.fine_tune:
        raise InputError("--prune-blocks leaves blocks of --ckpt out: it needs --fine-tune")
    if config.resume == "auto":
        for folder in reversed(checkpoint.runs(results, label)):
            if checkpoint.files_of(folder):
                origin = checkpoint.read(folder)
                refuse_changes(config, origin)
                return Start(str(folder), str(origin.path), resumes=True)
    fresh = checkpoint.new_run(results, label)
    if config.ckpt is None:
        return Start(str(fresh), None, resumes=False)
    origin = checkpoint.read(config.ckpt)
    if config.fine_tune:
        return Start(str(fresh), str(origin.path), resumes=False)
    refuse_changes(config, origin)
    folder = origin.path.parent.parent
    in_its_run = origin.path.parent.name == "checkpoints"
    continues = in_its_run and checkpoint.newest(folder) == origin.path
    return Start(str(folder if continues else fresh), str(origin.path), resumes=True)


def refuse_changes(config: TrainConfig, origin: Checkpoint) -> None:
    if config.resume_anyway:
        return
    flags = dataclasses.asdict(config)
    changed = [
        f"--{name.replace('_', '-')} {origin.args[name]} -> {value}"
        for name, value in flags.items()
        if name not in MAY_CHANGE and name in origin.args and origin.args[name] != value
    ]
    if changed:
        raise InputError(
            f"{origin.path} was trained with other flags ({'; '.join(changed)}): "
            "give the same ones, or --resume-anyway"
        )


def opened_folder(start: Start) -> str:
    """Create the run's folder; where another job has just taken its number, the next one."""
    folder = Path(start.folder)
    if folder.exists() and start.resumes:
        return start.folder
    while True:
        try:
            folder.mkdir(parents=True)
            return str(folder)
        except FileExistsError:
            label = checkpoint.RUN_NAME.fullmatch(folder.name)[2]
            folder = checkpoint.new_run(folder.parent, label)
