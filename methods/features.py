"""Features of a data set, stored once: the targets of --loss-type external.

python -m methods.features digits --extractor classifier:clf.pt --out features/digits
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import domains
from domains import Batch
from domains.codecs import PIXELS
from domains.reading import read
from evaluations.extractors import check_rate, open_extractor
from evaluations.extractors.timm import Asked
from evaluations.extractors.vit import VisionTransformer
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError, LocalError
from runtime.files import atomic_write, write_json

from .store import CARD, VALUES, Card


@dataclass(frozen=True)
class Flags:
    """Store what a network sees in every image of a data set, and in its mirror image.

    A vector per image by --extractor, or tokens by --encoder, REPA's targets: they make --loss-type
    external of REPA, on stored latents too.

    python -m methods.features digits --extractor classifier:clf.pt --out features/digits
    python -m methods.features imagenet-1k --encoder vit_base_patch14_dinov2.lvd142m --out dino
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]  # a --dataset_name
    out: Path  # the folder to write
    extractor: str | None = None  # classifier:FILE, timm:MODEL or inception: pooled features
    encoder: str | None = None  # a vision transformer of timm: its patch tokens
    grid: int = 16  # tokens along a side, as many as the model's
    flip: bool = True  # tokens of mirror images, too; half the size without, for --no-hflip
    weights: Path | None = None  # their file; None: where each looks by itself
    data_path: str | None = None  # folder of the data, where it is local
    image_size: int | None = None  # pixels; None: the data set's
    num_classes: int | None = None  # None: the data set's
    cache_dir: str = "./cache/"  # downloads of data sets
    batch_size: int = 64  # images at a time
    num_workers: int = 4  # processes that decode
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one


class Seer(NamedTuple):
    """Who looks at the images."""

    made_by: str
    look: Callable[[Batch], Tensor]  # features (B, Z) or (B, N, Z)


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start_alone("methods.features", flags.device)
    domain = domains.build(
        flags.data, data_path=flags.data_path, image_size=flags.image_size,
        num_classes=flags.num_classes, vae=PIXELS, cache_dir=flags.cache_dir,
    )  # fmt: skip
    seer = seer_of(flags, domain.rate, ranks.device)
    images = domain.train_set(augment=False)
    mirrored = flags.flip and domain.rate is None  # a sound from its end is no mirror image
    with atomic_write(flags.out / VALUES) as file:
        shape = write_values(file, seer, images, flags, mirrored, ranks.device)
        (flags.out / CARD).unlink(missing_ok=True)  # an older one is of other values
    card = Card(
        count=len(images), flips=1 + mirrored, shape=shape, data_set=domain.data_set,
        made_by=seer.made_by,
    )  # fmt: skip
    write_json(flags.out / CARD, dataclasses.asdict(card))  # last: with a card it is complete
    print(f"{flags.out}: {card.count} images, {card.kind} of {card.shape} by {card.made_by}")


def seer_of(flags: Flags, rate: int | None, device: torch.device) -> Seer:
    """
    Args:
        rate: of the data, where these are sounds.

    Raises:
        InputError: not exactly one of --extractor and --encoder, or no weights; --no-flip for
            vectors, which would then count for mirror images, too.
    """
    if (flags.extractor is None) == (flags.encoder is None):
        raise InputError("give --extractor for vectors or --encoder for tokens, one of them")
    if flags.extractor and not flags.flip:
        raise InputError(
            "--no-flip is for the tokens of --encoder: leave it out, vectors are small"
        )
    if flags.extractor:
        extractor = open_extractor(flags.extractor, device, weights=flags.weights)
        check_rate(extractor, rate, flags.data)
        made_by = f"{extractor.name} {extractor.fingerprint}"
        return Seer(made_by, lambda batch: extractor(batch.raw).pool)
    asked = Asked(f"--encoder {flags.encoder}", "--weights")
    encoder = VisionTransformer(flags.encoder, flags.weights, (flags.grid, flags.grid), asked)
    encoder.to(device)
    return Seer(f"{flags.encoder} {encoder.fingerprint}", lambda batch: encoder.tokens(batch.raw))


def write_values(
    file: IO[bytes],
    seer: Seer,
    images: domains.DataSet,
    flags: Flags,
    mirrored: bool,
    device: torch.device,
) -> tuple[int, ...]:
    """The array (N, flips, *shape), float16, as a .npy, a batch at a time; its shape per image.

    Raises:
        LocalError: a corrupt image, or features that are not finite in float16.
    """
    batches = read(images, range(len(images)), flags.batch_size, device, workers=flags.num_workers)
    shape: tuple[int, ...] | None = None
    for batch in tqdm(batches, unit="batch", total=-(-len(images) // flags.batch_size)):
        seen = [batch, batch._replace(raw=batch.raw.flip(-1))][: 1 + mirrored]
        values = torch.stack([seer.look(one) for one in seen], dim=1).half().cpu().numpy()
        if not np.isfinite(values).all():
            raise LocalError(f"{seer.made_by} gives features that are not finite in float16")
        if shape is None:
            shape = values.shape[2:]
            whole = (len(images), *values.shape[1:])
            header = {"descr": "<f2", "fortran_order": False, "shape": whole}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(values.astype("<f2").tobytes())
    return shape


if __name__ == "__main__":
    run(main)
