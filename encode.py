"""Encode images once, so that training needs neither images nor VAE; run again, it goes on.

torchrun --nproc_per_node=8 encode.py --dataset_name imagenet-1k --out latents/imagenet256
"""

import math
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import domains
from domains import store
from domains.codecs import PIXELS, Codec, is_path
from domains.images import ImageDomain
from domains.latents import LatentDomain
from domains.store import Encoding, Manifest, Shard
from runtime import distributed
from runtime.config import EncodeConfig, parse
from runtime.distributed import Ranks
from runtime.entry import asked_of_user, run
from runtime.errors import InputError, LocalError
from runtime.precision import Arithmetic, default_precision
from runtime.prefetch import Prefetch

PATIENCE = timedelta(days=30)  # ranks finish hours apart where their disks differ


def main() -> None:
    config = parse(EncodeConfig, {})
    ranks = distributed.start(config.device, patience=PATIENCE)
    if config.verify:
        return ranks.from_main(lambda: verify(Path(config.verify)))
    with asked_of_user():
        domain, folder = domain_of(config), folder_of(config)
    with store.locked(folder) if ranks.is_main else nullcontext():
        encode(config, domain, folder, ranks)


def encode(config: EncodeConfig, domain: ImageDomain, folder: Path, ranks: Ranks) -> None:
    """What is missing in the store, shard by shard; the next one is computed while one is written.

    Raises:
        InputError: the folder holds another encoding.
        LocalError: a corrupt image, latents that are no numbers, a full disk.
    """
    images, codec = domain.train_set(augment=False), domain.codec.to(ranks.device)
    encoding = Encoding(
        codec=codec.identity, dataset_name=config.dataset_name, count=len(images),
        num_classes=domain.num_classes, image_size=domain.raw_shape[-1], latent_shape=domain.shape,
        shard_size=config.shard_size or default_shard_size(len(images)),
        data_set=ranks.from_main(domain.train_source.fingerprint),
    )  # fmt: skip
    parts = ranks.gather(encoding)
    missing = ranks.from_main(lambda: store.missing_shards(folder, agreed(parts)))
    shards = missing[ranks.rank :: ranks.size]
    if shards:
        read = iter(loader(config, images, shards))
        with (
            Prefetch(read, domains.Batch.to_device, ranks.device) as batches,
            ThreadPoolExecutor(1) as writer,
            Arithmetic(default_precision(ranks.device), ranks.device)(),
            tqdm(
                total=sum(shard.stop - shard.start for shard in shards), unit="image",
                desc=f"process 1 of {ranks.size}", disable=not ranks.is_main,
            ) as bar,
        ):  # fmt: skip
            writing = writer.submit(lambda: None)
            for shard in shards:
                count = math.ceil((shard.stop - shard.start) / config.batch_size)
                moments = encoded(encoding, shard, islice(batches, count), codec, bar)
                writing.result()
                writing = writer.submit(write, folder, encoding, shard, moments)
            writing.result()
    ranks.barrier()
    ranks.from_main(lambda: finish(folder, encoding))


def default_shard_size(count: int) -> int:
    """Enough shards for hundreds of processes, of files that are neither tiny nor above 1 GB."""
    return min(max(math.ceil(count / 512), 256), 16_384)


def agreed(encodings: list[Encoding]) -> Encoding:
    """The encoding of all ranks.

    Raises:
        InputError: one has another VAE or other images where it runs.
    """
    first, *others = encodings
    for rank, other in enumerate(others, start=1):
        if changed := first.differs(other):
            raise InputError(
                f"process {rank} has another {changed} than process 0: give all nodes the same "
                "--vae and --data-path"
            )
    return first


def folder_of(config: EncodeConfig) -> Path:
    """
    Raises:
        InputError: --out is missing, or lies within the images.
    """
    if not config.out:
        raise InputError("--out is missing: the folder of the latents")
    folder = Path(config.out)
    if config.data_path and folder.resolve().is_relative_to(Path(config.data_path).resolve()):
        raise InputError(f"--out {folder} lies within --data-path {config.data_path}: name another")
    return folder


def domain_of(config: EncodeConfig) -> domains.Domain:
    """The images and their VAE.

    Raises:
        InputError: the data set is no images, or has no VAE.
    """
    vae = config.vae
    if vae and is_path(vae):  # it is recorded, for runs that start elsewhere
        vae = str(Path(vae).expanduser().absolute())
    domain = domains.build(
        config.dataset_name, data_path=config.data_path, image_size=config.image_size,
        num_classes=config.num_classes, vae=vae, cache_dir=config.cache_dir,
        skip_corrupt=config.skip_corrupt,
    )  # fmt: skip
    if isinstance(domain, LatentDomain):
        raise InputError(f"{domain.source.called} holds latents: there is nothing to encode")
    if domain.vae == PIXELS:
        raise InputError(f"--vae {PIXELS}: there is nothing to encode without a VAE")
    return domain


def loader(config: EncodeConfig, images: domains.DataSet, shards: Sequence[Shard]) -> DataLoader:
    """The images of one shard after the other, in batches that end with their shard."""
    draws = [
        domains.Draws.plain(range(first, min(first + config.batch_size, shard.stop)))
        for shard in shards
        for first in range(shard.start, shard.stop, config.batch_size)
    ]
    return DataLoader(
        images, batch_sampler=draws, collate_fn=domains.as_read, num_workers=config.num_workers
    )


class Moments(NamedTuple):
    """What a shard holds."""

    moments: Tensor  # float16 (n, 2, 2C, h, w)
    labels: Tensor  # int64 (n,)
    replaced: int  # unreadable images


def encoded(
    encoding: Encoding, shard: Shard, batches: Iterable[domains.Batch], codec: Codec, bar: tqdm
) -> Moments:
    moments = torch.empty(shard.stop - shard.start, *encoding.moments_shape, dtype=torch.float16)
    labels, replaced = torch.empty(len(moments), dtype=torch.int64), 0
    done = 0
    for batch in batches:
        batch = batch.checked()
        for problem in batch.problems:
            bar.write(f"warning: {problem}", file=sys.stderr)
        replaced += len(batch.problems)
        stop = done + len(batch.raw)
        part = both_flips(codec, batch.raw).cpu()
        if not part.isfinite().all():
            raise LocalError(
                f"images {shard.start + done} to {shard.start + stop - 1}: this VAE gives latents "
                "that are not finite in float16"
            )
        moments[done:stop], labels[done:stop] = part, batch.y.cpu()
        bar.update(stop - done)
        done = stop
    return Moments(moments, labels, replaced)


def both_flips(codec: Codec, raw: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float16 (B, 2, 2C, h, w): of the images and of their mirror images."""
    return torch.stack([codec.encode(raw), codec.encode(raw.flip(-1))], dim=1).half()


def write(folder: Path, encoding: Encoding, shard: Shard, moments: Moments) -> None:
    try:
        store.write_shard(folder, encoding, shard, *moments)
    except OSError as error:
        raise LocalError(cannot_be_written(folder / shard.file, error)) from error


def finish(folder: Path, encoding: Encoding) -> None:
    try:
        store.write_manifest(folder, encoding)
    except OSError as error:
        raise InputError(cannot_be_written(folder / store.MANIFEST, error)) from error
    size = sum((folder / shard.file).stat().st_size for shard in encoding.shards)
    print(
        f"{folder}: {encoding.count:,} images in {len(encoding.shards)} shards, "
        f"{size / 2**30:.1f} GiB: train.py --data-path {folder}"
    )


def cannot_be_written(path: Path, error: OSError) -> str:
    return (
        f"{path} cannot be written ({error.strerror or error}): when that is mended, run encode.py "
        "again with the same flags, and it goes on"
    )


def verify(folder: Path) -> None:
    """
    Raises:
        InputError: naming the shards that have changed.
    """
    manifest = Manifest(folder)
    shards = tqdm(manifest.encoding.shards, unit="shard")
    changed = [str(folder / shard.file) for shard in shards if not manifest.is_intact(shard)]
    if changed:
        raise InputError(
            f"{', '.join(changed)} changed since being encoded: delete what is named, and run "
            "encode.py again with the same flags"
        )
    print(f"{folder}: {manifest.encoding.count:,} images, all checksums agree")


if __name__ == "__main__":
    run(main)
