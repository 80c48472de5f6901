"""Tiny ImageNet in the folder that its authors publish, made small: what is read, what refused."""

import numpy as np
import pytest
import torch
from PIL import Image

import domains
from runtime.errors import InputError

WNIDS = ("n03", "n01", "n02")  # as the published file, not sorted
VAL = (("val_0.JPEG", "n02"), ("val_1.JPEG", "n01"), ("val_2.JPEG", "n02"))


def picture(seed, mode="RGB"):
    small = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).convert(mode)


def write_annotations(root, rows):
    lines = [f"{file}\t{wnid}\t0\t32\t44\t62\n" for file, wnid in rows]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.fixture
def root(tmp_path):
    """Three classes of two photos, of which one is grey, and three photos held out."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius\nn02\tnail\n")
    for number, wnid in enumerate(WNIDS):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
        for i in range(2):
            grey = number == i == 0
            picture(2 * number + i, "L" if grey else "RGB").save(folder / f"{wnid}_{i}.JPEG")
    for number, (file, _) in enumerate(VAL):
        picture(10 + number).save(root / "val" / "images" / file)
    write_annotations(root, VAL)
    (root / "test" / "images").mkdir(parents=True)
    picture(20).save(root / "test" / "images" / "test_0.JPEG")
    return root


def tiny(root, **flags):
    return domains.build("tiny-imagenet", data_path=str(root), **flags)


def all_of(image_set):
    return image_set.__getitems__(domains.Draws.plain(range(len(image_set)))).checked()


def refusal(root, *, held_out=False, **flags):
    domain = tiny(root, **flags)
    with pytest.raises(InputError) as error:
        domain.held_out_set() if held_out else domain.train_set()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_is_200_classes_of_64_pixels_unless_flags_say_otherwise():
    domain = domains.build("tiny-imagenet")
    assert domain.raw_shape == domain.shape == (3, 64, 64) and domain.num_classes == 200
    assert domain.hflip and domain.guided_channels is None
    assert tiny("x", image_size=256, vae="ema").shape == (4, 32, 32)


def test_training_photos_are_numbered_as_image_folder_numbers_train(root):
    from torchvision.datasets import ImageFolder

    theirs, domain = ImageFolder(str(root / "train")), tiny(root)
    source = domain.train_source
    ours = [(source.place(i), source.read(i)[1]) for i in range(len(source))]
    assert ours == theirs.samples
    batch = all_of(domain.train_set(augment=False))
    expected = [np.asarray(image).transpose(2, 0, 1) for image, _ in theirs]
    assert np.array_equal(batch.raw, np.stack(expected))  # grey photos are color like any other


def test_held_out_photos_have_the_classes_of_the_annotations(root):
    batch = all_of(tiny(root).held_out_set())
    assert batch.y.tolist() == [1, 0, 1]
    for raw, (file, _) in zip(batch.raw, VAL, strict=True):
        with Image.open(root / "val" / "images" / file) as image:
            assert np.array_equal(raw, np.asarray(image).transpose(2, 0, 1))


def test_classes_are_those_of_wnids_and_called_by_their_words(root):
    domain = tiny(root)
    assert domain.train_source.class_names == ("goldfish, Carassius", "nail", "n03")
    (root / "words.txt").unlink()
    assert tiny(root).train_source.class_names == ("n01", "n02", "n03")
    assert "has 3 classes, but --num-classes is 2" in refusal(root, num_classes=2)


def test_without_classes_every_label_is_zero(root):
    domain = tiny(root, num_classes=0)
    for image_set, count in ((domain.train_set(), 6), (domain.held_out_set(), 3)):
        batch = all_of(image_set)
        assert len(batch.y) == count and not batch.y.any()


def test_a_photo_asked_for_larger_is_whole_and_bicubic(root):
    raw = all_of(tiny(root, image_size=256).held_out_set()).raw[0]
    with Image.open(root / "val" / "images" / VAL[0][0]) as image:
        larger = image.resize((256, 256), Image.Resampling.BICUBIC)
    assert torch.equal(raw, torch.from_numpy(np.array(larger)).permute(2, 0, 1))


def test_the_fingerprint_knows_held_out_classes(root):
    before = tiny(root).held_out_set().source.fingerprint()
    assert tiny(root).held_out_set().source.fingerprint() == before
    write_annotations(root, [(VAL[0][0], "n01"), *VAL[1:]])
    assert tiny(root).held_out_set().source.fingerprint() != before


def test_a_missing_or_misplaced_folder_is_shown_the_layout(root, tmp_path):
    assert "needs --data-path" in str(
        pytest.raises(InputError, domains.build("tiny-imagenet").train_set).value
    )
    assert "there is no such folder" in refusal(tmp_path / "nowhere")
    for words in ("train/WNID/images/*.JPEG", f"give --data-path {root}"):
        assert words in refusal(tmp_path)
    assert "give --data-path" not in refusal(root / "train")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([VAL[0], ("val_9.JPEG", "n01")], "line 2: there is no val_9.JPEG in"),
        ([VAL[0], VAL[1], ("val_2.JPEG", "n99")], "line 3: 'n99' is no class of wnids.txt"),
        ([], "names no images"),
    ],
)
def test_annotations_that_do_not_fit_are_refused_by_line(root, rows, words):
    write_annotations(root, rows)
    said = refusal(root, held_out=True)
    assert words in said and "val_annotations.txt" in said


def test_damaged_lists_are_refused_by_name(root):
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG n01\n")
    assert "line 1: '' is no class" in refusal(root, held_out=True)
    annotations.write_bytes(b"\xff\xfe\x00")
    assert f"{annotations} cannot be read" in refusal(root, held_out=True)
    annotations.unlink()
    assert f"{annotations} cannot be read (No such file" in refusal(root, held_out=True)
    (root / "wnids.txt").write_text("\n")
    assert "wnids.txt names no class" in refusal(root)


def test_a_class_without_photos_is_refused_by_name(root):
    with (root / "wnids.txt").open("a") as file:
        file.write("n04\n")
    said = refusal(root)
    assert "names n04" in said and "n04/images has no images" in said


def test_a_corrupt_photo_is_named(root):
    (root / "val" / "images" / "val_1.JPEG").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"val_1\.JPEG cannot be read.*--skip-corrupt"):
        all_of(tiny(root).held_out_set())
