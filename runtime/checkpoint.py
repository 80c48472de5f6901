"""Checkpoint files: ours and every public layout, read without executing anything from them."""

import argparse
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .files import atomic_write, read_json

# What torch's restricted unpickler raises on bytes that are not a checkpoint.
BROKEN = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError)
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
RUN_NAME = re.compile(r"(\d{3,})-(.+)")


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
    args: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] | None = None  # arguments of the network; public files lack it
    reversed_time: bool = False  # its flags are REPA's: t = 0 is data
    step: int | None = None


def save(path: Path, state: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        torch.save(state, file)


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint on the CPU: our layout; SiT's and LayerSync's (args in a Namespace); a bare
    state dict; EMA only; REPA's (`steps`, projectors); safetensors.

    Raises:
        InputError: the file is missing, damaged, holds code, or is no checkpoint.
    """
    path = newest(Path(path)) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist: give --ckpt a file or a run's folder")
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, not weights")
    if not any(key in content for key in ("ema", "model")):
        content = {"ema": content}
    if "args" not in content and MDM_WEIGHTS in plain_names(averaged(content), path):
        content = mdm_content(content, path)
    args = content.get("args") or {}
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    parts = {"args": args, "opt": content.get("opt") or {}}
    for name in ("regulariser", "codec", "targets"):
        parts[name] = content.get(name) or {}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise InputError(f"checkpoint {path}: its {name} is a {type(part).__name__}")
    for name, ours in REPA_NAMES.items():
        if isinstance(args.get(name), str):
            args[name] = ours.get(args[name], args[name])
    ema = averaged(content)
    return Checkpoint(
        path=path,
        model=plain_names(content.get("model") or {}, path),
        ema=plain_names(ema, path),
        **parts,
        architecture=content.get("architecture"),
        reversed_time="enc_type" in args or "proj_coeff" in args,
        step=step_of(content, path),
    )


def averaged(content: dict[str, Any]) -> Any:
    """The weights to sample from; MDM calls them model_avg."""
    names = ("ema", "model_avg", "model")
    return next((content[name] for name in names if content.get(name)), {})


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


def load_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"checkpoint {path} is damaged: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {named[1]}" if named else "it is no file of torch.save, or damaged"
        raise InputError(
            f"checkpoint {path} is refused: {what}, and nothing in a checkpoint may be executed"
        ) from error
    except BROKEN as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise InputError(f"checkpoint {path} is damaged or truncated: {reason}") from error


def plain_names(weights: Any, path: Path) -> dict[str, Tensor]:
    """A state dict without the prefixes that DDP and torch.compile leave."""
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"checkpoint {path} holds no state dict of tensors")
    return {
        name.removeprefix("module.").replace("_orig_mod.", ""): value
        for name, value in weights.items()
    }


def step_of(content: dict[str, Any], path: Path) -> int | None:
    for key in ("train_steps", "steps"):
        if isinstance(content.get(key), int):
            return content[key]
    return int(path.stem) if path.stem.isdigit() else None


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
    """A run's checkpoints in the order of their steps."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    return sorted((p for p in folder.glob("*.pt") if p.stem.isdigit()), key=lambda p: int(p.stem))


def newest(run: Path) -> Path:
    """The checkpoint of the highest step in a run's folder.

    Raises:
        InputError: there is none.
    """
    files = files_of(run)
    if not files:
        raise InputError(
            f"no checkpoint in {run}: expected checkpoints/0000000.pt or the like there"
        )
    return files[-1]


def prune(run: Path, keep_last: int, milestone_every: int) -> None:
    """Delete all but the last `keep_last` checkpoints and the milestones (0 keeps all), and what a
    killed process left half-written."""
    for rest in (run / "checkpoints").glob(".*.tmp"):
        rest.unlink()
    if keep_last:
        for path in files_of(run)[:-keep_last]:
            if not (milestone_every and int(path.stem) % milestone_every == 0):
                path.unlink()
