"""Captions as T2M's evaluator reads them, and vocabularies whose pickles are never run."""

import os
import pickle
import random
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from evaluations.motion.words import (
    FILES,
    KINDS,
    LONGEST,
    MOST_BYTES,
    VIP_KIND,
    Vocabulary,
    read_vocabulary,
    values_of,
    write_vocabulary,
)
from runtime.errors import InputError

LISTED = ["sos", "eos", "unk", "a", "person", "walk", "left", "slowly", "hand", "chair"]


@pytest.fixture
def vocabulary():
    vectors = np.random.default_rng(0).normal(size=(len(LISTED), 300)).astype(np.float32)
    return Vocabulary(vectors, {word: row for row, word in enumerate(LISTED)})


@pytest.fixture
def folder(tmp_path, vocabulary):
    write_vocabulary(tmp_path, vocabulary)
    return tmp_path


def read_by(vocabulary, *tokens):
    """The words and kinds that a caption is read as, and its length."""
    words = vocabulary.words([tokens])
    same = vocabulary.vectors == words.vectors[0].numpy()[:, None]
    rows = same.all(-1).argmax(1)
    kinds = [KINDS[int(one.argmax())] for one in words.kinds[0]]
    assert (words.kinds.sum(-1) == 1).all()
    return list(zip([LISTED[row] for row in rows], kinds, strict=True)), int(words.lengths)


# Tokens


def test_a_caption_is_framed_and_filled_up(vocabulary):
    read, length = read_by(vocabulary, "a/DET", "person/NOUN")
    assert read[:4] == [("sos", "OTHER"), ("a", "DET"), ("person", "NOUN"), ("eos", "OTHER")]
    assert read[4:] == [("unk", "OTHER")] * 18 and len(read) == 22
    assert length == 4  # not 22, which MDM's first evaluation took


@pytest.mark.parametrize(
    ("token", "read"),
    [
        ("walk/VERB", ("walk", "Act_VIP")),  # VIP words override their part of speech
        ("left/VERB", ("left", "Loc_VIP")),
        ("hand/NOUN", ("hand", "Body_VIP")),
        ("chair/NOUN", ("chair", "Obj_VIP")),
        ("slowly/ADV", ("slowly", "Desc_VIP")),
        ("dumbbell/NOUN", ("unk", "OTHER")),  # a VIP word that the vocabulary lacks
        ("flurp/VERB", ("unk", "OTHER")),
        ("person/CCONJ", ("person", "OTHER")),  # a part of speech of spaCy's, but none of the 15
        ("person/VERB", ("person", "VERB")),
        ("person", ("unk", "OTHER")),
    ],
)
def test_a_token_is_read_as_published(vocabulary, token, read):
    assert read_by(vocabulary, token)[0][1] == read


@pytest.mark.parametrize(("count", "length"), [(19, 21), (20, 22), (21, 22), (40, 22)])
def test_of_a_long_caption_the_first_20_words_are_read(vocabulary, count, length):
    tokens = ["person/NOUN"] * 20 + ["walk/VERB"] * (count - 20)
    read, found = read_by(vocabulary, *tokens[:count])
    assert len(read) == LONGEST + 2 and found == length
    assert read[found - 1] == ("eos", "OTHER") and ("walk", "Act_VIP") not in read


def test_captions_of_a_batch_are_read_one_by_one(vocabulary):
    captions = [["a/DET"], ["person/NOUN", "walk/VERB"], ["slowly/ADV"] * 30]
    together = vocabulary.words(captions)
    assert together.vectors.shape == (3, 22, 300) and together.kinds.shape == (3, 22, 15)
    for i, caption in enumerate(captions):
        for part, whole in zip(vocabulary.words([caption]), together, strict=True):
            assert part[0].equal(whole[i])


def test_the_lists_of_vip_words_are_the_published_ones():
    counts = {kind: list(VIP_KIND.values()).count(kind) for kind in KINDS if "VIP" in kind}
    assert counts == {"Loc_VIP": 12, "Body_VIP": 13, "Obj_VIP": 10, "Act_VIP": 34, "Desc_VIP": 12}
    assert len(KINDS) == 15 and KINDS[-1] == "OTHER" and KINDS[9:14] == tuple(counts)
    # In the order of the columns of the published `pos_emb`.
    assert KINDS[:9] == ("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV")
    assert tuple(counts) == ("Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP")


# Files


def test_a_vocabulary_comes_back_and_is_plain_pickle(folder, vocabulary):
    again = read_vocabulary(folder)
    assert again.rows == vocabulary.rows and (again.vectors == vocabulary.vectors).all()
    for name, content in zip(FILES[1:], (LISTED, vocabulary.rows), strict=True):
        with open(folder / name, "rb") as file:
            assert pickle.load(file) == content


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    words = [f"word{i}é" for i in range(2500)]  # more than one batch of pickle's, and of its memo
    index = {word: 70_000 + row for row, word in enumerate(words)}
    for content, values in ((words, words), (index, [x for item in index.items() for x in item])):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        assert values_of(tmp_path / "x.pkl", type(content)) == values


class Call:
    """Pickled, a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested(depth):
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


BOMBS = {
    "a call": lambda mark: pickle.dumps(Call(os.system, f"touch {mark}")),
    "a call in a list": lambda mark: pickle.dumps(["sos", Call(os.system, f"touch {mark}")]),
    "a call, protocol 0": lambda mark: pickle.dumps([Call(os.system, f"touch {mark}")], 0),
    "an evaluation": lambda mark: pickle.dumps(Call(eval, f"open({str(mark)!r}, 'w')")),
    "a call by hand": lambda mark: b"cos\nsystem\n(S'touch %s'\ntR." % str(mark).encode(),
    "an instance": lambda mark: b"(ios\nsystem\nS'touch %s'\n." % str(mark).encode(),
    "a harmless class": lambda mark: pickle.dumps(OrderedDict(sos=0)),
    "an array": lambda mark: pickle.dumps(np.arange(3)),
    "numpy's strings": lambda mark: pickle.dumps([np.str_("sos")]),
    "an extension": lambda mark: b"\x80\x02]\x82\x01a.",
    "a persistent id": lambda mark: b"\x80\x02]U\x01xQa.",
    "a build": lambda mark: b"\x80\x02]}b.",
    "floats": lambda mark: pickle.dumps([1.5]),
    "lists in a list": lambda mark: pickle.dumps([["sos"]]),
    "ten thousand lists": lambda mark: nested(10_000),
    "a million lists": lambda mark: nested(10**6),
    "a string of 2^60": lambda mark: b"\x80\x04]\x8d" + (2**60).to_bytes(8, "little") + b"x.",
    "a frame of 2^60": lambda mark: b"\x80\x04\x95" + (2**60).to_bytes(8, "little"),
    "an integer of a megabyte": lambda mark: b"\x80\x02]\x8b\x00\x00\x10\x00" + b"\x01" * 2**20,
    "digits": lambda mark: b"]L" + b"9" * 10**6 + b"L\na.",
    "a memo of 2^31": lambda mark: b"\x80\x02]r\xff\xff\xff\x7f.",
    "memo and repeat": lambda mark: b"\x80\x02]X\x01\x00\x00\x00xq\x00h\x00e.",
    "more than 16 MB": lambda mark: pickle.dumps(["x" * MOST_BYTES]),
    "nothing": lambda mark: b"",
    "text": lambda mark: b"sos eos unk",
    "a dictionary": lambda mark: pickle.dumps({"sos": 0}),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_of_anything_else_is_refused_and_not_run(folder, bomb, tmp_path):
    mark = tmp_path / "it ran"
    (folder / FILES[1]).write_bytes(BOMBS[bomb](mark))
    tracemalloc.start()
    with pytest.raises(InputError, match=FILES[1]) as error:
        read_vocabulary(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not mark.exists() and peak < 4 * MOST_BYTES
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_damaged_pickles_are_refused_or_read_but_never_crash(folder):
    whole = (folder / FILES[1]).read_bytes()
    chance = random.Random(0)
    damaged = [whole[:end] for end in range(len(whole))]
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        (folder / FILES[1]).write_bytes(content)
        try:
            read_vocabulary(folder)
        except InputError:
            refused += 1
    assert refused > len(damaged) / 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (FILES[1], [*LISTED, "more"], "no row .* for 'more'"),
        (FILES[1], LISTED[1:], "lacks 'sos'"),
        (FILES[1], ["sos", "eos", 2], "no row .* for 2"),
        (FILES[2], {word: len(LISTED) for word in LISTED}, "no row .* for 'sos'"),
        (FILES[2], {word: -1 for word in LISTED}, "no row"),
        (FILES[2], {word: word.upper() for word in LISTED}, "no row"),
        (FILES[2], {}, "no row"),
        (FILES[0], np.zeros((10, 50)), r"float64 \(10, 50\); word vectors have 300"),
        (FILES[0], np.full((10, 300), np.nan), "not finite"),
        (FILES[0], np.array([{}]), "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_named(folder, name, content, words):
    if name.endswith("npy"):
        np.save(folder / name, content)
    else:
        (folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=words):
        read_vocabulary(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_there_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        read_vocabulary(folder)
