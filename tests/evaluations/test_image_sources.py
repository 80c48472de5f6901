"""Images from .npz files, folders and data sets: read as they are needed, refused if damaged."""

import io
import os
import re
import signal
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import domains
from domains import reading
from evaluations.extractors import Features
from evaluations.images.evaluator import Evaluator
from evaluations.images.scores import How
from evaluations.images.sources import DataSetImages, NpzImages, open_images
from runtime.distributed import Ranks
from runtime.errors import InputError

IMAGES = np.random.RandomState(0).randint(0, 256, (10, 4, 6, 3), np.uint8)


class Unpickled:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


class Means:
    """An extractor that sees the mean colors of an image."""

    name, fingerprint, distance = "means", "f" * 64, "fd_means"
    half_distances, reads_labels, rate, device = False, False, None, torch.device("cpu")

    def __call__(self, images):
        return Features(images.float().mean((2, 3)), None)

    def probabilities(self, pool):
        return None


def everything(images, size=4):
    return torch.cat([block.raw for block in images.blocks(range(len(images)), size)])


def npy(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_range_of_any_npz_is_read_in_order(tmp_path, version, compression):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        archive.writestr("arr_0.npy", npy(IMAGES, version))
        archive.writestr("arr_1.npy", npy(np.arange(10)))
    images = NpzImages(tmp_path / "x.npz")
    assert len(images) == 10 and images.shape == (3, 4, 6)
    expected = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    assert everything(images).equal(expected)
    raw, y = (torch.cat(parts) for parts in zip(*images.blocks(range(3, 9), 4), strict=True))
    assert raw.equal(expected[3:9]) and y.tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_file_is_never_held_whole(tmp_path, save):
    save(tmp_path / "x.npz", np.zeros((1000, 256, 256, 3), np.uint8))  # 200 MB
    images = NpzImages(tmp_path / "x.npz")
    tracemalloc.start()
    count = sum(len(block.raw) for block in images.blocks(range(500, 1000), 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 500 and peak < 40e6


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, "no array arr_0 .* but images"),
        ({}, "no array arr_0 .* but nothing"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 is float32"),
        ({"arr_0": IMAGES[0]}, r"arr_0 is uint8 \(4, 6, 3\)"),
        ({"arr_0": IMAGES[..., :2]}, "1 or 3 channels"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "Fortran order"),
        ({"arr_0": np.array([{}])}, "no readable .npz file .*array of object"),
    ],
)
def test_what_are_no_images_is_refused_and_not_unpickled(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=words):
        NpzImages(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(3, np.int64), "arr_1 is int64"),
        (np.zeros(10), "arr_1 is float64"),
        (np.full(10, "cat"), "arr_1 is <U3"),
        (np.full((10, 2), "cat"), "arr_1 is <U3"),
        (np.array([Unpickled()] * 10), "arr_1 cannot be read .*array of object"),
    ],
)
def test_labels_that_are_no_classes_matter_to_those_alone_who_read_them(tmp_path, labels, words):
    """ADM's evaluator never looks at them."""
    np.savez(tmp_path / "x.npz", arr_0=IMAGES, arr_1=labels)
    images = NpzImages(tmp_path / "x.npz")
    assert everything(images).shape == (10, 3, 4, 6) and images.labels is None
    assert re.search(words, images.strange)
    real, alone = open_images(str(tmp_path / "x.npz")), Ranks(0, 1, torch.device("cpu"))
    found = Evaluator(real, Means(), alone, How(False), batch=4, progress=False).evaluate(images)
    assert any(re.search(f"{words}.*passed over", one) for one in found["warnings"])
    reads = Means()
    reads.reads_labels = True
    evaluator = Evaluator(real, reads, alone, How(False), batch=4, progress=False)
    with pytest.raises(InputError, match=f"x.npz: {words}.*mend it or leave it out"):
        evaluator.evaluate(images)


def test_damaged_files_are_named(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, IMAGES)
    content = whole.read_bytes()
    path = tmp_path / "x.npz"
    with pytest.raises(InputError, match="there is no such file"):
        NpzImages(path)
    for part in (b"", content[: len(content) // 2], b"PK\x03\x04 nothing"):
        path.write_bytes(part)
        with pytest.raises(InputError, match="x.npz is no .npz file, or only the beginning"):
            NpzImages(path)
    path.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    with pytest.raises(InputError, match="x.npz is no readable .npz file .*CRC"):
        everything(NpzImages(path))
    for content, words in (
        (npy(IMAGES)[:-1], "in 719 bytes"), (npy(IMAGES) + b" ", "in 721 bytes"),
        (npy(IMAGES[:0]), "has the shape"),
    ):  # fmt: skip
        with zipfile.ZipFile(path, "w") as archive:  # a header that promises another number
            archive.writestr("arr_0.npy", content)
        with pytest.raises(InputError, match=words):
            NpzImages(path)


@pytest.mark.parametrize("method", ["ZIP_STORED", "ZIP_DEFLATED"])
def test_a_flipped_bit_is_found_in_the_end_whoever_read_what(tmp_path, method):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", getattr(zipfile, method)) as archive:
        archive.writestr("arr_0.npy", npy(IMAGES))
    whole = path.read_bytes()
    NpzImages(path).fingerprint()
    for position in range(300, 700, 40):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(InputError, match="x.npz"):
            NpzImages(path).fingerprint()


def test_a_data_set_by_its_name_with_its_held_out_part():
    real = open_images("digits")
    assert (len(real.images), len(real.held_out), real.images.shape) == (1297, 500, (1, 8, 8))
    y = torch.cat([block.y for block in real.held_out.blocks(range(60), 25)])
    assert len(y) == 60 and len(y.unique()) == 10


def test_a_folder_of_images_in_one_size(tmp_path):
    for i, size in enumerate([(8, 8), (16, 8), (9, 12)]):
        Image.fromarray(np.full((*size, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    real = open_images(str(tmp_path), image_size=8)
    assert len(real.images) == 3 and real.held_out is None
    assert everything(real.images)[:, 0, 4, 4].tolist() == [0, 50, 100]


def test_images_of_a_folder_keep_their_size(tmp_path):
    for i, image in enumerate(IMAGES[:, :, :4]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.savez(tmp_path / "x.npz", IMAGES[:, :, :4])
    folder, file = (open_images(str(path)).images for path in (tmp_path, tmp_path / "x.npz"))
    assert everything(folder).equal(everything(file))


class Signalled(torch.utils.data.Dataset):
    """Whose reader is sent what a cluster sends to all processes of a job."""

    decodes = True

    def __len__(self):
        return 4

    def __getitems__(self, draws):
        os.kill(os.getpid(), signal.SIGTERM)
        index = torch.from_numpy(draws.index)
        return domains.Batch(torch.zeros(len(index), 1, 8, 8), index, index, problems=[])


def test_readers_outlive_a_signal_to_all_processes():
    images = DataSetImages("digits", domains.build("digits"), Signalled(), workers=1)
    assert [len(block.raw) for block in images.blocks(range(4), 2)] == [2, 2]
    assert len(list(reading.read(Signalled(), range(4), 2, torch.device("cpu"), workers=1))) == 2


def test_a_corrupt_image_of_a_folder_is_named(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1.png cannot be read") as error:
        everything(open_images(str(tmp_path)).images)
    assert "--skip-corrupt" not in str(error.value)
    with pytest.raises(InputError, match="has no images"):
        (tmp_path / "none").mkdir()
        open_images(str(tmp_path / "none"))


def test_other_images_have_another_fingerprint(tmp_path):
    for name, color in (("a", 0), ("b", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((8, 8 + i * (name == "b"), 3), color, np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    one, other = (open_images(str(tmp_path / name), image_size=8).images for name in "ab")
    before = one.fingerprint()
    assert before != other.fingerprint()
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = open_images(str(tmp_path / "moved"), image_size=8).images
    assert moved.fingerprint() == before


def test_an_unknown_reference_lists_the_choices():
    with pytest.raises(InputError, match="choose from digits"):
        open_images("digitz")
