"""Checkpoint files: ours and every public layout, read without executing anything from them."""

import argparse
import json
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from unicodedata import bidirectional, category

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .errors import InputError
from .files import discard_rests, open_patiently, retried, write_patiently
from .tensors import read_tensors
from .untrusted import read_json, shown

# MDM's files have nothing but weights, and its flags in args.json beside them.
MDM_WEIGHTS = "input_process.poseEmbedding.weight"
MDM_ARGS = dict(dataset_name="humanml3d", model="MDM", prediction="data")
MDM_DIFFUSION: dict[str, tuple] = {
    "diffusion_steps": (1000, 50, "1000", "50"),
    "noise_schedule": ("cosine",),
    "sigma_small": (True,),
}
# What REPA's flags call the same things.
REPA_NAMES = {
    "path_type": {"linear": "Linear", "cosine": "GVP"},
    "prediction": {"v": "velocity"},
}
# The flags of a checkpoint that its reader goes by; None stands for one that was not given.
READ = {
    "dataset_name": str, "model": str, "vae": str, "text_encoder": str, "path_type": str,
    "prediction": str, "image_size": int, "num_frames": int, "frame_stride": int,
    "sample_eps": float, "time_shift": float,
}  # fmt: skip
# `export.py --to hub` writes the weights, and beside them the network's arguments and, under RUN,
# what else a reader goes by.
EXPORTED, EXPORTED_CONFIG, RUN = "model.safetensors", "config.json", "run"
COMPARED = ("args", "architecture", "codec", "targets")  # with those of a run, by !=
RUN_NAME = re.compile(r"(\d{3,})-(.+)")


class Damaged(InputError):
    """A file that does not hold what was written, or cannot be read."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds; parts that it lacks are empty."""

    path: Path
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    opt: dict[str, Any] = field(default_factory=dict)
    regulariser: dict[str, Tensor] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)  # what made the model's inputs
    targets: dict[str, Any] = field(default_factory=dict)  # who made the features aligned to
    guard: dict[str, Any] = field(default_factory=dict)  # steps skipped, and the like
    args: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] | None = None  # arguments of the network; public files lack it
    reversed_time: bool = False  # its flags are REPA's: t = 0 is data
    step: int | None = None
    images: int | None = None  # how many it was trained on; their order depends on it


def save(path: Path, state: dict[str, Any]) -> None:
    """
    Raises:
        OSError: the file system refuses.
    """

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch wraps what the file system says
            raise next((e for e in causes(error) if isinstance(e, OSError)), error) from None

    write_patiently(path, write)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what was being handled when it was raised."""
    while error is not None:
        yield error
        error = error.__context__


def read(path: str | Path, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint on the CPU: our layout; SiT's and LayerSync's (args in a Namespace); a bare
    state dict; EMA only; REPA's (`steps`, projectors); safetensors; what export.py wrote for the
    Hub.

    The tensors are mapped: what is used of them is read from disk then, once for all processes of
    a host.

    Args:
        verify: compare all of the file with its checksums; another rank may have done so.

    Raises:
        InputError: the file is missing, damaged, holds code, or is no checkpoint.
    """
    path = newest(Path(path)) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist: give --ckpt a file or a run's folder")
    if verify:
        check_sums(path)
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, not weights")
    if not any(key in content for key in ("ema", "model")):
        content = {"ema": content}
    if path.name == EXPORTED and path.with_name(EXPORTED_CONFIG).is_file():
        content |= about_exported(path)
    if "args" not in content and MDM_WEIGHTS in plain_names(averaged(content), path):
        content = mdm_content(content, path)
    args = part_of(content, "args")
    public = isinstance(args, argparse.Namespace)
    args = vars(args) if public else args
    parts = {"args": args}
    for name in ("opt", "regulariser", "codec", "targets", "guard"):
        parts[name] = part_of(content, name)
    for name, part in (parts | {"architecture": part_of(content, "architecture")}).items():
        if not isinstance(part, dict):
            raise InputError(f"checkpoint {path}: its {name} is a {type(part).__name__}")
        if name in COMPARED and any(isinstance(leaf, Tensor) for leaf in tree_leaves(part)):
            raise InputError(f"checkpoint {path}: its {name} holds a tensor")
    check_flags(args, parts["targets"], path)
    for name, ours in REPA_NAMES.items():
        if isinstance(args.get(name), str):
            args[name] = ours.get(args[name], args[name])
    # SiT's create_transport, and LayerSync's, put 0 in their place where nothing is divided by.
    velocity = args.get("prediction", "velocity") == "velocity"
    if public and velocity and args.get("path_type") != "VP":
        args.update(train_eps=None, sample_eps=None)
    reversed_time = "enc_type" in args or "proj_coeff" in args
    if public and not reversed_time:
        # SiT's own have no such flag, and the Dispersive loss's authors call it --disp.
        args.setdefault("loss_type", "dispersive" if args.get("disp") else "vanilla")
    ema = averaged(content)
    return Checkpoint(
        path=path,
        model=plain_names(part_of(content, "model"), path),
        ema=plain_names(ema, path),
        **parts,
        architecture=content.get("architecture"),
        reversed_time=reversed_time,
        step=step_of(content, path),
        images=content["images"] if type(content.get("images")) is int else None,
    )


def part_of(content: dict[str, Any], name: str) -> Any:
    """What a file holds under a name, whatever that is; {}: nothing."""
    part = content.get(name)
    return part if isinstance(part, Tensor) else part or {}  # a tensor is neither true nor false


def check_flags(args: dict[str, Any], targets: dict[str, Any], path: Path) -> None:
    """
    Raises:
        InputError: a flag that is read, or the name of a target, is of another type.
    """
    for name, kind in READ.items():
        value = args.get(name)
        fits = isinstance(value, (int, float) if kind is float else kind) and not commands(value)
        if value is not None and not fits:
            raise InputError(f"checkpoint {path}: its {name} is {shown(value)}")
    if not all(isinstance(name, str) for name in targets.values()):
        raise InputError(f"checkpoint {path}: its targets have no names")


# Embeddings, overrides and isolates of the Unicode bidirectional algorithm, and their ends.
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def commands(value: Any) -> set[str]:
    """What in a text are commands to a terminal, line ends or turns of direction: no letters of
    names, which may hold spaces of any width, joiners, and bytes that are no text."""
    letters = value if isinstance(value, str) else ""
    return {
        letter for letter in letters
        if category(letter) in ("Cc", "Zl", "Zp") or bidirectional(letter) in TURNS
    }  # fmt: skip


def run_of(found: Checkpoint) -> dict[str, Any]:
    """What a reader goes by besides weights and architecture, to be stored as JSON under RUN.

    Raises:
        ValueError: it is no plain data.
    """
    args = {name: found.args[name] for name in READ if found.args.get(name) is not None}
    about = {"args": args, "codec": found.codec, "train_steps": found.step}
    try:
        json.dumps(about)
    except TypeError as error:
        raise ValueError(f"what it says of its codec is no plain data ({error})") from error
    return about


def about_exported(path: Path) -> dict[str, Any]:
    """What config.json says of the weights in `path`; nothing if it is another library's.

    Raises:
        InputError: it is no JSON object, or what it has under RUN is none.
    """
    file = path.with_name(EXPORTED_CONFIG)
    config = read_json(file)
    run = config.pop(RUN, {})
    if not isinstance(run, dict):
        raise InputError(f"{file}: its {RUN} is a {type(run).__name__}")
    config.pop("class_dropout_prob", None)  # of training
    kept = {name: run.get(name) for name in ("args", "codec", "train_steps")}
    return {**kept, "architecture": config} if "input_size" in config else {}


def averaged(content: dict[str, Any]) -> Any:
    """The weights to sample from; MDM calls them model_avg."""
    found = (part_of(content, name) for name in ("ema", "model_avg", "model"))
    return next((part for part in found if isinstance(part, Tensor) or part), {})


def mdm_content(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A released MDM with the flags of its run, called as ours.

    Raises:
        InputError: it was trained on another diffusion than is sampled here.
    """
    file = path.with_name("args.json")
    args = read_json(file) if file.exists() else {}
    for name, known in MDM_DIFFUSION.items():
        if args.get(name, known[0]) not in known:
            raise InputError(
                f"{file} has {name} {args[name]!r}: only {' and '.join(map(repr, known))} is "
                "sampled here"
            )
    steps = int(args.get("diffusion_steps", 1000))
    return content | {"args": args | MDM_ARGS | {"path_type": f"Cosine-{steps}"}}


def check_sums(path: Path) -> None:
    """Every tensor against the CRC-32 that torch.save stored with it and torch.load ignores.

    Files that are no archive of torch.save have none.

    Raises:
        Damaged: bits have changed.
    """
    try:
        with open_patiently(path) as file:
            if not zipfile.is_zipfile(file):
                return
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type for entry in archive.infolist()):
                    raise zipfile.BadZipFile("torch.save compresses nothing")
                changed = archive.testzip()
    except Exception as error:  # bytes lead zipfile to whatever its parts raise
        raise Damaged(f"checkpoint {path} is damaged: {error}") from error
    if changed:
        raise Damaged(f"checkpoint {path} is damaged: {changed} in it is not what was written")


def load_tensors(path: Path) -> Any:
    """
    Raises:
        InputError: it is not there, damaged, or asks for something to be executed.
    """
    try:
        return retried(lambda: read_tensors(path), path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {named[1]}" if named else "it is no file of torch.save, or damaged"
        raise InputError(
            f"checkpoint {path} is refused: {what}, and nothing in a checkpoint may be executed"
        ) from error
    except (OSError, ValueError) as error:
        raise Damaged(f"checkpoint {path} is damaged or truncated: {error}") from error


def plain_names(weights: Any, path: Path) -> dict[str, Tensor]:
    """A state dict without the prefixes that DDP and torch.compile leave."""
    fits = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )
    if not fits:
        raise InputError(f"checkpoint {path} holds no state dict of tensors")
    return {
        name.removeprefix("module.").replace("_orig_mod.", ""): value
        for name, value in weights.items()
    }


def step_of(content: dict[str, Any], path: Path) -> int | None:
    """
    Raises:
        InputError: it is below 0.
    """
    steps = [content[key] for key in ("train_steps", "steps") if type(content.get(key)) is int]
    if not steps:
        return int(path.stem) if path.stem.isdecimal() else None
    if steps[0] < 0:
        raise InputError(f"checkpoint {path}: it is of step {steps[0]}")
    return steps[0]


def run_label(model: str, name: str) -> str:
    """`SiT-XL/2`, `SiT-Training` -> `SiT-XL-2-SiT-Training`."""
    if not name or "/" in name or "\0" in name:
        raise InputError(f"--wandb-run-name {name!r} becomes a folder's name: use one without /")
    return f"{model.replace('/', '-')}-{name}"


def runs(results: Path, label: str = "") -> list[Path]:
    """Run folders, oldest first; with a label, the runs of that model and name."""
    found = []
    for folder in results.glob("*") if results.is_dir() else ():
        match = RUN_NAME.fullmatch(folder.name)
        if folder.is_dir() and match and label in ("", match[2]):
            found.append((int(match[1]), folder))
    return [folder for _, folder in sorted(found)]


def new_run(results: Path, label: str) -> Path:
    """The folder of a new run: one more than the highest index. It is not created."""
    last = runs(results)[-1:]
    index = int(RUN_NAME.fullmatch(last[0].name)[1]) + 1 if last else 0
    return results / f"{index:03d}-{label}"


def files_of(run: Path) -> list[Path]:
    """A run's checkpoints in the order of their steps; of what was exported, its one file."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    found = [p for p in folder.glob("*.pt") if p.stem.isdecimal()]
    exported = [p for p in (run / EXPORTED,) if p.is_file()]
    return sorted(found, key=lambda path: int(path.stem)) or exported


def newest(run: Path) -> Path:
    """The checkpoint of the highest step in a run's folder.

    Raises:
        InputError: there is none.
    """
    files = files_of(run)
    if not files:
        below = [one for one in runs(run) if files_of(one)]
        hint = f"; the newest run in it is {below[-1]}" if below else ""
        raise InputError(
            f"no checkpoint in {run}: expected checkpoints/0000000.pt or the like there{hint}"
        )
    return files[-1]


def newest_whole(run: Path) -> tuple[Checkpoint, list[Path]]:
    """The checkpoint of the highest step that is whole, and the damaged ones after it, which are
    named on stderr.

    Raises:
        InputError: there is none.
    """
    newest(run)
    damaged = []
    for path in reversed(files_of(run)):
        try:
            origin = read(path)
        except Damaged as error:
            print(f"warning: {error}: the one before it is used", file=sys.stderr, flush=True)
            damaged.append(path)
        else:
            return origin, damaged
    raise InputError(f"every checkpoint in {run} is damaged: delete that folder to begin anew")


def last_good(run: Path, every: int) -> str | None:
    """The path of a run's newest whole checkpoint that was not saved amid skipped steps; None:
    there is none.

    Args:
        every: steps. One that a signal had saved in between is taken only where there is no other:
            an uninterrupted run would go back further.
    """
    newest_first = reversed(files_of(run))
    for path in sorted(newest_first, key=lambda path: int(path.stem) % every > 0):
        with suppress(Damaged):
            if not read(path).guard.get("in_row"):
                return str(path)
    return None


def prune(run: Path, keep_last: int, milestone_every: int) -> None:
    """Delete all but the last `keep_last` checkpoints and the milestones (0 keeps all), and what a
    killed process left half-written."""
    discard_rests(run / "checkpoints")
    if keep_last:
        for path in files_of(run)[:-keep_last]:
            if not (milestone_every and int(path.stem) % milestone_every == 0):
                path.unlink()
