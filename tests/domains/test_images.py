"""Images: decoding, cropping, flipping, corrupt files, workers and picture sheets."""

import io
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import domains
from domains.decoding import Unreadable, center_crop, decode
from domains.order import Draws
from domains.pictures import save_grid
from runtime.errors import InputError, LocalError


def picture(seed, size=(40, 30), mode="RGB"):
    """A smooth random picture, so that JPEG keeps it nearly."""
    small = np.random.RandomState(seed).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def root(tmp_path):
    """Two classes, one with a subfolder; png, jpg and webp."""
    root = tmp_path / "photos"
    (root / "b" / "more").mkdir(parents=True)
    (root / "a").mkdir()
    picture(0).save(root / "a" / "1.png")
    picture(1).save(root / "a" / "2.JPG")
    picture(2).save(root / "b" / "more" / "3.webp", lossless=True)
    picture(3).save(root / "b" / "4.jpeg")
    (root / "a" / "notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    return root


def folder(root, **flags):
    return domains.build("folder", data_path=str(root), image_size=16, vae="none", **flags)


def read(domain, *indices, seed=0, image_set=None):
    images = image_set or domain.train_set(augment=False)
    return images.__getitems__(draws(*[(index, seed) for index in indices])).checked()


def draws(*pairs):
    """Draws of (index, seed) pairs."""
    return Draws(*np.array(pairs, dtype=np.int64).T)


def one(image_set, index, seed):
    return image_set.__getitems__(draws((index, seed))).raw[0].numpy()


def test_classes_are_the_sorted_subfolders_as_in_image_folder(root):
    from torchvision.datasets import ImageFolder

    domain, theirs = folder(root), ImageFolder(str(root))
    source = domain.train_source
    assert domain.num_classes == 2 and list(source.class_names) == theirs.classes == ["a", "b"]
    ours = [(source.place(i), source.read(i)[1]) for i in range(len(source))]
    assert ours == theirs.samples


def test_imagenet_with_a_data_path_is_an_image_folder(root):
    domain = domains.build("imagenet-1k", data_path=str(root), image_size=16, vae="none")
    assert domain.num_classes == 1000 and len(domain.train_set()) == 4


def test_center_crop_equals_guided_diffusions_formula():
    """Halve by box while twice too large, bicubic to the size, crop; written out with arrays."""
    for size in ((100, 70), (33, 90), (16, 16), (9, 12)):
        image = picture(5, size)
        halves = 0
        while min(size) // 2**halves >= 32:
            halves += 1
        expected = image
        for _ in range(halves):
            box = (expected.width // 2, expected.height // 2)
            expected = expected.resize(box, resample=Image.Resampling.BOX)
        ratio = 16 / min(expected.size)
        scaled = tuple(round(side * ratio) for side in expected.size)
        pixels = np.array(expected.resize(scaled, resample=Image.Resampling.BICUBIC))
        top, left = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
        assert np.array_equal(center_crop(image, 16), pixels[top : top + 16, left : left + 16])


@pytest.mark.parametrize("most", [1023, 65535])
def test_a_pgm_of_more_than_eight_bits_is_scaled(tmp_path, most):
    grey = np.full((30, 40), (most + 1) // 2, ">u2")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.pgm").write_bytes(b"P5 40 30 %d\n" % most + grey.tobytes())
    assert (read(folder(tmp_path), 0).raw == 128).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_eight_bit_rgb(root, mode):
    for file in root.rglob("*.*"):
        file.unlink()
    if mode == "I;16":
        grey = np.full((30, 40), 0x8000, np.uint16)
        Image.fromarray(grey).save(root / "a" / "x.png")
    else:
        ending = "jpg" if mode == "CMYK" else "png"
        picture(7, mode="RGB").convert(mode).save(root / "a" / f"x.{ending}")
    picture(0).save(root / "b" / "y.png")
    raw = read(folder(root), 0).raw
    assert raw.shape == (1, 3, 16, 16) and raw.dtype == torch.uint8
    if mode == "I;16":
        assert (raw == 128).all()
    elif mode in ("L", "LA", "1"):
        assert raw[:, 0].equal(raw[:, 1]) and raw.float().std() > 5


def test_photographs_are_turned_upright(root):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture(0).rotate(180).save(root / "a" / "1.png", exif=exif)
    upright = np.asarray(center_crop(picture(0), 16)).transpose(2, 0, 1)
    assert np.array_equal(read(folder(root), 0).raw[0], upright)


def test_flips_are_a_function_of_the_draw_alone(root):
    domain = folder(root)
    images, plain = domain.train_set(), domain.train_set(augment=False)
    flipped = 0
    for seed in range(200):
        raw = one(images, 1, seed)
        assert np.array_equal(raw, one(images, 1, seed))
        same = np.array_equal(raw, one(plain, 1, seed))
        assert same or np.array_equal(raw[:, :, ::-1], one(plain, 1, seed))
        flipped += not same
    assert flipped == 100, "the seed's lowest bit decides"


def test_grey_data_sets_never_flip():
    digits = domains.build("digits").train_set()
    assert all(np.array_equal(one(digits, 0, s), one(digits, 0, 0)) for s in range(20))


CORRUPTIONS = {
    "truncated": lambda content: content[: len(content) // 2],
    "text": lambda content: b"<html>404</html>",
    "empty": lambda content: b"",
    "flipped bits": lambda content: content[:60] + bytes(b ^ 255 for b in content[60:]),
}


@pytest.mark.parametrize("name", ["a/1.png", "a/2.JPG", "b/more/3.webp"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_corrupt_image_is_named_with_the_flag_that_skips_it(root, name, damage):
    path = root / name
    path.write_bytes(CORRUPTIONS[damage](path.read_bytes()))
    index = ["a/1.png", "a/2.JPG", "b/4.jpeg", "b/more/3.webp"].index(name)
    with pytest.raises(LocalError) as error:
        read(folder(root), index)
    assert str(path) in str(error.value) and "--skip-corrupt" in str(error.value)


def test_a_png_with_damaged_chunks_is_named(root):
    path = root / "a" / "1.png"
    path.write_bytes(CORRUPTIONS["flipped bits"](path.read_bytes()))
    with pytest.raises(LocalError, match="1.png"):
        read(folder(root), 0)


def test_a_decompression_bomb_is_a_corrupt_image(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LocalError, match=r"1\.png.*--skip-corrupt"):
        read(folder(root), 0)


def test_a_strip_too_thin_to_enlarge_is_a_corrupt_image(root):
    """One pixel wide: its resized copy would take gigabytes."""
    Image.new("RGB", (1, 60000)).save(root / "a" / "1.png")
    domain = domains.build("folder", data_path=str(root), image_size=256, vae="none")
    with pytest.raises(LocalError, match=r"1\.png.*too thin"):
        read(domain, 0)


def test_a_postscript_file_is_not_run_whatever_it_is_called(root):
    picture(0).save(root / "a" / "1.png", format="EPS")
    with pytest.raises(LocalError, match=r"1\.png cannot be read as an image \(it is none of"):
        read(folder(root), 0)


def test_damaged_exif_does_not_cost_the_image(root):
    picture(0).save(root / "b" / "4.jpeg", exif=b"Exif\0\0 this is no TIFF header")
    assert read(folder(root), 2).index.tolist() == [2]


def test_an_unreadable_file_is_described_without_an_address_in_memory():
    """So that the sentence of a run is the sentence of its repetition."""
    with pytest.raises(Unreadable) as error:
        decode(io.BytesIO(b"text"), "image 3", 16)
    assert "image 3" in str(error.value) and "0x" not in str(error.value)


def test_a_file_that_vanished_is_named(root):
    domain = folder(root)
    images = domain.train_set()
    (root / "a" / "1.png").unlink()
    with pytest.raises(LocalError, match="1.png"):
        read(domain, 0, image_set=images)


def test_skipping_takes_the_next_readable_image_with_its_class_and_says_so(root):
    (root / "a" / "1.png").write_bytes(b"")
    (root / "a" / "2.JPG").write_bytes(b"")
    batch = read(folder(root, skip_corrupt=True), 0, 1, 2, 3)
    assert batch.index.tolist() == [2, 2, 2, 3] and batch.y.tolist() == [1, 1, 1, 1]
    assert [name for p in batch.problems for name in ("1.png", "2.JPG") if name in p] == [
        "1.png", "2.JPG", "2.JPG",
    ]  # fmt: skip
    assert all("cannot be read" in problem for problem in batch.problems)


def test_skipping_is_the_same_every_time(root):
    (root / "a" / "2.JPG").write_bytes(b"")
    first, again = (read(folder(root, skip_corrupt=True), 0, 1, seed=9) for _ in range(2))
    assert first.raw.equal(again.raw) and first.problems == again.problems != []


def test_skipping_wraps_around_at_the_end(root):
    (root / "b" / "more" / "3.webp").write_bytes(b"")
    assert read(folder(root, skip_corrupt=True), 3).index.tolist() == [0]


def test_skipping_ends_when_every_image_is_corrupt(root):
    for path in root.rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(LocalError, match="4 images in a row cannot be read.*1.png"):
        read(folder(root, skip_corrupt=True), 0)


@pytest.mark.parametrize("skip", [False, True])
def test_spawned_workers_hand_over_images_problems_and_errors(root, skip):
    (root / "b" / "4.jpeg").write_bytes(b"")
    domain = folder(root, skip_corrupt=skip)
    loader = DataLoader(
        domain.train_set(), batch_sampler=[draws((0, 1), (1, 2)), draws((2, 3), (3, 4))],
        collate_fn=domains.as_read, num_workers=1, multiprocessing_context="spawn",
    )  # fmt: skip
    first, second = list(loader)
    expected = domain.train_set().__getitems__(draws((0, 1), (1, 2)))
    assert first.checked().raw.equal(expected.raw) and first.y.equal(expected.y)
    assert first.index.tolist() == [0, 1]
    if skip:
        assert second.checked().index.tolist() == [3, 3] and "4.jpeg" in second.problems[0]
    else:
        assert second.raw.numel() == 0
        with pytest.raises(LocalError) as error:
            second.checked()
        assert "4.jpeg" in str(error.value) and "Traceback" not in str(error.value)


def test_a_spawned_worker_gives_the_batches_of_the_main_process(root):
    domain, sampler = folder(root), [draws((i, i), (3 - i, 9 * i)) for i in range(4)]
    here, there = (
        list(
            DataLoader(
                domain.train_set(), batch_sampler=sampler, collate_fn=domains.as_read,
                num_workers=workers, multiprocessing_context=context,
            )
        )
        for workers, context in ((0, None), (1, "spawn"))
    )  # fmt: skip
    for ours, theirs in zip(here, there, strict=True):
        assert ours.raw.equal(theirs.raw) and ours.y.equal(theirs.y)
        assert ours.index.equal(theirs.index)


def test_every_source_can_be_pickled(root):
    for domain in (folder(root), domains.build("digits")):
        images = pickle.loads(pickle.dumps(domain.train_set()))
        assert np.array_equal(one(images, 1, 0), one(domain.train_set(), 1, 0))


def test_fewer_classes_than_subfolders_are_refused(root):
    with pytest.raises(InputError, match="has 2 classes, but --num-classes is 1"):
        folder(root, num_classes=1).train_set()
    assert folder(root, num_classes=5).num_classes == 5


def test_missing_and_empty_folders_name_path_and_flag(root, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, words in [
        (tmp_path / "nowhere", "no such folder"),
        (empty, "has no images"),
        (root / "a", "no class subfolders"),
    ]:
        with pytest.raises(InputError, match=words) as error:
            folder(path).train_set()
        assert f"--data-path {path}" in str(error.value)
    with pytest.raises(InputError, match="needs --data-path"):
        domains.build("folder", vae="none").train_set()


def test_an_empty_class_folder_is_named(root):
    (root / "c").mkdir()
    with pytest.raises(InputError, match="class folder 'c' has no image"):
        folder(root).train_set()


def test_without_classes_any_layout_of_images_will_do(root):
    assert len(folder(root, num_classes=0).train_set()) == 4
    assert len(folder(root / "a", num_classes=0).train_set()) == 2


def test_a_folder_has_no_held_out_images(root):
    with pytest.raises(InputError, match="no held-out images: give a folder with train/ and val/"):
        folder(root).held_out_set()


def test_the_folder_val_beside_train_is_held_out(root, tmp_path):
    """ImageNet's layout; without knowing it, "train" and "val" would be two classes."""
    for part in ("train", "val"):
        shutil.copytree(root, tmp_path / "parts" / part)
    domain = folder(tmp_path / "parts")
    parts = domain.train_source, domain.held_out_set().source
    for part, source in zip(("train", "val"), parts, strict=True):
        assert list(source.class_names) == ["a", "b"]
        assert all(f"parts/{part}/" in source.place(i) for i in range(len(source)))
    shutil.rmtree(tmp_path / "parts" / "val" / "b")
    with pytest.raises(InputError, match="the classes of train/ are not those of val/"):
        folder(tmp_path / "parts").held_out_set()


def test_sampling_needs_no_data_when_the_classes_are_known(tmp_path):
    domain = folder(tmp_path / "nowhere", num_classes=3)
    assert domain.num_classes == 3 and domain.shape == (3, 16, 16)


def test_the_sheet_shows_every_image_enlarged_without_blur(tmp_path):
    raw = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    save_grid(raw, tmp_path / "new" / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    fourth = sheet[68 : 68 + 64, 2 : 2 + 64]
    assert np.array_equal(fourth[::8, ::8, 0], raw[3, 0]) and np.array_equal(
        fourth[::8, ::8], fourth[7::8, 7::8]
    )
    assert (sheet[68:, 136:] == 255).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_large_color_images_keep_their_size_on_the_sheet(tmp_path):
    domain = domains.build("imagenet-1k", image_size=128, vae="none")
    domain.save_grid(torch.zeros(4, 3, 128, 128, dtype=torch.uint8), tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").size == (2 * 130 + 2, 2 * 130 + 2)
