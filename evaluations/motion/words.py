"""Words as the evaluator reads them: vectors of a vocabulary, and a part of speech for each."""

import pickle
import pickletools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.untrusted import read_array

WIDTH = 300  # of a word's vector
LONGEST = 20  # words of a caption that are read
START, END, UNKNOWN = "sos", "eos", "unk"  # every vocabulary has them
FILES = ("our_vab_data.npy", "our_vab_words.pkl", "our_vab_idx.pkl")

KINDS = (
    "VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV", "Loc_VIP", "Body_VIP",
    "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER",
)  # fmt: skip
# Words whose kind is their own, whatever part of speech they are. text-to-motion's lists.
VIP = {
    "Loc_VIP": """left right clockwise counterclockwise anticlockwise forward back backward up down
        straight curve""",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": """walk run swing pick bring kick put squat throw hop dance jump turn stumble stop
        sit lift lower raise wash stand kneel stroll rub bend balance flap jog shuffle lean rotate
        spin spread climb""",
    "Desc_VIP": """slowly carefully fast careful slow quickly happy angry sad happily angrily
        sadly""",
}
VIP_KIND = {word: kind for kind, words in VIP.items() for word in words.split()}


class Words(NamedTuple):
    """Of B captions, each from `sos` to `eos` and filled up to 22 words."""

    vectors: Tensor  # float32 (B, 22, 300)
    kinds: Tensor  # float32 (B, 22, 15), one-hot
    lengths: Tensor  # int64 (B,), `eos` included


@dataclass(frozen=True)
class Vocabulary:
    vectors: np.ndarray  # float32 (rows, 300)
    rows: dict[str, int]  # word -> its vector

    def words(self, captions: Sequence[Sequence[str]]) -> Words:
        """Captions as tokens, "person/NOUN"."""
        framed = [framed_by(tokens) for tokens in captions]
        read = [[self.row_and_kind(token) for token in tokens] for tokens in framed]
        rows, kinds = np.moveaxis(np.array(read), -1, 0)
        return Words(
            torch.from_numpy(self.vectors[rows]),
            torch.eye(len(KINDS))[torch.from_numpy(kinds)],
            torch.tensor([tokens.index(f"{END}/OTHER") + 1 for tokens in framed]),
        )

    def row_and_kind(self, token: str) -> tuple[int, int]:
        word, _, part = token.rpartition("/")
        if word not in self.rows:
            return self.rows[UNKNOWN], KINDS.index("OTHER")
        kind = VIP_KIND.get(word, part)
        return self.rows[word], KINDS.index(kind if kind in KINDS else "OTHER")


def framed_by(tokens: Sequence[str]) -> list[str]:
    """The first 20 tokens between `sos` and `eos`, filled with `unk`: 22."""
    framed = [f"{START}/OTHER", *tokens[:LONGEST], f"{END}/OTHER"]
    return framed + [f"{UNKNOWN}/OTHER"] * (LONGEST + 2 - len(framed))


def read_vocabulary(folder: Path) -> Vocabulary:
    """our_vab_data.npy, our_vab_words.pkl and our_vab_idx.pkl, as T2M publishes GloVe.

    Raises:
        InputError: one is not there, holds something else, or does not fit the others.
    """
    data, listed, indexed = (folder / name for name in FILES)
    try:
        vectors = read_array(data)
    except (OSError, ValueError) as error:
        raise InputError(f"{data} cannot be read as an array of numbers ({error})") from error
    if vectors.ndim != 2 or vectors.shape[1] != WIDTH or vectors.dtype.kind != "f":
        raise InputError(
            f"{data} is {vectors.dtype} {vectors.shape}; word vectors have {WIDTH} numbers each"
        )
    if not np.isfinite(vectors).all():
        raise InputError(f"{data} has numbers that are not finite: fetch it again")
    words = values_of(listed, list)
    found = values_of(indexed, dict)
    index = dict(zip(found[::2], found[1::2], strict=False))
    rows = {}
    for word in words:
        row = index.get(word)
        if not isinstance(word, str) or not isinstance(row, int) or not 0 <= row < len(vectors):
            raise InputError(
                f"{indexed} has no row of {data.name} for {word!r} of {listed.name}: the three "
                "files belong together"
            )
        rows[word] = row
    missing = {START, END, UNKNOWN} - rows.keys()
    if missing:
        raise InputError(f"{listed} lacks {min(missing)!r}, which every caption needs")
    return Vocabulary(vectors.astype(np.float32), rows)


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    words = sorted(vocabulary.rows, key=vocabulary.rows.get)
    with atomic_write(folder / FILES[0]) as file:
        np.save(file, vocabulary.vectors)
    for name, content in zip(FILES[1:], (words, vocabulary.rows), strict=True):
        with atomic_write(folder / name) as file:
            pickle.dump(content, file)


# A pickle is a program. These files are a flat list of strings and a flat dictionary of strings
# and integers, whose programs name their values in order: they are read here, and never run.
MOST_BYTES = 2**24
CONTAINERS = {"EMPTY_LIST": list, "LIST": list, "EMPTY_DICT": dict, "DICT": dict}
VALUES = {
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "SHORT_BINSTRING",
    "BINSTRING", "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1",
}  # fmt: skip
OF_FORM = {
    "PROTO", "FRAME", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "APPEND", "APPENDS",
    "SETITEM", "SETITEMS", "STOP",
}  # fmt: skip


def values_of(path: Path, kind: type) -> list[Any]:
    """What a pickled flat list, or a flat dictionary (keys and values by turns), holds.

    Raises:
        InputError: not there, damaged, or a pickle of anything else.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        return list(values_in(content, kind))
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is no plain {kind.__name__} of words, and is not read ({error}): fetch GloVe's"
            " files of the evaluator again"
        ) from error


def values_in(program: bytes, kind: type) -> Iterator[Any]:
    """
    Raises:
        ValueError: an operation that a flat container does not need.
    """
    containers = 0
    for operation, value, _ in pickletools.genops(program):
        name = operation.name
        if name in VALUES:
            yield value
        elif CONTAINERS.get(name) is kind and not containers:
            containers += 1
        elif name not in OF_FORM:
            raise ValueError(f"{name} in a pickle")
    if not containers:
        raise ValueError(f"no {kind.__name__} in a pickle")
