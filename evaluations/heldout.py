"""Velocity loss of checkpoints per noise bin, on fixed images, noises and times.

python -m evaluations.heldout results/000-SiT-Ti-2-digits results/001-SiT-Ti-2-digits
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from domains import Domain, NoHeldOut
from domains.codecs import first_difference
from domains.reading import chosen, read
from evaluations.metrics import mean_interval
from runtime import checkpoint, distributed
from runtime.checkpoint import Checkpoint
from runtime.config import SampleFlags, at_least
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.random import generator
from runtime.text import columns
from sampling import Opened, open_checkpoint, with_data


@dataclass(frozen=True)
class Flags:
    """The held-out loss of checkpoints, and by how much the others differ from the first.

    Image i meets one noise at one time of every bin, functions of (seed, i) alone: whatever
    compares two checkpoints is paired. Classes are those of the images, never dropped.
    """

    # files, or runs (their newest)
    ckpt: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CKPT [CKPT ...]")
    ] = tyro.MISSING
    data: str | None = None  # --dataset_name of the images; None: the first checkpoint's
    data_path: str | None = None  # folder of the data; None: without --data, the first checkpoint's
    skip_corrupt: bool = False  # replace unreadable images by the next one, as train.py does
    cache_dir: str = "./cache/"  # downloads of data sets and VAEs
    images: int = 1000  # at most so many
    bins: int = 4  # equal parts of the time from noise (t = 0) to data
    seed: int = 0  # of the noises and times
    batch_size: int = 64  # images per batch
    out: Path | None = None  # a JSON of all results
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    if not flags.ckpt:
        raise InputError("CKPT is missing: name one checkpoint or more")
    at_least(flags, images=1, bins=1, batch_size=1)
    ranks = distributed.start_alone("evaluations.heldout", flags.device)
    result = measured(flags, ranks.device)
    print(as_text(result))
    if flags.out:
        write_json(flags.out, result)


def measured(flags: Flags, device: torch.device) -> dict[str, Any]:
    """What the JSON holds: plain data."""
    found, first, kind = [], {}, None
    where = SampleFlags(
        dataset_name=flags.data, data_path=flags.data_path, skip_corrupt=flags.skip_corrupt,
        cache_dir=flags.cache_dir,
    )  # fmt: skip
    for path in flags.ckpt:
        file = checkpoint.read(path)
        theirs = file.args.get("dataset_name")
        if flags.data is None and found and theirs not in (None, where.dataset_name):
            raise InputError(
                f"{file.path} was trained on {theirs}, the first checkpoint on "
                f"{where.dataset_name}: name the images with --data"
            )
        where = with_data(where, file)  # the first one's: then the data set has a name
        entry: dict[str, Any] = {"file": str(file.path), "step": file.step}
        for weights in ("ema", "model") if file.model else ("ema",):
            asked = replace(where, ckpt=str(file.path), weights=weights)
            opened = open_checkpoint(asked, device, verify=False)  # `checkpoint.read` did, above
            where = replace(where, dataset_name=where.dataset_name or opened.domain.name)
            kind = kind or kind_of(opened)
            if differing := differences(kind, kind_of(opened)):
                raise InputError(
                    f"{file.path} and the first checkpoint differ in {', '.join(differing)}, so "
                    "that their losses are not comparable: give one of them alone"
                )
            if weights == "ema":  # the first; the others are shown the same images
                images, held_out = images_of(opened.domain)
            losses = torch.cat(list(losses_of(opened, images, flags, device)))
            entry[weights] = summary(losses)
            if not found:
                first[weights] = losses
            elif weights in first:
                entry[f"{weights}_minus_first"] = summary(losses - first[weights])
        if other := trained_elsewhere(file, where.dataset_name, where.data_path):
            entry["trained_on"] = other
        found.append(entry)
    return {
        "data": where.dataset_name, "data_path": where.data_path, "held_out": held_out,
        "images": len(losses), "seed": flags.seed,
        "bins_of_t": [[bin / flags.bins, (bin + 1) / flags.bins] for bin in range(flags.bins)],
        "checkpoints": found,
    }  # fmt: skip


def named(data: str, data_path: str | None) -> str:
    return f"{data} in {data_path}" if data_path else data


def trained_elsewhere(file: Checkpoint, data: str, data_path: str | None) -> str | None:
    """What a checkpoint was trained on, where it says so and that is not what is looked at."""
    name, path = (file.args.get(key) for key in ("dataset_name", "data_path"))
    moved = path and data_path and os.path.abspath(str(path)) != os.path.abspath(data_path)
    return named(name, path) if name and (name != data or moved) else None


def kind_of(opened: Opened) -> dict[str, Any]:
    """What has to be equal where losses are compared."""
    transport, domain = opened.transport, opened.domain
    return {
        "path": transport.path.name, "prediction": transport.prediction,
        "shape": tuple(domain.shape), "VAE": domain.codec.identity,
    }  # fmt: skip


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In what two kinds are not equal. A VAE is itself under another path, too; pixels, of which
    nothing but a name is said, are no VAE."""
    found = [key for key in one if key != "VAE" and one[key] != other[key]]
    ours, theirs = one["VAE"], other["VAE"]
    same_vae = ours.keys() == theirs.keys() and first_difference(ours, theirs) is None
    return found if same_vae else [*found, "VAE"]


def images_of(domain: Domain) -> tuple[Any, bool]:
    """Images that training never saw; where the data have no such part, those that it saw."""
    try:
        return domain.held_out_set(), True
    except NoHeldOut:
        return domain.train_set(augment=False), False


@torch.no_grad()
def losses_of(opened: Opened, images: Any, flags: Flags, device: torch.device) -> Iterator[Tensor]:
    """The losses of one batch of images after the other: float64 (batch, bins) on the CPU."""
    codec, shape = opened.domain.codec, opened.domain.shape
    transport = replace(opened.transport, shift=1.0)  # bins are of t, whatever training dwelt on
    order = chosen(len(images), flags.images, flags.seed, "held-out images")
    for batch in read(images, order, flags.batch_size, device, skippable=True):
        drawn = [draws_of(index, flags, shape) for index in batch.index.tolist()]
        posterior, noise, uniform = (
            torch.stack(parts).to(device) for parts in zip(*drawn, strict=True)
        )
        x = codec.to_input(codec.encode(batch.raw), posterior)
        per_bin = []
        for bin in range(flags.bins):
            t = transport.times((bin + uniform[:, bin]) / flags.bins)
            x_t, _ = transport.path.sample(x, noise[:, bin], t)
            pred = opened.network(x_t, t, **batch.cond)
            per_bin.append(transport.loss(pred, x, noise[:, bin], t, batch.mask))
        yield torch.stack(per_bin, 1).double().cpu()


def draws_of(index: int, flags: Flags, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The randomness of an image: of its codec (*shape), and a noise (bins, *shape) and a place
    in [0, 1) (bins,) for every bin. Drawn on the CPU, the same for every device."""
    random = generator("cpu", flags.seed, "held-out loss", index)
    normal = partial(torch.randn, generator=random)
    return normal(shape), normal((flags.bins, *shape)), torch.rand(flags.bins, generator=random)


def summary(losses: Tensor) -> dict[str, Any]:
    """Means of (N, bins), and Student's interval of the mean over images."""
    found = mean_interval(losses.mean(1).tolist())
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "bins": losses.mean(0).tolist(),
    }


def as_text(result: dict[str, Any]) -> str:
    ends = [f"t {low:.2f}-{high:.2f}" for low, high in result["bins_of_t"]]
    rows = []
    for entry in result["checkpoints"]:
        for name in ("ema", "model", "ema_minus_first", "model_minus_first"):
            if name in entry:
                one = entry[name]
                low, high = one["low"], one["high"]
                interval = "-" if low is None else f"{low:.5f} to {high:.5f}"
                values = [f"{value:.5f}" for value in (*one["bins"], one["mean"])]
                rows.append([f"{entry['file']} {name}", *values, interval])
    kind = "held-out" if result["held_out"] else "training (none are held out)"
    lines = [
        f"velocity loss of {result['images']} {kind} images of "
        f"{named(result['data'], result['data_path'])}, t = 1 is data",
        columns(["", *ends, "mean", "95 % interval"], rows),
    ]
    steps = [entry["step"] for entry in result["checkpoints"]]
    if len(steps) > 1:
        lines.append("the intervals are over images; runs of other seeds differ more")
    lines += [
        f"note: {entry['file']} was trained on {entry['trained_on']}"
        for entry in result["checkpoints"]
        if "trained_on" in entry
    ]
    if len(set(steps)) > 1:
        lines.append(f"note: the checkpoints are of different steps: {', '.join(map(str, steps))}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
