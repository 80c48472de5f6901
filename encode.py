"""Encode images once, so that training needs neither images nor VAE; run again, it goes on.

torchrun --nproc_per_node=8 encode.py --dataset_name imagenet-1k --out latents/imagenet256
"""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import domains
from domains.codecs import PIXELS, Codec, is_path
from domains.latents import LatentDomain
from domains.store import Encoding, Manifest, Shard, missing_shards, write_manifest, write_shard
from runtime import distributed
from runtime.config import EncodeConfig, parse
from runtime.distributed import Ranks
from runtime.entry import asked_of_user, run
from runtime.errors import InputError, LocalError, sentence_of
from runtime.precision import default_precision

BEGUN = "run encode.py again with the same flags and it goes on: complete shards are kept"


def main() -> None:
    config = parse(EncodeConfig, {})
    ranks = distributed.start(config.device)
    if config.verify:
        return verify(Path(config.verify), ranks)
    with asked_of_user():
        domain = domain_of(config)
    images, codec = domain.train_set(augment=False), domain.codec.to(ranks.device)
    encoding = Encoding(
        codec.identity, config.dataset_name, len(images), domain.num_classes,
        domain.raw_shape[-1], domain.shape, config.shard_size,
    )  # fmt: skip
    folder = Path(config.out)
    missing = ranks.from_main(lambda: missing_shards(folder, encoding))
    if missing:
        encode(config, folder, encoding, images, codec, missing, ranks)
    ranks.barrier()
    ranks.from_main(lambda: finish(folder, encoding))


def domain_of(config: EncodeConfig) -> domains.Domain:
    """
    Raises:
        InputError: there is nothing to encode, or nowhere to put it.
    """
    if not config.out:
        raise InputError("--out is missing: the folder of the latents")
    domain = domains.build(
        config.dataset_name, data_path=config.data_path, image_size=config.image_size,
        num_classes=config.num_classes, vae=config.vae, cache_dir=config.cache_dir,
        skip_corrupt=config.skip_corrupt,
    )  # fmt: skip
    if isinstance(domain, LatentDomain) or domain.vae == PIXELS:
        raise InputError(
            f"--dataset_name {config.dataset_name} has no images that a VAE could encode"
        )
    return domain
