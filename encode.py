"""Encode images once, so that training needs neither images nor VAE; run again, it goes on.

torchrun --nproc_per_node=8 encode.py --dataset_name imagenet-1k --out latents/imagenet256
"""

import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import domains
from domains import store
from domains.codecs import PIXELS, Codec, is_path
from domains.latents import LatentDomain
from domains.store import MANIFEST, Encoding, Manifest, Shard
from runtime import distributed
from runtime.config import EncodeConfig, parse
from runtime.distributed import Ranks
from runtime.entry import asked_of_user, run
from runtime.errors import InputError, LocalError
from runtime.precision import Arithmetic, default_precision


def main() -> None:
    config = parse(EncodeConfig, {})
    ranks = distributed.start(config.device)
    if config.verify:
        return ranks.from_main(lambda: verify(Path(config.verify)))
    with asked_of_user():
        domain, folder = domain_of(config), folder_of(config)
    images, codec = domain.train_set(augment=False), domain.codec.to(ranks.device)
    encoding = Encoding(
        codec.identity, config.dataset_name, len(images), domain.num_classes,
        domain.raw_shape[-1], domain.shape, config.shard_size,
    )  # fmt: skip
    missing = ranks.from_main(lambda: store.missing_shards(folder, encoding))
    shards = missing[ranks.rank :: ranks.size]
    batches = iter(loader(config, images, shards, ranks))
    total = sum(shard.stop - shard.start for shard in shards)
    with (
        Arithmetic(default_precision(ranks.device), ranks.device)(),
        tqdm(total=total, unit="image", disable=not (ranks.is_main and shards)) as bar,
    ):
        bar.set_description(f"process 1 of {ranks.size}")
        for shard in shards:
            count = math.ceil((shard.stop - shard.start) / config.batch_size)
            encode(folder, encoding, shard, islice(batches, count), codec, ranks.device, bar)
    ranks.barrier()
    ranks.from_main(lambda: finish(folder, encoding, begun=bool(missing)))


def folder_of(config: EncodeConfig) -> Path:
    if not config.out:
        raise InputError("--out is missing: the folder of the latents")
    return Path(config.out)


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


def loader(
    config: EncodeConfig, images: domains.DataSet, shards: Sequence[Shard], ranks: Ranks
) -> DataLoader:
    """The images of one shard after the other, in batches that end with their shard."""
    draws = [
        domains.Draws.plain(range(first, min(first + config.batch_size, shard.stop)))
        for shard in shards
        for first in range(shard.start, shard.stop, config.batch_size)
    ]
    return DataLoader(
        images, batch_sampler=draws, collate_fn=domains.as_read, num_workers=config.num_workers,
        pin_memory=ranks.device.type == "cuda",
    )  # fmt: skip


def encode(
    folder: Path, encoding: Encoding, shard: Shard, batches, codec: Codec, device: torch.device, bar
) -> None:
    """One shard, on the disk when it is complete.

    Raises:
        LocalError: a corrupt image, latents that are no numbers, a full disk.
    """
    moments = torch.empty(shard.stop - shard.start, *encoding.moments_shape, dtype=torch.float16)
    labels = torch.empty(len(moments), dtype=torch.int64)
    done = 0
    for batch in batches:
        batch = batch.checked()
        for problem in batch.problems:
            bar.write(f"warning: {problem}", file=sys.stderr)
        stop = done + len(batch.raw)
        moments[done:stop] = both_flips(codec, batch.raw.to(device, non_blocking=True))
        labels[done:stop] = batch.y
        bar.update(stop - done)
        done = stop
    if not moments.isfinite().all():
        raise LocalError(
            f"images {shard.start} to {shard.stop}: this VAE gives latents that are not finite in "
            "float16"
        )
    try:
        store.write_shard(folder, encoding, shard, moments, labels)
    except OSError as error:
        raise LocalError(
            f"{folder / shard.file} cannot be written ({error.strerror or error}): when that is "
            "mended, run encode.py again with the same flags, and it goes on"
        ) from error


def both_flips(codec: Codec, raw: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float16 (B, 2, 2C, h, w): of the images and of their mirror images."""
    return torch.stack([codec.encode(raw), codec.encode(raw.flip(-1))], dim=1).half()


def finish(folder: Path, encoding: Encoding, *, begun: bool) -> None:
    """Write the manifest, unless a finished store was only looked at."""
    if begun or not (folder / MANIFEST).exists():
        store.write_manifest(folder, encoding)
    size = sum((folder / shard.file).stat().st_size for shard in encoding.shards)
    print(
        f"{folder}: {encoding.count:,} images in {len(encoding.shards)} shards, "
        f"{size / 2**30:.1f} GiB: train.py --data-path {folder}"
    )


def verify(folder: Path) -> None:
    manifest = Manifest(folder)
    for shard in tqdm(manifest.encoding.shards, unit="shard"):
        manifest.verify(shard)
    print(f"{folder}: {manifest.encoding.count:,} images, all checksums agree")


if __name__ == "__main__":
    run(main)
