"""Music: MTG-Jamendo's tracks and tags, crops of them, and the latents of an Oobleck VAE."""

import csv
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.random import generator

from .codecs import PIXELS, Codec
from .decoding import Unreadable
from .domain import Batch, Domain
from .oobleck import OobleckCodec, SoundCodec, config_of
from .order import Draws
from .sound import decoded, save_sounds

SPLIT = Path("data", "splits", "split-0")
LAYOUT = f"{SPLIT}/autotagging-{{train,validation,test}}.tsv and audio/00/1009600.mp3"
CATEGORIES = ("genre", "instrument")  # of the tags that are a condition; mood is none
PARTS = {False: ("train", "validation"), True: ("test",)}  # held out? -> files


@dataclass(frozen=True)
class Tracks:
    """Files and what they are tagged with."""

    root: Path
    paths: np.ndarray  # bytes (N,), below the audio folder
    labels: np.ndarray  # bool (N, K)
    vocabulary: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The file, or the one of low quality that MTG offers besides."""
        path = self.root / "audio" / self.paths[index].decode()
        low = path.with_suffix(f".low{path.suffix}")
        return path if path.exists() or not low.exists() else low

    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"\n".join(self.paths.tolist()))
        digest.update(np.packbits(self.labels).tobytes())
        return digest.hexdigest()


def read_tags(path: Path) -> list[tuple[str, list[str]]]:
    """(PATH, tags of genre and instrument) of every track of a TSV of MTG-Jamendo.

    Raises:
        InputError: no such file, or a line that is no track.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected {LAYOUT} in --data-path")
    rows = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        head = next(reader, [])
        if head[:6] != ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]:
            raise InputError(f"{path} is no TSV of MTG-Jamendo: its first line is {head[:6]}")
        for number, row in enumerate(reader, start=2):
            if len(row) < 6:
                raise InputError(
                    f"{path}, line {number}: {len(row)} columns, a track has 6 or more"
                )
            if Path(row[3]).is_absolute() or ".." in Path(row[3]).parts:
                raise InputError(f"{path}, line {number}: {row[3]} leads out of the audio folder")
            # A tag is a column of its own: as many as a track has.
            rows.append((row[3], [tag for tag in row[5:] if tag.split("---")[0] in CATEGORIES]))
    return rows


def tracks(data_path: str | None, *, held_out: bool) -> Tracks:
    """Tracks of split 0 with a tag of genre or instrument: train and validation, or the test part.

    The vocabulary is that of all parts together: 87 genres, then 40 instruments.

    Raises:
        InputError: no data, or tracks whose files are not there.
    """
    if data_path is None:
        raise InputError(f"--dataset_name mtg-jamendo needs --data-path ROOT with {LAYOUT}")
    root = Path(data_path)
    read = {
        part: read_tags(root / SPLIT / f"autotagging-{part}.tsv")
        for parts in PARTS.values()
        for part in parts
    }
    vocabulary = tuple(sorted({tag for rows in read.values() for _, tags in rows for tag in tags}))
    place = {tag: number for number, tag in enumerate(vocabulary)}
    chosen = [row for part in PARTS[held_out] for row in read[part] if row[1]]
    if not chosen:
        raise InputError(f"{root} has no {' or '.join(PARTS[held_out])} track with a genre or "
                         "instrument")  # fmt: skip
    labels = np.zeros((len(chosen), len(vocabulary)), dtype=bool)
    for row, (_, tags) in zip(labels, chosen, strict=True):
        row[[place[tag] for tag in tags]] = True
    found = Tracks(root, np.array([path.encode() for path, _ in chosen]), labels, vocabulary)
    missing = [found.path(index) for index in range(len(found)) if not found.path(index).exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(found)} tracks are not there, {missing[0]} the first: get "
            "them with MTG-Jamendo's download.py --dataset raw_30s --type audio --unpack"
        )
    return found


class Crops(torch.utils.data.Dataset):
    """A crop of a track, where its Draws say: int16 (B, 2, samples) and multi-hot tags (B, K)."""

    decodes = True

    def __init__(self, found: Tracks, samples: int, rate: int, *, labeled: bool) -> None:
        self.source, self.samples, self.rate, self.labeled = found, samples, rate, labeled

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: Draws) -> Batch:
        sounds = []
        for index, seed in zip(draws.index.tolist(), draws.seed.tolist(), strict=True):
            place = torch.rand((), generator=generator("cpu", "crop", seed, index)).item()
            try:
                path = self.source.path(index)
                sounds.append(decoded(path, self.samples, self.rate, place=place))
            except Unreadable as error:
                return Batch.failed(str(error))
        labels = self.source.labels[draws.index]
        y = torch.from_numpy(labels).float() if self.labeled else torch.zeros(len(labels))
        index = torch.from_numpy(draws.index)
        return Batch(torch.from_numpy(np.stack(sounds)), y, index, problems=[])


@dataclass(frozen=True)
class AudioDomain(Domain):
    """Crops of stereo music in the latents of an Oobleck VAE, under several labels at once."""

    rate: int = 44_100
    asked_classes: int | None = None  # None: as many as the data have
    data_path: str | None = None
    cache_dir: str | None = None

    @classmethod
    def create(
        cls, name: str, *, image_size: int, num_classes: int | None, vae: str,
        data_path: str | None, cache_dir: str | None, **_,
    ) -> "AudioDomain":  # fmt: skip
        """
        Args:
            image_size: samples of a crop: 441,000 are 10 seconds.

        Raises:
            InputError: a crop shorter than a latent, or a VAE that is no Oobleck.
        """
        config = config_of(vae, cache_dir)
        length = image_size // config.hop
        if length < 1:
            raise InputError(
                f"--image-size {image_size}: a crop is {config.hop} samples or more, one latent"
            )
        return cls(
            name, (config.audio_channels, image_size), (config.channels, length), vae, config.rate,
            num_classes, data_path, cache_dir,
        )  # fmt: skip

    @cached_property
    def codec(self) -> Codec:
        return SoundCodec() if self.vae == PIXELS else OobleckCodec.load(self.vae, self.cache_dir)

    @property
    def multi_label(self) -> bool:
        return self.num_classes > 0

    @cached_property
    def train_tracks(self) -> Tracks:
        return tracks(self.data_path, held_out=False)

    @property
    def num_classes(self) -> int:
        if self.asked_classes is not None:
            return self.asked_classes
        return len(self.train_tracks.vocabulary)

    def train_set(self, *, augment: bool = True) -> Crops:
        return self.crops(self.train_tracks)

    def held_out_set(self) -> Crops:
        return self.crops(tracks(self.data_path, held_out=True))

    def crops(self, found: Tracks) -> Crops:
        if self.num_classes not in (0, len(found.vocabulary)):
            raise InputError(
                f"{self.name} has {len(found.vocabulary)} labels, not --num-classes "
                f"{self.num_classes}: leave it out, or give 0 for none"
            )
        return Crops(found, self.raw_shape[1], self.rate, labeled=self.multi_label)

    @property
    def choices(self) -> int:
        """Where the data are at hand, a sample gets the labels of one of their tracks; else one
        label."""
        return len(self.train_tracks) if self.data_path else self.num_classes

    def condition(self, drawn: Tensor) -> Tensor:
        if not self.multi_label:
            return torch.zeros_like(drawn)
        rows = self.train_tracks.labels if self.data_path else np.eye(self.num_classes, dtype=bool)
        return torch.from_numpy(rows[drawn.cpu().numpy()]).float().to(drawn.device)

    @property
    def rounding(self) -> dict[str, str]:
        return {"int16": "32768 x, rounded, clamped"}

    def arrays(self, raw: Tensor) -> np.ndarray:
        """int16 (B, samples, channels), as sound files have it."""
        return raw.transpose(1, 2).cpu().numpy()

    def save_grid(self, raw: Tensor, path: str | Path, columns: int | None = None) -> None:
        """A sheet of spectrograms, and NAME-00.wav, ... beside it."""
        save_sounds(raw, Path(path), self.rate, columns)
