"""Latents that other projects wrote, read where they lie: REPA's .npy files, LightningDiT's shards.

The files come from elsewhere, so nothing in them is unpickled."""

import operator
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.checkpoint import load_tensors
from runtime.errors import InputError
from runtime.files import retried
from runtime.untrusted import block_of, json_of, name_inside, read_array

from .codecs import PIXELS, Codec
from .decoding import Unreadable
from .latents import MOST_CLASSES, SD_DOWN, SD_SCALE, StoredCodec
from .sources import sha256_over
from .store import gather

VA_VAE_DOWN = 16  # of LightningDiT's VA-VAE
LABELS = "dataset.json"
STATISTICS = "latents_stats.pt"


class RepaFolder:
    """What REPA's preprocessing writes (sihyun-yu/REPA, preprocessing/dataset_tools.py encode).

    A .npy file per image, float32 (2C, h, w), mean beside standard deviation, and {"labels":
    [[file, class], ...]} in dataset.json, in DATA/vae-sd or in the folder itself. The images are
    those of its order: sorted by file name. Like REPA it knows no mirror images, and takes the
    moments of sd-vae-ft-mse, its default, times 0.18215.
    """

    mirrors = False
    made_of = None
    decodes = True  # a file per image
    default_vae = "mse"

    def __init__(self, data_path: str, image_size: int | None = None) -> None:
        self.called = f"--data-path {data_path}"
        self.folder = repa_folder(Path(data_path))
        self.labels = self.read_labels()
        try:
            double, *axes = self.read(0).shape
        except Unreadable as error:
            raise InputError(str(error)) from None
        self.shape = (double // 2, *axes)
        self.image_size = axes[-1] * SD_DOWN
        self.num_classes = int(self.labels.max()) + 1

    def read_labels(self) -> np.ndarray:
        path = self.folder / LABELS
        try:
            pairs = json_of(path)["labels"]
            labels = {name_inside(name): operator.index(label) for name, label in pairs}
            if len(labels) < len(pairs):
                raise ValueError("a file is listed twice")
            names = sorted(labels)
            self.names = block_of(names)
            numbers = np.array([labels[name] for name in names], dtype=np.int64)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{path} does not list files and classes as REPA's: {error}") from None
        if not names or not 0 <= min(labels.values()) <= max(labels.values()) < MOST_CLASSES:
            raise InputError(f"{path} lists no files, or classes below 0 or above {MOST_CLASSES:,}")
        folders = {name.rpartition("/")[0] for name in names}
        there = {
            f"{f}/{e.name}" if f else e.name for f in folders for e in entries(self.folder / f)
        }
        if absent := next((name for name in names if name not in there), None):
            raise InputError(f"{path} lists {absent}, but there is no such file")
        return numbers

    def read(self, index: int) -> np.ndarray:
        """The moments of an image, (2C, h, w)."""
        path = self.folder / self.names[index].decode()
        try:
            moments = read_array(path)
        except (OSError, ValueError) as error:
            raise Unreadable(f"{path} cannot be read as moments ({error})") from error
        if moments.ndim != 3 or moments.dtype.kind != "f":
            raise Unreadable(f"{path} does not hold moments: floats of shape (2C, h, w)")
        channels = len(moments) // 2
        if not moments.size or len(moments) != 2 * channels:
            raise Unreadable(f"{path} has the shape {moments.shape}, not (2C, h, w)")
        if not np.isfinite(moments).all() or moments[channels:].min() < 0:
            raise Unreadable(f"{path} holds a NaN, an infinity or a negative deviation")
        return moments.astype(np.float32, copy=False)

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        return sha256_over(b"\n".join(self.names.tolist()), self.labels)

    def gather(self, index: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moments = [self.read(number) for number in index.tolist()]
        expected = (2 * self.shape[0], *self.shape[1:])
        for number, found in zip(index, moments, strict=True):
            if found.shape != expected:
                path = self.folder / self.names[number].decode()
                raise Unreadable(f"{path} has the shape {found.shape}, the first file {expected}")
        return np.stack(moments), self.labels[index]

    def vae(self, asked: str | None, cache_dir: str | None) -> str:
        if asked == PIXELS:
            raise InputError(f"--vae {PIXELS}, but {self.called} holds latents, no pixels")
        return asked or self.default_vae  # the folder does not say which one it was

    def codec(self, vae: str, cache_dir: str | None) -> StoredCodec:
        return StoredCodec({"name": vae, "scale": SD_SCALE, "shift": 0.0}, vae, cache_dir)


def entries(folder: Path) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error


def repa_folder(folder: Path) -> Path:
    return folder / "vae-sd" if (folder / "vae-sd" / LABELS).is_file() else folder


def is_repa(folder: Path) -> bool:
    """A dataset.json that lists .npy files; lists of images look the same but for the ending."""
    path = repa_folder(folder) / LABELS
    return path.is_file() and b".npy" in path.open("rb").read(4096)


class LightningDiTShards:
    """What LightningDiT's extract_features.py writes (hustvl/LightningDiT).

    Safetensors with `latents` and `latents_flip` (n, C, h, w), one draw from the posterior of the
    image and one of its mirror image, and `labels` (n,); beside them latents_stats.pt with the
    mean and deviation of each channel (1, C, 1, 1). The model's input is (latent - mean) /
    deviation, as its ImgLatentDataset gives it for a VA-VAE; there is nothing left to draw.
    Neither the VAE nor the size of the images is recorded: --vae names the VAE as an
    AutoencoderKL, without which there are no pictures, and 16 pixels per latent are assumed.
    """

    mirrors = True
    made_of = None
    decodes = False

    def __init__(self, data_path: str | None, image_size: int | None) -> None:
        if data_path is None or not (Path(data_path) / STATISTICS).is_file():
            raise InputError(
                "--dataset_name lightningdit needs --data-path, the folder of LightningDiT's "
                f"safetensors and {STATISTICS}, for training and for sampling: the normalization "
                "of its latents is there"
            )
        self.folder, self.called = Path(data_path), f"--data-path {data_path}"
        self.mean, self.std = self.read_statistics()
        self.shape = tuple(self.arrays[0].shape[1:])
        self.image_size = image_size or self.shape[-1] * VA_VAE_DOWN
        if len(self.mean) != self.shape[0]:
            raise InputError(
                f"{self.folder / STATISTICS} has {len(self.mean)} channels, the latents "
                f"{self.shape[0]}"
            )

    def read_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (C, 1, 1)."""
        path = self.folder / STATISTICS
        found = load_tensors(path)
        try:
            mean, std = (found[name].float().reshape(-1, 1, 1) for name in ("mean", "std"))
            if mean.shape != std.shape or not mean.isfinite().all() or not (std > 0).all():
                raise ValueError("not a finite mean and a positive deviation per channel")
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{path} holds no statistics of LightningDiT's: {error}") from None
        return mean, std

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @cached_property
    def shards(self) -> list[dict[str, np.ndarray]]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        shards = []
        for path in self.files:
            try:
                shard = {
                    name: tensor.numpy()
                    for name, tensor in retried(lambda path=path: load_file(path), path).items()
                }
                plain, mirrored = shard["latents"], shard["latents_flip"]
                if plain.ndim != 4 or mirrored.shape != plain.shape or not plain.size:
                    raise ValueError(f"latents {plain.shape} and latents_flip {mirrored.shape}")
                if plain.dtype.kind != "f" or mirrored.dtype != plain.dtype:
                    raise ValueError(f"latents of {plain.dtype}, latents_flip of {mirrored.dtype}")
                if shard["labels"].shape != plain.shape[:1] or shard["labels"].dtype != np.int64:
                    raise ValueError(f"labels {shard['labels'].shape} of {shard['labels'].dtype}")
                first = shards[0]["latents"] if shards else plain
                if (plain.shape[1:], plain.dtype) != (first.shape[1:], first.dtype):
                    raise ValueError(f"latents {plain.shape} {plain.dtype} unlike the first file's")
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is no shard of LightningDiT's: {error}") from None
            shards.append(shard)
        if not shards:
            raise InputError(f"{self.called} has no *.safetensors of LightningDiT's")
        return shards

    @cached_property
    def arrays(self) -> list[np.ndarray]:
        """Images and mirror images of every shard in turn."""
        return [shard[name] for shard in self.shards for name in ("latents", "latents_flip")]

    @cached_property
    def ends(self) -> np.ndarray:
        return np.cumsum([len(shard["labels"]) for shard in self.shards])

    @cached_property
    def labels(self) -> np.ndarray:
        labels = np.concatenate([shard["labels"] for shard in self.shards])
        if not 0 <= labels.min() <= labels.max() < MOST_CLASSES:
            raise InputError(f"{self.called} has a class id below 0 or above {MOST_CLASSES:,}")
        return labels

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return int(self.ends[-1])

    def fingerprint(self) -> str:
        files = [(path.name, path.stat().st_size) for path in self.files]
        return sha256_over(repr(files).encode(), self.labels)

    def gather(self, index: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shard = np.searchsorted(self.ends, index, side="right")
        row = index - np.concatenate([[0], self.ends])[shard]
        latents = gather(self.arrays, 2 * shard + flipped, row)
        finite = np.isfinite(latents).reshape(len(index), -1).all(1)
        if not finite.all():
            raise Unreadable(f"latents {index[~finite][0]} of {self.called} are not finite")
        return latents, self.labels[index]

    def vae(self, asked: str | None, cache_dir: str | None) -> str:
        return asked or PIXELS

    def codec(self, vae: str, cache_dir: str | None) -> Codec:
        return NormalizedCodec(self.mean, self.std, vae, cache_dir)


class NormalizedCodec(StoredCodec):
    """Latents that are drawn already, normalized by channel.

    Args:
        mean, std: (C, 1, 1).
    """

    uses_noise = False

    def __init__(self, mean: Tensor, std: Tensor, name: str, cache_dir: str | None) -> None:
        statistics = {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
        super().__init__({"name": name, **statistics}, name, cache_dir)
        self.mean, self.std = mean, std

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return (stored.float() - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        if self.name == PIXELS:
            raise InputError(
                "LightningDiT's latents do not say which VAE made them: give --vae the folder of "
                "that VAE as an AutoencoderKL"
            )
        return self.vae.pictures(x.float() * self.std + self.mean)

    def to(self, device: torch.device | str) -> "NormalizedCodec":
        super().to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


def is_lightningdit(folder: Path) -> bool:
    return (folder / STATISTICS).is_file() and any(folder.glob("*.safetensors"))


def unnamed_lightningdit(data_path: str, image_size: int | None) -> LightningDiTShards:
    """Refuses: a checkpoint records the name, and only this one asks for the folder in sampling."""
    raise InputError(
        f"--data-path {data_path} holds LightningDiT's shards: use --dataset_name lightningdit"
    )
