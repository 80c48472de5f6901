"""Encode data once, so that training needs neither them nor the VAE; run again, it goes on.

torchrun --nproc_per_node=8 encode.py --dataset_name imagenet-1k --out latents/imagenet256
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import domains
from domains import store
from domains.audio import AudioDomain
from domains.captioned_video import CaptionedVideoDomain
from domains.clip_store import ClipEncoder
from domains.codecs import PIXELS, is_path
from domains.frame_store import FrameEncoder
from domains.image_store import ImageEncoder
from domains.images import ImageDomain
from domains.store import Content, Encoding, Manifest, Shard
from domains.track_store import TrackEncoder
from domains.video import VideoDomain
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
        encoder = ENCODERS[type(domain)](domain, config.batch_size, ranks.device)
        encode(config, encoder, folder, ranks)


class Encoder(Protocol):
    """What a kind of data set needs to be encoded."""

    kind: type[Encoding]
    unread: tuple[str, ...]  # flags that mean nothing to it
    samples: domains.DataSet  # all that is encoded, by number
    batch_size: int  # samples that are read at once

    def __init__(self, domain: domains.Domain, batch_size: int, device: torch.device) -> None: ...

    def fingerprint(self) -> str:
        """What tells the samples from others without decoding them."""

    def encoding(self, shard_size: int | None, data_set: str) -> Encoding:
        """
        Args:
            shard_size: None: what suits these samples.
            data_set: the fingerprint.
        """

    def content(
        self, encoding: Encoding, shard: Shard, batches: Iterable[domains.Batch]
    ) -> Content:
        """A shard's samples, encoded.

        Raises:
            LocalError: latents that are no numbers.
        """


ENCODERS: dict[type[domains.Domain], type[Encoder]] = {
    ImageDomain: ImageEncoder,
    AudioDomain: TrackEncoder,
    VideoDomain: FrameEncoder,
    CaptionedVideoDomain: ClipEncoder,
}


def encode(config: EncodeConfig, encoder: Encoder, folder: Path, ranks: Ranks) -> None:
    """What is missing in the store, shard by shard; the next one is computed while one is written.

    Raises:
        InputError: the folder holds another encoding.
        LocalError: a corrupt sample, latents that are no numbers, a full disk.
    """
    encoding = encoder.encoding(config.shard_size, ranks.from_main(encoder.fingerprint))
    parts = ranks.gather(encoding)
    missing = ranks.from_main(lambda: store.missing_shards(folder, agreed(parts)))
    shards = missing[ranks.rank :: ranks.size]
    if shards:
        read = iter(loader(config, encoder, shards))
        with (
            Prefetch(read, domains.Batch.to_device, ranks.device) as ahead,
            ThreadPoolExecutor(1) as writer,
            Arithmetic(default_precision(ranks.device), ranks.device)(),
            tqdm(
                total=sum(shard.stop - shard.start for shard in shards), unit=encoding.unit,
                desc=f"process 1 of {ranks.size}", disable=not ranks.is_main,
            ) as bar,
        ):  # fmt: skip
            batches = checked_batches(ahead, bar)
            writing = writer.submit(lambda: None)
            for shard in shards:
                count = math.ceil((shard.stop - shard.start) / encoder.batch_size)
                content = encoder.content(encoding, shard, islice(batches, count))
                writing.result()
                writing = writer.submit(write, folder, encoding, shard, content)
            writing.result()
    ranks.barrier()
    ranks.from_main(lambda: finish(folder, encoding))


def agreed(encodings: list[Encoding]) -> Encoding:
    """The encoding of all ranks.

    Raises:
        InputError: one has another VAE or other data where it runs.
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
        InputError: --out is missing, or lies within the data.
    """
    if not config.out:
        raise InputError("--out is missing: the folder of the latents")
    folder = Path(config.out)
    if config.data_path and folder.resolve().is_relative_to(Path(config.data_path).resolve()):
        raise InputError(f"--out {folder} lies within --data-path {config.data_path}: name another")
    return folder


def domain_of(config: EncodeConfig) -> domains.Domain:
    """The samples and their VAE.

    Raises:
        InputError: the data set is of latents, or of no kind that is encoded, or has no VAE; or a
            flag that means nothing to it.
    """
    # They are recorded, for runs that start elsewhere.
    vae, pretrained = (
        str(Path(name).expanduser().absolute()) if name and is_path(name) else name
        for name in (config.vae, config.pretrained)
    )
    domain = domains.build(
        config.dataset_name, data_path=config.data_path, image_size=config.image_size,
        num_classes=config.num_classes, vae=vae, num_frames=config.num_frames,
        frame_stride=config.frame_stride, pretrained=pretrained, cache_dir=config.cache_dir,
        skip_corrupt=config.skip_corrupt,
    )  # fmt: skip
    if pretrained and domain.text_encoder is None:
        raise InputError(f"--pretrained {pretrained}: {domain.name} has no texts, leave it out")
    if domain.stored_in:
        raise InputError(f"{domain.stored_in} holds latents: there is nothing to encode")
    if type(domain) not in ENCODERS:
        raise InputError(
            f"--dataset_name {domain.name}: images, music and videos are encoded, nothing else"
        )
    if domain.vae == PIXELS:
        raise InputError(f"--vae {PIXELS}: there is nothing to encode without a VAE")
    for flag in ENCODERS[type(domain)].unread:
        if getattr(config, flag) is not None:
            raise InputError(
                f"--{flag.replace('_', '-')} {getattr(config, flag)}: {domain.name} is encoded "
                "whole, whatever training takes of it: leave it out"
            )
    return domain


def loader(config: EncodeConfig, encoder: Encoder, shards: Sequence[Shard]) -> DataLoader:
    """The samples of one shard after the other, in batches that end with their shard."""
    size = encoder.batch_size
    draws = [
        domains.Draws.plain(range(first, min(first + size, shard.stop)))
        for shard in shards
        for first in range(shard.start, shard.stop, size)
    ]
    return domains.loader_of(encoder.samples, draws, config.num_workers)


def checked_batches(batches: Iterable[domains.Batch], bar: tqdm) -> Iterator[domains.Batch]:
    """The batches, counted, and what is wrong in them said or raised."""
    for batch in batches:
        batch = batch.checked()
        for problem in batch.problems:
            bar.write(f"warning: {problem}", file=sys.stderr)
        bar.update(len(batch.raw))
        yield batch


def write(folder: Path, encoding: Encoding, shard: Shard, content: Content) -> None:
    try:
        store.write_shard(folder, encoding, shard, content)
    except OSError as error:
        raise LocalError(cannot_be_written(folder / shard.file, error)) from error


def finish(folder: Path, encoding: Encoding) -> None:
    try:
        said = store.write_manifest(folder, encoding)
    except OSError as error:
        raise InputError(cannot_be_written(folder / store.MANIFEST, error)) from error
    size = sum(shard["bytes"] for shard in said["shards"])
    print(
        f"{folder}: {encoding.count:,} {encoding.unit}s in {len(encoding.shards)} shards, "
        f"{size / 2**30:.1f} GiB: train.py --dataset_name {encoding.dataset_name} "
        f"--data-path {folder}"
    )
    for line in encoding.remarks(said):
        print(line)


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
    manifest = Manifest(folder, *(encoder.kind for encoder in ENCODERS.values()))
    shards = tqdm(manifest.encoding.shards, unit="shard")
    changed = [str(folder / shard.file) for shard in shards if not manifest.is_intact(shard)]
    if changed:
        raise InputError(
            f"{', '.join(changed)} changed since being encoded: delete what is named, and run "
            "encode.py again with the same flags"
        )
    print(f"{folder}: {manifest.encoding.count:,} {manifest.encoding.unit}s, all checksums agree")


if __name__ == "__main__":
    run(main)
