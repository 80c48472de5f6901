"""Draw N samples over all ranks into one .npz for FID, with a JSON that says how.

torchrun --nproc_per_node=8 sample_ddp.py --protocol paper-sde --ckpt RUN
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from domains import Condition, Domain, Draws, NoHeldOut
from domains.domain import fingerprint_of
from domains.reading import tell
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
from runtime.distributed import Ranks
from runtime.entry import asked_of_user, run
from runtime.errors import InputError
from runtime.files import atomic_write, discard_rests, sha256_of, write_json
from runtime.hardware import versions
from runtime.npz import Blocks
from runtime.precision import compiles
from runtime.random import LegacyStreams, SampleStreams, generator
from runtime.untrusted import open_archive, open_member, read_json
from sample import Opened, open_checkpoint, precision_of
from transport import PROTOCOLS, Likelihood, Sampler
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


class Samples:
    """N samples in blocks of consecutive indices.

    A block's size is fixed and the last one is padded, so that every sample is computed in the
    same company, and is the same to the bit, whatever the number of ranks.
    """

    def __init__(self, flags: NpzFlags, opened: Opened, ranks: Ranks) -> None:
        self.flags, self.opened, self.ranks = flags, opened, ranks
        self.count = flags.num_fid_samples
        if flags.pngs and len(opened.domain.raw_shape) != 3:
            raise InputError(f"--pngs: samples of {opened.domain.name} are no pictures")
        has_classes = opened.domain.num_classes and not opened.domain.multi_label
        if flags.labels == "balanced" and not has_classes:
            raise InputError(
                f"--labels balanced: a sample of {opened.domain.name} is of no single class here, "
                "leave it out"
            )
        self.arrays = ["arr_0", "arr_1"] if opened.domain.choices else ["arr_0"]
        self.check()

    def check(self) -> None:
        """Refuse flags that no solver takes, before anything is written."""
        self.opened.sampler(self.flags)

    def protocol(self) -> dict[str, Any]:
        """What else decides the arrays: of samples, the guidance and how floats became uint8."""
        guidance = self.opened.guidance(self.flags)
        return {
            "guidance": {
                "scale": guidance.scale, "channels": guidance.channels or "all",
                "interval_in_t": guidance.interval,
            },
            "seed_scheme": "(seed, sample index)",
            **({"labels": "balanced"} if self.flags.labels == "balanced" else {}),
            **self.opened.domain.rounding,
        }  # fmt: skip

    def blocks(self) -> list[tuple[int, int, range]]:
        """(first index, part, indices) of this rank's blocks."""
        size = self.flags.per_proc_batch_size
        firsts = range(0, self.count, size)
        return [(i, 0, range(i, i + size)) for i in firsts[self.ranks.rank :: self.ranks.size]]

    def streams(self, indices: range) -> SampleStreams:
        return SampleStreams(indices, self.flags.global_seed, self.ranks.device)

    def compute(self, indices: range) -> dict[str, np.ndarray]:
        """What the .npz holds of these samples, and what they cost."""
        network, size = self.opened.network, len(indices)
        network.calls = network.rows = 0
        arrays = self.result(indices, self.streams(indices))
        # Of every sample: the calls it took part in, and its rows in them (two under guidance).
        arrays["calls"] = np.full(size, network.calls)
        arrays["rows"] = np.full(size, network.rows / size)
        return arrays

    def result(self, indices: range, streams: SampleStreams) -> dict[str, np.ndarray]:
        domain, legacy = self.opened.domain, self.flags.legacy_seeds
        z, drawn = streams.start(domain.shape, domain.choices)
        if self.flags.labels == "balanced":
            drawn = balanced(indices, domain.num_classes, self.flags.global_seed).to(drawn.device)
        chosen = domain.chosen(indices, drawn)
        raw = self.opened.draw(
            self.flags, streams, z, domain.condition(chosen), per_sample_error=not legacy
        )
        return {"arr_0": domain.arrays(raw), "arr_1": domain.labels(chosen)}

    def summary(self, blocks: Blocks) -> dict[str, Any]:
        return {}


def balanced(indices: Sequence[int], classes: int, seed: int) -> Tensor:
    """Class ids (B,) of samples: every `classes` consecutive ones have each class once, in an order
    of (seed, which round of them it is). Files sorted by class have too low an Inception score."""
    orders = {
        number: torch.randperm(classes, generator=generator("cpu", seed, "balanced", number))
        for number in {index // classes for index in indices}
    }
    return torch.stack([orders[index // classes][index % classes] for index in indices])


class LegacySamples(Samples):
    """SiT's seeds: a stream per rank, samples dealt out to the ranks in turn."""

    def __init__(self, flags: NpzFlags, opened: Opened, ranks: Ranks) -> None:
        super().__init__(flags, opened, ranks)
        seed, guided = flags.global_seed * ranks.size + ranks.rank, flags.cfg_scale > 1
        self.stream = LegacyStreams(seed, flags.per_proc_batch_size, guided, ranks.device)

    def blocks(self) -> list[tuple[int, int, range]]:
        size, ranks = self.flags.per_proc_batch_size * self.ranks.size, self.ranks
        return [
            (total, ranks.rank, range(total + ranks.rank, total + size, ranks.size))
            for total in range(0, self.count, size)
        ]

    def streams(self, indices: range) -> LegacyStreams:
        return self.stream

    def protocol(self) -> dict[str, Any]:
        scheme = {"seed_scheme": "seed * world + rank", "world": self.ranks.size}
        return super().protocol() | scheme


class FromData(Samples):
    """What the flow says of real images: held-out ones, or all where the data have no such part."""

    arrays_of_task: list[str]

    def __init__(self, flags: NpzFlags, opened: Opened, ranks: Ranks) -> None:
        super().__init__(flags, opened, ranks)
        domain = opened.domain
        try:
            self.images, self.part = domain.held_out_set(), "held out"
        except NoHeldOut:
            self.images, self.part = domain.train_set(augment=False), "train"
        self.count = min(self.count, len(self.images))
        self.arrays = self.arrays_of_task
        if flags.pngs or flags.cfg_scale != 1 or flags.labels != "random":
            raise InputError(
                "--reverse and --likelihood go without --pngs, --cfg-scale and --labels balanced"
            )

    def protocol(self) -> dict[str, Any]:
        data = {"part": self.part, "sha256": fingerprint_of(self.images)}
        return {"seed_scheme": "(seed, image index)", "data": data}

    def data(self, indices: range, streams: SampleStreams) -> tuple[Tensor, Condition]:
        """Model input x and the conditions of the images; padding repeats the last image."""
        domain, device = self.opened.domain, self.ranks.device
        numbers = [min(index, self.count - 1) for index in indices]
        batch = self.images.__getitems__(Draws.plain(numbers)).checked()
        for problem in batch.problems:
            tell(problem)
        stored = domain.codec.encode(batch.raw.to(device))
        cond = {name: value.to(device) for name, value in batch.cond.items()}
        return domain.codec.to_input(stored, streams.noise(domain.shape)), cond


class Reverse(FromData):
    """--reverse: the noise that images come from, float32 (N, C, *axes) in arr_0."""

    arrays_of_task = ["arr_0"]

    def result(self, indices: range, streams: SampleStreams) -> dict[str, np.ndarray]:
        x, cond = self.data(indices, streams)
        encode = self.opened.sampler(self.flags, reverse=True)
        return {"arr_0": encode(x, self.opened.network, **cond)[-1].float().cpu().numpy()}


class LikelihoodOfData(FromData):
    """--likelihood: log-density in nats and bits per dimension of each image."""

    arrays_of_task = ["bits_per_dim", "log_density"]

    def check(self) -> None:
        self.evaluator(torch.randn_like)

    def evaluator(self, randn: Callable[[Tensor], Tensor]) -> Callable[..., Likelihood]:
        flags = self.flags
        with asked_of_user():
            return Sampler(self.opened.transport).sample_ode_likelihood(
                sampling_method=flags.sampling_method, num_steps=flags.num_sampling_steps,
                atol=flags.atol, rtol=flags.rtol, probe=lambda x: randn(x).sign(),
            )  # fmt: skip

    def result(self, indices: range, streams: SampleStreams) -> dict[str, np.ndarray]:
        x, cond = self.data(indices, streams)
        evaluate = self.evaluator(lambda x: streams.noise(tuple(x.shape[1:])))
        found = evaluate(x, self.opened.network, **cond)
        return {name: getattr(found, name).cpu().numpy() for name in self.arrays}

    def summary(self, blocks: Blocks) -> dict[str, Any]:
        bits = blocks.whole("bits_per_dim", self.count)
        error = bits.std(ddof=1) / len(bits) ** 0.5 if len(bits) > 1 else float("nan")
        return {"bits_per_dim": float(bits.mean()), "standard_error": float(error)}


def task_of(flags: NpzFlags) -> type[Samples]:
    chosen = {
        "legacy_seeds": LegacySamples, "reverse": Reverse, "likelihood": LikelihoodOfData,
    }  # fmt: skip
    asked = [name for name in chosen if getattr(flags, name, False)]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} do not go together".replace("_", "-"))
    return chosen[asked[0]] if asked else Samples


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
