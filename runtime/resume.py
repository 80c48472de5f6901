"""Where a training run writes and what it starts from."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

from . import checkpoint
from .checkpoint import Checkpoint
from .config import MAY_CHANGE, TrainConfig, foreign_to
from .errors import InputError
from .files import discard_rests, write_patiently

MARK = "requeue"  # a file in the folder of a run that was asked to stop and has more to do
# Values of flags that older files do not record.
FIXED_ONCE = {"adam_beta1": 0.9, "adam_beta2": 0.999, "sync_t_low": 0.0, "sync_t_high": 1.0}


class Start(NamedTuple):
    folder: str  # of the run
    ckpt: str | None  # what it starts from
    resumes: bool  # exactly where that one stopped; else from its EMA weights alone
    damaged: tuple[str, ...] = ()  # newer checkpoints of the run, which are set aside
    own: bool = False  # the folder is that of `ckpt`; else a new one


def starting_point(config: TrainConfig, images: int) -> Start:
    """Decide where this run writes and what it starts from, where there are so many images to train
    on; in order:

    1. --resume auto and there is a run of this model and name with a checkpoint: go on with it.
    2. --ckpt without --fine-tune: go on with that file, in its run's folder if it is the newest
       there, else in a new one, so that nothing is overwritten.
       Of a run's checkpoints, the newest that is not damaged is taken.
    3. --ckpt with --fine-tune: a new run that starts from its EMA weights.
    4. a new run.

    Raises:
        InputError: the checkpoint belongs to other flags or data, or does not exist; the folder has
            a name below which it could not be read again.
    """
    label = checkpoint.run_label(config.model, config.wandb_run_name)
    results = Path(config.results_dir)
    check_name(results / label)
    if config.fine_tune and config.ckpt is None:
        raise InputError("--fine-tune needs --ckpt: the file or run folder to start from")
    if config.prune_blocks and not config.fine_tune:
        raise InputError("--prune-blocks leaves blocks of --ckpt out: it needs --fine-tune")
    if config.resume == "auto":
        for folder in reversed(checkpoint.runs(results, label)):
            if checkpoint.files_of(folder):
                origin, damaged = checkpoint.newest_whole(folder)
                refuse_changes(config, images, origin)
                return resumed(folder, origin, damaged)
    fresh = checkpoint.new_run(results, label)
    if config.ckpt is None:
        return Start(str(fresh), None, resumes=False)
    origin, damaged = given(Path(config.ckpt).absolute())  # a bare name is of a run, too
    if config.fine_tune:
        return Start(str(fresh), str(origin.path), resumes=False)
    refuse_changes(config, images, origin)
    folder = origin.path.parent.parent
    in_its_run = origin.path.parent.name == "checkpoints"
    others = set(checkpoint.files_of(folder)) - set(damaged) if in_its_run else set()
    if others and max(others, key=lambda path: int(path.stem)) == origin.path:
        return resumed(folder, origin, damaged)
    return Start(str(fresh), str(origin.path), resumes=True)


def check_name(folder: Path) -> None:
    """
    Raises:
        InputError: it holds bytes that are no text; torch opens no file there, nor TensorBoard.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"--results-dir and --wandb-run-name make {folder}, where torch could not read "
            "checkpoints: a folder's name has to be text in UTF-8"
        ) from None


def given(path: Path) -> tuple[Checkpoint, list[Path]]:
    """What --ckpt names, a file or the newest of a run that is whole; damaged ones after it."""
    return checkpoint.newest_whole(path) if path.is_dir() else (checkpoint.read(path), [])


def resumed(folder: Path, origin: Checkpoint, damaged: list[Path]) -> Start:
    return Start(str(folder), str(origin.path), True, tuple(map(str, damaged)), own=True)


def mark(folder: Path, sentence: str) -> None:
    """Leave MARK for a job script, which under torchrun sees exit code 1 whatever ours is."""
    write_patiently(folder / MARK, lambda file: file.write(f"{sentence}\n".encode()))


def refuse_changes(config: TrainConfig, images: int, origin: Checkpoint) -> None:
    if config.resume_anyway:
        return
    free = MAY_CHANGE | foreign_to(config.loss_type)  # public files have flags of every method
    then = FIXED_ONCE | origin.args
    changed = [
        f"--{name.replace('_', '-')} {then[name]} -> {value}"
        for name, value in dataclasses.asdict(config).items()
        if name not in free and name in then and compared(name, then[name]) != compared(name, value)
    ]
    if changed:
        raise InputError(
            f"{origin.path} was trained with other flags ({'; '.join(changed)}): "
            "give the same ones, or --resume-anyway"
        )
    if origin.images not in (None, images):
        raise InputError(
            f"{origin.path} was trained on {origin.images} images, and now the data have {images}, "
            "which come in another order: give the same data, or --resume-anyway"
        )


def compared(name: str, value: Any) -> Any:
    """A flag's value; of pairs, which public files hold as a list and ours as it was typed, the
    text without spaces."""
    return str(value).replace(" ", "") if name == "multi_blocks_match" else value


def opened_folder(start: Start) -> str:
    """Create the run's folder; where another job has just taken its number, the next one.

    Damaged checkpoints lose their name, and with it their turn to be the last.
    """
    folder = Path(start.folder)
    for path in start.damaged:
        os.replace(path, f"{path}.damaged")
    if folder.exists() and start.own:
        (folder / MARK).unlink(missing_ok=True)
        for part in (folder, folder / "checkpoints", folder / "samples"):
            discard_rests(part)
        return start.folder
    while True:
        try:
            folder.mkdir(parents=True)
            return str(folder)
        except FileExistsError:
            label = checkpoint.RUN_NAME.fullmatch(folder.name)[2]
            folder = checkpoint.new_run(folder.parent, label)
