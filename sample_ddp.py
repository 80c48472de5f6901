"""Draw N samples over all ranks into one .npz for FID, with a JSON that says how.

torchrun --nproc_per_node=8 sample_ddp.py --protocol paper-sde --ckpt RUN
"""

import dataclasses
import hashlib
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from domains import Domain
from runtime import checkpoint, distributed
from runtime.config import (
    DDPMFlags,
    NpzDDPM,
    NpzFlags,
    NpzODE,
    NpzSDE,
    ODEFlags,
    SDEFlags,
    parse_sampling,
)
from runtime.entry import asked_of_user, run
from runtime.errors import InputError
from runtime.files import atomic_write, discard_rests, sha256_of, write_json
from runtime.hardware import versions
from runtime.npz import Blocks
from runtime.precision import compiles
from runtime.untrusted import open_archive, open_member, read_json
from sampling import Opened, open_checkpoint, precision_of
from sampling.tasks import FromData, Samples, task_of
from transport import PROTOCOLS
from transport.samplers import DDPM_CALLS

MODES = {"ODE": NpzODE, "SDE": NpzSDE, "DDPM": NpzDDPM}
# What a protocol names only where it is not the usual.
UNUSUAL = ("labels", "skip_blocks", "time_shift", "network_precision")


def main() -> None:
    flags = parse_sampling(MODES, PROTOCOLS)
    ranks = distributed.start(flags.device)
    kind = task_of(flags)
    if flags.ckpt:  # one file for all ranks, whose checksums one of them compares
        path = ranks.from_main(lambda: str(checkpoint.read(flags.ckpt).path))
        flags = dataclasses.replace(flags, ckpt=path)
    reads_data = issubclass(kind, FromData)
    opened = open_checkpoint(flags, ranks.device, reads_data=reads_data, verify=False)
    task = kind(flags, opened, ranks)
    protocol = ranks.from_main(lambda: protocol_of(flags, opened, task))
    name = flags.name or public_name(flags, opened) + f"-{digest(protocol)[:8]}"
    out = Path(flags.sample_dir) / f"{name}.npz"
    blocks = Blocks(out.with_suffix(".blocks"))
    pngs = out.with_suffix("")
    if ranks.from_main(lambda: is_finished(out, blocks, protocol, flags)):
        if flags.pngs:
            ranks.from_main(lambda: write_pngs_of(out, pngs, flags.per_proc_batch_size))
        return ranks.from_main(lambda: print(f"{out} is finished"))

    def write(first: int, part: int, indices: range, arrays: dict[str, np.ndarray] | None) -> None:
        if arrays is not None:
            blocks.write(first, part, index=np.asarray(indices), **arrays)
        if flags.pngs:
            shown = range(indices.start, min(indices.stop, task.count), indices.step)
            with np.load(blocks.path(first, part)) as content:
                write_pngs(pngs, shown, content["arr_0"])

    # One batch is written while the next is computed.
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(lambda: None)
        for first, part, indices in tqdm(task.blocks(), disable=not ranks.is_main, unit="batch"):
            done = blocks.path(first, part).exists()
            arrays = None if done else task.compute(indices)
            writing.result()
            writing = writer.submit(write, first, part, indices, arrays)
        writing.result()
    ranks.barrier()
    ranks.from_main(lambda: finish(out, blocks, protocol, task))


def protocol_of(flags: NpzFlags, opened: Opened, task: Samples) -> dict[str, Any]:
    """All that decides the samples, as plain data."""
    found = opened.checkpoint
    own = next(kind for kind in (ODEFlags, SDEFlags, DDPMFlags) if isinstance(flags, kind))
    sampler = {field.name: getattr(flags, field.name) for field in dataclasses.fields(own)}
    return {
        "task": type(task).__name__,
        "samples": task.count,
        "checkpoint": {
            "file": str(found.path), "sha256": sha256_of(found.path), "step": found.step,
            "weights": flags.weights, "model": model_of(flags, opened),
        },
        "sampler": {
            "mode": own.__name__.removesuffix("Flags"), **sampler,
            "num_sampling_steps": flags.num_sampling_steps,
            "path_type": opened.transport.path.name, "prediction": opened.transport.prediction,
            "sample_eps": opened.transport.sample_eps,
            "state": "float64" if flags.float64 else "float32",
        },
        "protocol": flags.protocol,
        "dataset_name": opened.domain.name,
        "image_size": opened.domain.image_size,
        "num_classes": opened.domain.num_classes,
        "codec": opened.domain.codec.identity,
        **opened.domain.conditions,
        "seed": flags.global_seed,
        "batch": flags.per_proc_batch_size,
        "precision": precision_of(flags, task.ranks.device),
        **({"network_precision": "bf16"} if opened.network.model.own_precision else {}),
        **frames_of(opened.domain),
        **({"time_shift": opened.transport.shift} if opened.transport.shift != 1 else {}),
        **({"skip_blocks": list(flags.skip_blocks)} if flags.skip_blocks else {}),
        **task.protocol(),
    }  # fmt: skip


def frames_of(domain: Domain) -> dict[str, int]:
    """How clips are cut of videos."""
    if domain.num_frames is None:
        return {}
    return {"num_frames": domain.num_frames, "frame_stride": domain.frame_stride}


def model_of(flags: NpzFlags, opened: Opened) -> str | None:
    """The model as its file names it; bare weights do not, and go by --model."""
    return opened.checkpoint.args.get("model") or flags.model


def public_name(flags: NpzFlags, opened: Opened) -> str:
    """SiT's folder name: model, checkpoint, guidance, batch, solver."""
    found = opened.checkpoint
    model = str(model_of(flags, opened) or "SiT").replace("/", "-")
    stem = f"{model}-{found.path.stem}-cfg-{flags.cfg_scale}-{flags.per_proc_batch_size}"
    stem += "-balanced" if flags.labels == "balanced" else ""
    if isinstance(flags, DDPMFlags):
        solver = "DDIM" if flags.ddim else "DDPM"
        calls = flags.num_sampling_steps or opened.transport.path.steps or DDPM_CALLS
        return f"{stem}-{solver}-{calls}"
    solver = f"{flags.num_sampling_steps}-{flags.sampling_method}"
    if isinstance(flags, ODEFlags):
        return f"{stem}-ODE-{solver}"
    return f"{stem}-SDE-{solver}-{flags.diffusion_form}-{flags.last_step}-{flags.last_step_size}"


def identity(protocol: dict[str, Any]) -> dict[str, Any]:
    """The protocol as its JSON gives it back, without where the checkpoint lay."""
    copy = json.loads(json.dumps(protocol))
    if isinstance(copy.get("checkpoint"), dict):
        copy["checkpoint"].pop("file", None)
    sampler = copy.get("sampler")
    if isinstance(sampler, dict) and sampler.get("ddim") is False:
        del sampler["ddim"]  # samples of before the flag are the same ones
    return copy


def digest(protocol: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity(protocol), sort_keys=True).encode()).hexdigest()


def is_finished(out: Path, blocks: Blocks, protocol: dict[str, Any], flags: NpzFlags) -> bool:
    """Is there nothing left to do? Else make the blocks' folder ready to begin or to go on. What a
    killed process left half-written, or did not come to delete, goes.

    Raises:
        InputError: files of that name were drawn in another way, or it is not known how.
    """
    told = [out.with_suffix(".json"), blocks.folder / "protocol.json"]
    if out.exists() and not any(path.exists() for path in told):
        raise InputError(
            f"{out} is there, and no {told[0].name} says that it was drawn here: give another "
            "--name or --sample-dir, or delete it"
        )
    for path in told:
        if path.exists():
            ours, there = identity(protocol), identity(read_json(path))
            changed = [key for key in (*ours, *UNUSUAL) if there.get(key) != ours.get(key)]
            if changed:
                raise InputError(
                    f"{path} was drawn with another {changed[0]}: "
                    "give another --name or --sample-dir, or delete it"
                )
    for names in (out.name, out.with_suffix(".json").name):
        discard_rests(out.parent, names)
    discard_rests(out.with_suffix(""))  # pictures
    if out.exists() and out.with_suffix(".json").exists():
        shutil.rmtree(blocks.folder, ignore_errors=True)
        return True
    if flags.legacy_seeds and blocks.folder.exists():
        shutil.rmtree(blocks.folder)  # a rank's stream cannot be entered in the middle
    write_json(blocks.folder / "protocol.json", protocol)
    return False


def finish(out: Path, blocks: Blocks, protocol: dict[str, Any], task: Samples) -> None:
    """Pack the blocks into the .npz, write the protocol beside it, and clear up."""
    blocks.pack(out, task.arrays, task.count)
    calls, rows = (blocks.whole(name, task.count) for name in ("calls", "rows"))
    measured = {
        "network_calls": {"mean": float(calls.mean()), "max": int(calls.max())},
        "network_rows_per_sample": float(rows.mean()),
        **task.summary(blocks),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if task.ranks.device.type == "cuda" else "cpu",
        "attention": task.opened.network.attention(),
        "compiled": compiles(task.flags.compile, task.ranks.device) == "on",
    }  # fmt: skip
    write_json(out.with_suffix(".json"), protocol | measured)
    shutil.rmtree(blocks.folder)
    print(f"{out}: {task.count} samples, {calls.mean():.0f} network calls each")
    if "bits_per_dim" in measured:
        print(
            f"bits per dimension {measured['bits_per_dim']:.4f} of the continuous model input; add "
            "log2(127.5) for uint8 pixels"
        )


def write_pngs_of(out: Path, folder: Path, size: int) -> None:
    """All images of a finished file, of which `size` are in memory at a time.

    Raises:
        InputError: it is damaged.
    """
    with asked_of_user(about=str(out)), open_archive(out) as archive:
        header, file = open_member(archive, "arr_0")
        count, *shape = header.shape
        for first in range(0, count, size):
            content = file.read(size * math.prod(shape) * header.dtype.itemsize)
            images = np.frombuffer(content, header.dtype).reshape(-1, *shape)
            write_pngs(folder, range(first, first + len(images)), images)


def write_pngs(folder: Path, indices: range, images: np.ndarray) -> None:
    """The first images as {index:06d}.png; what comes after the last index is padding."""
    from PIL import Image

    for index, image in zip(indices, images, strict=False):
        with atomic_write(folder / f"{index:06d}.png") as file:
            Image.fromarray(image.squeeze()).save(file, format="PNG")


if __name__ == "__main__":
    run(main)
