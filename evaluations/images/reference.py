"""What samples are held against: the statistics and some features of real images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluations.extractors import Extractor, inception
from evaluations.metrics import Gaussian, Moments
from runtime.distributed import Ranks
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.random import generator

from .features import Seen, check_extractor, look_at
from .sources import (
    FEATURES,
    LABELS,
    WINDOWS,
    DataSetImages,
    Images,
    NpzImages,
    Real,
    classes_of_all,
    read_arrays,
)

KEPT = 10_000  # images that a reference keeps for precision, recall and KID, as ADM's do
SHOWN = 8  # sounds or clips that it holds as they are: a row of the picture beside the scores
# What an .npz holds of the statistics, by ADM's names, and which features they are of.
STORED = {"mu": "mean of pool", "sigma": "covariance of pool", "mu_s": "mean of spatial features",
          "sigma_s": "covariance of spatial features"}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Real images as an extractor sees them."""

    name: str
    count: int | None  # images behind the statistics; ADM's files do not say
    sha256: str  # of the images
    moments: Moments | Gaussian
    spatial: Moments | Gaussian | None
    pool: Tensor  # float32 (N, D), of all images of a file, of KEPT of a data set
    vouched: bool = True  # its statistics are known to be this extractor's

    def facts(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "name": self.name, "images": self.count, "sha256": self.sha256, "kept": len(self.pool)
        }  # fmt: skip


def kept(count: int) -> Tensor:
    """Which of a data set's images count for precision, recall and KID, and are stored in a
    reference: a fixed random choice, in order."""
    if count <= KEPT:
        return torch.arange(count)
    return torch.randperm(count, generator=generator("cpu", "kept"))[:KEPT].sort().values


def reference_of(
    real: Real, extractor: Extractor, look_at: Callable[[Images], Seen | None]
) -> Reference | None:
    """From the statistics that an .npz stores, else from all images; on rank 0, None elsewhere.

    Raises:
        InputError: stored statistics are another extractor's, or damaged.
    """
    images = real.images
    stored = stored_statistics(images, extractor) if isinstance(images, NpzImages) else None
    seen = look_at(images)
    if seen is None:
        return None
    sha256 = images.fingerprint()
    if stored:
        check_width(images, stored, seen.pool.shape[1])
        return Reference(
            images.name, stored.count, sha256, stored.pool, stored.spatial, seen.pool,
            vouched=stored.vouched,
        )  # fmt: skip
    chosen = seen.pool[kept(len(seen))] if isinstance(images, DataSetImages) else seen.pool
    return Reference(images.name, len(images), sha256, seen.moments, seen.spatial, chosen)


@dataclass(frozen=True)
class Stored:
    count: int | None
    pool: Gaussian
    spatial: Gaussian | None
    vouched: bool


def stored_statistics(images: NpzImages, extractor: Extractor) -> Stored | None:
    """mu and sigma of an .npz, as ADM's references have them.

    Raises:
        InputError: they are another extractor's, or damaged.
    """
    if "mu" not in images.names:
        return None
    vouched = check_extractor(images, extractor) or extractor.fingerprint == inception.SHA256
    found = read_arrays(images.path, [*STORED, "count"])
    count = found.get("count")
    if count is not None and (count.shape != () or count.dtype.kind != "i" or count < 1):
        raise InputError(f"{images.path}: count is {count!r}, not a number of images")
    pool = gaussian(images.path, found, "mu", "sigma")
    spatial = gaussian(images.path, found, "mu_s", "sigma_s") if "mu_s" in found else None
    return Stored(None if count is None else int(count), pool, spatial, vouched)


def gaussian(path: Path, found: dict[str, np.ndarray], mean: str, covariance: str) -> Gaussian:
    """Stored statistics in float64.

    Raises:
        InputError: no mean and covariance.
    """
    try:
        arrays = [found[name] for name in (mean, covariance)]
        if any(array.dtype.kind != "f" for array in arrays):
            raise ValueError(f"{arrays[0].dtype} and {arrays[1].dtype}")
        mu, sigma = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"shapes {tuple(mu.shape)} and {tuple(sigma.shape)}")
        if not (mu.isfinite().all() and sigma.isfinite().all()):
            raise ValueError("NaN or infinity")
        largest = sigma.abs().max()
        if (sigma - sigma.T).abs().max() > 1e-5 * largest:
            raise ValueError("not symmetric")
        if torch.linalg.eigvalsh(sigma).min() < -1e-5 * largest * len(mu):
            raise ValueError("negative variances")
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: {mean} and {covariance} are no statistics ({error})") from error
    return Gaussian(mu, sigma)


def check_width(images: Images, stored: Stored, width: int) -> None:
    if len(stored.pool.mean) != width:
        raise InputError(
            f"{images.name} has statistics of {len(stored.pool.mean)} features, "
            f"but the extractor gives {width}"
        )


def make_reference(
    real: Real, extractor: Extractor, ranks: Ranks, out: Path, *, batch: int
) -> Reference | None:
    """Write a reference as ADM's: arr_0 of up to 10,000 images, mu, sigma, mu_s, sigma_s of all;
    and the extractor's fingerprint, the images' number and up to 10,000 held-out images.

    Holds the images that it writes in memory: 2 GB of 256 pixels, and as much held out. As many
    sounds would be 18 GB and clips hundreds: of these the features stand for all but the first 8.
    """
    looking = partial(look_at, extractor=extractor, ranks=ranks, batch=batch)
    reference = reference_of(real, extractor, looking)
    images, held_out, _ = real
    pictures = len(images.shape) == 3
    # Rank 0 alone has looked at the sounds; of several windows each there is no room for all.
    windows = ranks.from_main(lambda: windows_of(reference))
    unseen = 0 if held_out is None or windows > 1 else min(KEPT, len(held_out))  # by training
    seen = looking(held_out, count=unseen) if unseen and not pictures else None
    if reference is None:
        return None
    if pictures:
        arrays = as_arrays("arr_0", images, kept(len(images)), batch)
        arrays |= as_arrays("held_out", held_out, torch.arange(unseen), batch) if unseen else {}
    else:
        arrays = as_features("arr_0", images, reference.pool[kept(len(reference.pool))])
        arrays |= as_features("held_out", held_out, seen.pool, seen.y) if seen else {}
    arrays |= {
        "mu": reference.moments.mean.numpy(),
        "sigma": reference.moments.covariance.numpy(),
        "extractor": np.array(extractor.name),
        "fingerprint": np.array(extractor.fingerprint),
    }
    if windows > 1:
        arrays[WINDOWS] = np.array(windows)
    if reference.count is not None:
        arrays["count"] = np.array(reference.count)
    if images.frame_stride is not None:
        arrays["frame_stride"] = np.array(images.frame_stride)
    if reference.spatial is not None:
        arrays |= {
            "mu_s": reference.spatial.mean.numpy(),
            "sigma_s": reference.spatial.covariance.numpy(),
        }
    with atomic_write(out) as file:
        np.savez(file, **arrays)
    return reference


def windows_of(reference: Reference) -> int:
    """How many rows of its statistics are of one sound; pictures and clips have one."""
    rows = reference.moments.n if isinstance(reference.moments, Moments) else None
    return rows // reference.count if rows and reference.count else 1


def as_arrays(name: str, images: Images, numbers: Tensor, batch: int) -> dict[str, np.ndarray]:
    """Some pictures, by rising numbers, and their classes, as arrays of an .npz."""
    last, channels, *axes = int(numbers[-1]) + 1, *images.shape
    values = np.empty((len(numbers), *axes, channels), np.uint8)  # once: it may be 2 GB
    wanted, labels, done, first = torch.zeros(last, dtype=torch.bool), [], 0, 0
    wanted[numbers] = True
    for raw, y in images.blocks(range(last), batch):
        chosen = wanted[first : first + len(raw)]
        some = raw[chosen].movedim(1, -1).numpy()
        values[done : done + len(some)] = some
        labels.append(None if y is None else y[chosen])
        done, first = done + len(some), first + len(raw)
    y = classes_of_all(labels)
    return {name: values} | ({} if y is None else {LABELS[name]: y.numpy()})


def as_features(
    name: str, images: Images, pool: Tensor, y: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Features (N, D) of sounds or clips, their classes, and the first few as they are."""
    few = next(images.blocks(range(min(SHOWN, len(images))), SHOWN)).raw
    arrays = {name: np.ascontiguousarray(few.movedim(1, -1)), FEATURES[name]: pool.numpy()}
    return arrays | ({} if y is None else {LABELS[name]: y.numpy()})
