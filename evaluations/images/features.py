"""What an extractor sees in images: features in order, and their moments; over all ranks."""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from evaluations.extractors import Extractor, Features, check_rate, inception
from evaluations.metrics import Moments
from runtime.distributed import Ranks
from runtime.errors import InputError, LocalError

from .sources import Images, NpzImages, classes_of_all, read_arrays

MERGED = 1024  # rows that enter the moments at a time: a merge costs as much as a thousand rows


class Seen(NamedTuple):
    """Of N images."""

    pool: Tensor  # float32 (N, D), on the host
    moments: Moments  # of pool, or of the windows of sounds
    spatial: Moments | None  # of the spatial features
    y: Tensor | None  # int64 (N,)
    brightest: int  # value of any pixel

    def __len__(self) -> int:
        return len(self.pool)


class Pending:
    """Moments of features that come in small batches."""

    def __init__(self) -> None:
        self.moments: Moments | None = None
        self.rows: list[Tensor] = []
        self.count = 0

    def add(self, features: Tensor) -> None:
        self.rows.append(features)
        self.count += len(features)
        if self.count >= MERGED:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            features = torch.cat(self.rows)
            self.moments = self.moments or Moments(features.shape[1])
            self.moments.update(features)
            self.rows, self.count = [], 0


def look_at(
    images: Images, extractor: Extractor, ranks: Ranks, *, batch: int, count: int | None = None,
    progress: bool = True,
) -> Seen | None:  # fmt: skip
    """Features of the first `count` images (None: all), on rank 0; None on the others.

    Every rank sees consecutive images, so a compressed file is read once per rank at most. Of a
    file that stores features these are taken.

    Raises:
        InputError: the images are damaged, or not such as the extractor takes; or stored features
            are another extractor's.
        LocalError: what it sees in them is not finite.
    """
    check_rate(extractor, images.rate, images.name)
    count = len(images) if count is None else count
    if isinstance(images, NpzImages) and images.pool is not None:
        check_extractor(images, extractor)
        return seen_before(images, count) if ranks.is_main else None
    numbers = range(count * ranks.rank // ranks.size, count * (ranks.rank + 1) // ranks.size)
    pools, labels, pool, spatial, brightest = [], [], Pending(), Pending(), 0
    silent = not (progress and ranks.is_main)
    with tqdm(total=len(numbers), desc=images.name, unit="image", disable=silent) as bar:
        for raw, y in images.blocks(numbers, batch):
            features = extractor(raw.to(ranks.device))
            check_finite(features, extractor, images)
            pools.append(features.pool.cpu())
            pool.add(features.pool if features.windows is None else features.windows)
            if features.spatial is not None:
                spatial.add(features.spatial)
            brightest = max(brightest, int(raw.max()))
            labels.append(y)
            bar.update(len(raw))
    pool.flush()
    spatial.flush()
    own = (pools, labels, pool.moments, spatial.moments, brightest)
    parts = ranks.gather(own)
    if parts is None:
        return None
    parts = [part for part in parts if part[0]]  # a rank may have had no image
    pools, labels = ([one for part in parts for one in part[i]] for i in (0, 1))
    return Seen(
        torch.cat(pools),
        merged([part[2] for part in parts]),
        merged([part[3] for part in parts]) if parts[0][3] else None,
        classes_of_all(labels),
        max(part[4] for part in parts),
    )


def seen_before(images: NpzImages, count: int) -> Seen:
    pool, y = images.pool[:count], images.labels
    return Seen(pool, Moments.of(pool), None, None if y is None else y[:count], brightest=255)


def check_extractor(images: NpzImages, extractor: Extractor) -> bool:
    """Whether a file says by which weights its statistics were seen.

    Raises:
        InputError: they are another extractor's; those of a file that does not say are ADM's
            Inception's.
    """
    found = read_arrays(images.path, ["extractor", "fingerprint"])
    fingerprint = str(found["fingerprint"]) if "fingerprint" in found else None
    theirs = str(found["extractor"]) if "extractor" in found else inception.NAME
    ours = (extractor.name, extractor.fingerprint if fingerprint else None)
    if ours != (theirs, fingerprint):
        raise InputError(
            f"{images.path} has statistics of {theirs} {(fingerprint or '')[:8]}, but --extractor "
            f"is {extractor.name} {extractor.fingerprint[:8]}: take the one or make another "
            "reference with make-reference"
        )
    return fingerprint is not None


def check_finite(features: Features, extractor: Extractor, images: Images) -> None:
    """
    Raises:
        LocalError: NaN or infinity among them.
    """
    if not all(part is None or part.isfinite().all() for part in features):
        raise LocalError(
            f"--extractor {extractor.name} sees NaN or infinity in {images.name}: its weights are "
            "damaged, give others"
        )


def merged(parts: list[Moments]) -> Moments:
    first, *others = parts
    for other in others:
        first.merge(other)
    return first
