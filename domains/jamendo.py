"""MTG-Jamendo as it lies on disk: tables of tags, and an mp3 file for every track."""

import csv
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from runtime.errors import InputError
from runtime.untrusted import MOST_BLOCK, block_of, name_inside, read_text, shown

from .audio import AudioDomain
from .codecs import PIXELS, Codec
from .oobleck import OobleckCodec, OobleckConfig, SoundCodec, config_of
from .sound import decoded, whole
from .sources import NoHeldOut

SPLIT = Path("data", "splits", "split-0")
LAYOUT = f"{SPLIT}/autotagging-{{train,validation,test}}.tsv and audio/00/1009600.mp3"
HEAD = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
CATEGORIES = ("genre", "instrument")  # of the tags that are a condition; mood is none
MOST_TAGS = 10_000  # a table has a column for each
PARTS = ("train", "validation", "test")  # files
HELD_OUT = ("test",)  # of them


@dataclass(frozen=True)
class Recordings:
    """mp3 files and what they are tagged with."""

    root: Path
    paths: np.ndarray  # bytes (N,), below the audio folder
    labels: np.ndarray  # bool (N, K)
    vocabulary: tuple[str, ...]
    rate: int

    decodes = True

    def __len__(self) -> int:
        return len(self.paths)

    def check(self, samples: int) -> None:
        """How long they are is not known before they are decoded, but whether they are there.

        Raises:
            InputError: files are missing.
        """
        absent = [self.path(index) for index in range(len(self)) if not self.path(index).exists()]
        if absent:
            raise InputError(
                f"{len(absent)} of {len(self)} tracks are not there, {absent[0]} the first: get "
                "them with MTG-Jamendo's download.py --dataset raw_30s --type audio --unpack"
            )

    def path(self, index: int) -> Path:
        """The file, or the one of low quality that MTG offers besides."""
        path = self.root / "audio" / self.paths[index].decode()
        low = path.with_suffix(f".low{path.suffix}")
        return path if path.exists() or not low.exists() else low

    def crop(self, index: int, place: float, samples: int) -> np.ndarray:
        """int16 (2, samples) from `place` on, as `sound.decoded` understands it."""
        return decoded(self.path(index), samples, self.rate, place=place)

    def whole(self, index: int) -> np.ndarray:
        """int16 (2, samples) from start to end."""
        return whole(self.path(index), self.rate)

    def followed_by(self, others: "Recordings") -> "Recordings":
        paths = np.concatenate([self.paths, others.paths])
        labels = np.concatenate([self.labels, others.labels])
        return Recordings(self.root, paths, labels, self.vocabulary, self.rate)

    def fingerprint(self) -> str:
        """Of names, sizes and labels."""
        digest = hashlib.sha256(b"\n".join(self.paths.tolist()))
        digest.update(np.array([self.path(index).stat().st_size for index in range(len(self))]))
        digest.update(np.packbits(self.labels).tobytes())
        return digest.hexdigest()


def read_tags(path: Path) -> list[tuple[str, list[str]]]:
    """(PATH, tags of genre and instrument) of every track of a TSV of MTG-Jamendo.

    Raises:
        InputError: no such file, or a line that is no track.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected {LAYOUT} in --data-path")
    try:
        table = csv.reader(
            read_text(path, errors="replace").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    rows = []
    try:
        head = next(table, [])
        if head[:6] != HEAD:
            raise InputError(
                f"{path} is no TSV of MTG-Jamendo: its first line is {shown(head[:6])}"
            )
        for row in table:
            if len(row) < 6:
                raise ValueError(f"{len(row)} columns, a track has 6 or more")
            # A tag is a column of its own: as many as a track has.
            tags = [tag for tag in row[5:] if tag.split("---")[0] in CATEGORIES]
            rows.append((name_inside(row[3]), tags))
    except InputError:
        raise
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}, line {table.line_num}: {error}") from error
    return rows


class Jamendo:
    """The tracks of split 0 as a MusicSource, decoded and encoded in the loop.

    Args:
        form: of the VAE; its rate is that of the data set, to which files are resampled.
        skip_corrupt: where whole tracks are encoded, leave unreadable ones out.
        held_out_parts: are not trained on.
    """

    stored_in = None

    def __init__(
        self, data_path: str | None, vae: str, form: OobleckConfig, cache_dir: str | None, *,
        skip_corrupt: bool = False, held_out_parts: tuple[str, ...] = HELD_OUT,
    ) -> None:  # fmt: skip
        self.data_path, self.vae, self.cache_dir = data_path, vae, cache_dir
        self.form, self.skip_corrupt, self.held_out_parts = form, skip_corrupt, held_out_parts
        self.at_hand = data_path is not None

    @cached_property
    def codec(self) -> Codec:
        return SoundCodec() if self.vae == PIXELS else OobleckCodec.load(self.vae, self.cache_dir)

    @cached_property
    def rows(self) -> dict[str, list[tuple[str, list[str]]]]:
        """What `read_tags` finds in every part.

        Raises:
            InputError: no data.
        """
        if self.data_path is None:
            raise InputError(f"music needs --data-path ROOT with {LAYOUT}")
        folder = Path(self.data_path) / SPLIT
        return {part: read_tags(folder / f"autotagging-{part}.tsv") for part in PARTS}

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """That of all parts together: 87 genres, then 40 instruments."""
        tags = {tag for rows in self.rows.values() for _, tags in rows for tag in tags}
        if len(tags) > MOST_TAGS:
            raise InputError(f"{self.data_path} has {len(tags)} tags, more than {MOST_TAGS}")
        return tuple(sorted(tags))

    def tracks(self, *, held_out: bool) -> Recordings:
        """Those with a genre or an instrument.

        Raises:
            NoHeldOut: all parts are trained on.
            InputError: there are none.
        """
        parts = [part for part in PARTS if (part in self.held_out_parts) == held_out]
        if not parts:
            raise NoHeldOut(f"{self.data_path}: tracks of all parts are trained on")
        place = {tag: number for number, tag in enumerate(self.vocabulary)}
        chosen = [row for part in parts for row in self.rows[part] if row[1]]
        if not chosen:
            raise InputError(
                f"{self.data_path} has no {' or '.join(parts)} track with a genre or instrument"
            )
        if len(chosen) * len(place) > MOST_BLOCK:
            raise InputError(f"{self.data_path} has {len(chosen):,} tracks of {len(place):,} tags")
        labels = np.zeros((len(chosen), len(place)), dtype=bool)
        for row, (_, tags) in zip(labels, chosen, strict=True):
            row[[place[tag] for tag in tags]] = True
        try:
            paths = block_of([path for path, _ in chosen])
        except ValueError as error:
            raise InputError(f"{self.data_path} names {error}") from error
        return Recordings(Path(self.data_path), paths, labels, self.vocabulary, self.form.rate)


def music(
    name: str, *, rate: int, image_size: int, num_classes: int | None, vae: str,
    data_path: str | None, cache_dir: str | None, skip_corrupt: bool, held_out_labels: bool,
    held_out_parts: tuple[str, ...] = HELD_OUT, **_,
) -> AudioDomain:  # fmt: skip
    """The domain of MTG-Jamendo, or of data in its layout, from resolved flags.

    Args:
        rate: of the data set, in samples per second.
        held_out_labels: see AudioDomain.
        held_out_parts: see Jamendo.

    Raises:
        InputError: a VAE that is no Oobleck of this rate.
    """
    form = config_of(vae, cache_dir)
    if form.rate not in (None, rate):
        raise InputError(f"--vae {vae} hears {form.rate} samples per second, and {name} has {rate}")
    form = form._replace(rate=rate)
    source = Jamendo(
        data_path, vae, form, cache_dir, skip_corrupt=skip_corrupt, held_out_parts=held_out_parts
    )
    return AudioDomain.create(
        name, source, image_size=image_size, num_classes=num_classes,
        held_out_labels=held_out_labels,
    )  # fmt: skip
