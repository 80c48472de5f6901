"""Latents per second and core out of a store in the page cache, and what training waits for data.

OMP_NUM_THREADS=1 python -m benchmarks.loader --images 16384
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch

import domains
from benchmarks.ours import LEAST, NEVER, StepFlags, config_of, trainer_of
from benchmarks.report import CLOCKS, Contestant, beside, interleave, parse, publish
from domains.feed import loader
from domains.image_store import ImageEncoding, content_of
from domains.latents import SD_SCALE
from domains.order import GlobalBatches
from domains.store import write_manifest, write_shard
from runtime import distributed
from runtime.distributed import Ranks
from runtime.entry import run
from runtime.errors import InputError
from runtime.prefetch import Prefetch


@dataclass(frozen=True)
class Flags(StepFlags):
    """Measure how fast latents come out of a store, and the share of a training run that waits.

    The store is written to a temporary folder, 32 KiB per image, so that it is in the page cache.
    """

    rounds: int = 8  # every contestant runs once per round, in rotating order
    calls: int = 20  # timed batches per round
    images: int = 16_384  # in the store
    shard_size: int = 4096  # images per file
    read_batch: int = 256  # images per batch of the reading benchmark
    steps: int = 20  # of the training run whose data wait is measured; 0: none
    folder: str | None = None  # where the store is made and removed; None: the temporary folder


FLOOR, GATHER, LOADER = "floor: a copy, in order", "gather, random order", "DataLoader of train.py"
SHAPE = (4, 32, 32)


def main() -> None:
    flags = parse(Flags, LEAST | {"images": 1, "shard_size": 1, "read_batch": 1, "steps": 0})
    if flags.read_batch > min(flags.images, flags.shard_size):
        raise InputError(f"--read-batch {flags.read_batch} is more than --images or --shard-size")
    ranks = distributed.start_alone("benchmarks.loader", flags.device)
    with store(flags) as folder:
        reading(flags, folder, ranks)
        if flags.steps:
            waiting(flags, folder, ranks)


@contextmanager
def store(flags: Flags) -> Iterator[str]:
    """The folder of a store of random moments, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(dir=flags.folder) as made:
        vae = {"name": "random", "scale": SD_SCALE, "shift": 0.0, "sha256": "0" * 64}
        encoding = ImageEncoding(
            codec=vae, dataset_name="random", count=flags.images, num_classes=1000,
            image_size=256, latent_shape=SHAPE, shard_size=flags.shard_size,
            data_set="random",
        )  # fmt: skip
        folder = Path(made)
        moments = torch.randn(min(flags.images, flags.shard_size), *encoding.moments_shape).half()
        for shard in encoding.shards:
            size = shard.stop - shard.start
            labels = torch.arange(size) % 1000
            write_shard(folder, encoding, shard, content_of(moments[:size], labels))
        write_manifest(folder, encoding)
        yield made


def reading(flags: Flags, folder: str, ranks: Ranks) -> None:
    """Batches per second on one core, beside a plain copy of as many bytes."""
    images = domains.build("latents", data_path=folder).train_set()
    config = config_of(
        flags, dataset_name="latents", data_path=folder, global_batch_size=flags.read_batch,
        grad_accum=1,
    )  # fmt: skip
    moments, size = images.source.moments[0], flags.read_batch
    starts = cycle(range(0, len(moments) - size + 1, size))
    order = iter(GlobalBatches(
        len(images), size, seed=0, start=0, stop=NEVER, rank=0, ranks=1
    ))  # fmt: skip
    batches = iter(loader(config, images, ranks, start=0))

    def copy() -> None:
        start = next(starts)
        moments[start : start + size, 0].copy()

    calls = {
        FLOOR: copy,
        GATHER: lambda: images.__getitems__(next(order)),
        LOADER: lambda: next(batches).checked(),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    contestants = [Contestant(name, lambda call=call: call, size) for name, call in calls.items()]
    measured = interleave(contestants, torch.device("cpu"), flags)
    torch.set_num_threads(threads)
    columns = ("row", "ms", "ms_p10", "ms_p90", "images_per_s")
    rows = [
        {name: one.row()[name] for name in columns} | beside(measured[FLOOR], one)
        for one in measured.values()
    ]
    title = f"latents per second and core, {flags.images} images in batches of {size}"
    publish("loader", title, rows, flags, ranks.device)


def waiting(flags: Flags, folder: str, ranks: Ranks) -> None:
    """How long the steps of a run stand still because there is no batch."""
    trainer = trainer_of(flags, ranks, dataset_name="latents", data_path=folder)
    read = iter(loader(trainer.config, trainer.domain.train_set(), ranks, start=0))
    with Prefetch(read, domains.Batch.to_device, ranks.device) as batches:
        for _ in range(flags.warmup):
            trainer.step(batches)
        waited = batches.waited
        (seconds,) = CLOCKS[ranks.device.type](
            lambda: [trainer.step(batches) for _ in range(flags.steps)], 1
        )
        waited = batches.waited - waited
    row = {
        "row": f"{flags.steps} steps", "ms": 1e3 * seconds / flags.steps,
        "wait_ms": 1e3 * waited / flags.steps, "wait_percent": 100 * waited / seconds,
    }  # fmt: skip
    title = f"data wait of training {flags.model}, {flags.batch} images"
    publish("loader", title, [row], flags, ranks.device, attention=trainer.attention)


if __name__ == "__main__":
    run(main)
