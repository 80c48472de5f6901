"""Images with a class per pixel: VOC, COCO and the stand-ins, from files in the real formats."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import domains
from domains.sources import FASHION_FOLDER
from evaluations.segmentation.data import BACKGROUND, IGNORED, MASKS, VOC_CLASSES, open_masks
from evaluations.segmentation.shapes import pixels_of
from runtime.errors import InputError, LocalError

SIZE = (40, 30)  # width and height of the images here


def picture(seed, size=SIZE, mode="RGB"):
    small = np.random.RandomState(seed).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def opened(name, root, *, size=None, held_out=False):
    return open_masks(name, None if root is None else str(root), size or 10, held_out=held_out)


def refusal(name, root, *, number=None, **flags):
    """The sentence for bad files, said on opening or, with a number, on reading."""
    if number is None:
        with pytest.raises(InputError) as error:
            opened(name, root, **flags)
    else:
        masks = opened(name, root, **flags)
        with pytest.raises(LocalError) as error:
            masks.__getitems__([number])
    assert "\n" not in str(error.value)
    return str(error.value)


# Pascal VOC


def write_mask(path, classes):
    image = Image.fromarray(classes.astype(np.uint8), mode="P")
    image.putpalette(np.random.RandomState(0).randint(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


def voc_mask():
    """A cat with a border on background, and a corner of a person."""
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[5:25, 8:30] = IGNORED
    mask[7:23, 10:28] = 8
    mask[26:, 34:] = 15
    return mask


@pytest.fixture
def voc(tmp_path):
    """Two images to train on and one held out; and where JPEGImages and the rest are."""
    inner = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (inner / folder).mkdir(parents=True)
    parts = {"train": ("2007_000032", "2007_000039"), "val": ("2007_000033",)}
    for part, names in parts.items():
        lines = "".join(f"{name}\n" for name in names)
        (inner / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(lines)
        for name in names:
            picture(int(name[-2:])).save(inner / "JPEGImages" / f"{name}.jpg")
            write_mask(inner / "SegmentationClass" / f"{name}.png", voc_mask())
    return tmp_path / "data", inner


def test_voc_images_and_masks_are_resized_as_torchvision_does(voc):
    from torchvision.datasets import VOCSegmentation
    from torchvision.transforms import InterpolationMode, Resize

    root, _ = voc
    for part, held_out in (("train", False), ("val", True)):
        masks = opened("voc", root, size=17, held_out=held_out)
        theirs = VOCSegmentation(root, image_set=part)
        images, classes = masks.__getitems__(range(len(masks)))
        assert len(masks) == len(theirs) and images.dtype == torch.uint8
        assert classes.dtype == torch.int64 and classes.shape == (len(theirs), 17, 17)
        for i, (image, target) in enumerate(theirs):
            image = np.asarray(Resize((17, 17))(image))
            target = np.asarray(Resize((17, 17), InterpolationMode.NEAREST)(target))
            assert np.array_equal(images[i].permute(1, 2, 0), image)
            assert np.array_equal(classes[i], target)


def test_voc_borders_are_ignored_and_classes_keep_their_numbers(voc):
    masks = opened("voc", voc[0], size=30)
    _, classes = masks.__getitems__([1])
    assert classes.unique().tolist() == [0, 8, 15, IGNORED]
    assert masks.class_names == VOC_CLASSES and len(VOC_CLASSES) == 21
    assert [VOC_CLASSES[i] for i in (0, 8, 15, 20)] == [BACKGROUND, "cat", "person", "tvmonitor"]


def test_any_numbers_in_any_order_make_a_batch(voc):
    masks = opened("voc", voc[0])
    both, _ = masks.__getitems__([0, 1])
    back, _ = masks.__getitems__(np.array([1, 0, 1]))
    assert torch.equal(back, both[[1, 0, 1]]) and not torch.equal(both[0], both[1])


def test_grey_voc_images_have_three_channels(voc):
    root, inner = voc
    picture(5, mode="L").save(inner / "JPEGImages" / "2007_000032.jpg")
    assert opened("voc", root).__getitems__([0])[0].shape == (1, 3, 10, 10)


def test_an_absent_voc_is_shown_the_layout(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        said = refusal("voc", root)
        assert str(root) in said and "VOCdevkit/VOC2012/ with JPEGImages/" in said
    assert "needs --masks-path" in refusal("voc", None)


def test_a_folder_within_vocs_is_sent_to_the_one_above(voc, monkeypatch):
    root, inner = voc
    for given in (inner, inner.parent):
        assert refusal("voc", given).endswith(f"give the folder above, --masks-path {root}")
    monkeypatch.chdir(inner)
    assert refusal("voc", ".").endswith(f"--masks-path {root}")


def test_a_voc_without_its_lists_or_files_is_refused_by_name(voc):
    root, inner = voc
    listed = inner / "ImageSets" / "Segmentation" / "train.txt"
    (inner / "SegmentationClass" / "2007_000032.png").unlink()
    said = refusal("voc", root)
    assert f"{listed} names {inner}/SegmentationClass/2007_000032.png, which is not" in said
    (inner / "JPEGImages" / "2007_000039.jpg").unlink()
    assert "JPEGImages/2007_000039.jpg, which is not there" in refusal("voc", root)
    listed.write_text("")
    assert f"{listed} names no images" in refusal("voc", root)
    listed.unlink()
    assert "Segmentation/train.txt" in refusal("voc", root)


def test_damaged_voc_files_are_refused_by_name(voc):
    root, inner = voc
    mask = inner / "SegmentationClass" / "2007_000032.png"
    write_mask(mask, np.full(SIZE[::-1], 21))
    assert f"{mask} has pixels of class 21, but VOC has 0 to 20" in refusal("voc", root, number=0)
    write_mask(mask, np.zeros(SIZE))
    assert "has 40 x 30 pixels, but its mask 30 x 40" in refusal("voc", root, number=0)
    picture(0).save(mask)
    assert f"{mask} is no mask: its mode is RGB" in refusal("voc", root, number=0)
    mask.write_bytes(mask.read_bytes()[:60])
    assert f"{mask} cannot be read as an image" in refusal("voc", root, number=0)
    (inner / "JPEGImages" / "2007_000032.jpg").write_bytes(b"no photo")
    assert "2007_000032.jpg cannot be read as an image" in refusal("voc", root, number=0)
    opened("voc", root).__getitems__([1])


# COCO

RECTANGLE = [4, 6, 20, 6, 20, 16, 4, 16]  # columns 4 to 19, rows 6 to 15
CATEGORIES = [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}]


def area_of(rows, columns):
    """A rectangle as bool (H, W)."""
    covered = np.zeros(SIZE[::-1], dtype=bool)
    covered[rows, columns] = True
    return covered


def uncompressed(covered):
    """Run lengths of a mask, down the columns, as COCO's crowds have them."""
    flat = np.concatenate(([False], covered.T.ravel()))
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff([0, *changes, covered.size]).tolist()
    return {"size": list(covered.shape), "counts": runs}


def compressed(covered):
    """The same as text, by pycocotools."""
    from pycocotools import mask

    found = mask.encode(np.asfortranarray(covered.astype(np.uint8)))
    return found | {"counts": found["counts"].decode()}


def annotation(number, segmentation, *, category=1, area=1.0, crowd=0, image=7):
    return dict(
        id=number, image_id=image, category_id=category, segmentation=segmentation,
        area=area, iscrowd=crowd,
    )  # fmt: skip


def write_coco(root, annotations, *, kind="instances", part="train2017", images=None, **changed):
    (root / part).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    if images is None:
        sides = dict(width=SIZE[0], height=SIZE[1])
        images = [dict(id=7, file_name="000000000007.jpg", **sides)]
        picture(3).save(root / part / images[0]["file_name"])
    content = dict(info={}, images=images, annotations=annotations, categories=CATEGORIES)
    path = root / "annotations" / f"{kind}_{part}.json"
    path.write_text(json.dumps(content | changed))
    return path


def mask_of(root, name="coco-things"):
    """Image 0's mask in the image's own size, picked from a larger one."""
    masks = open_masks(name, str(root), 120, held_out=False)
    (mask,) = masks.__getitems__([0])[1].numpy()
    return mask[2::4, 1::3]  # of 120 rows and columns back to 30 x 40


def test_polygons_and_both_run_lengths_are_the_same_pixels(tmp_path):
    covered = area_of(slice(6, 16), slice(4, 20))
    for shape in ([RECTANGLE], uncompressed(covered), compressed(covered)):
        write_coco(tmp_path, [annotation(1, shape, category=3)])
        assert np.array_equal(mask_of(tmp_path), np.where(covered, 2, 0))


def test_run_lengths_as_text_are_read_as_pycocotools_does():
    from pycocotools import mask

    random = np.random.RandomState(0)
    for height, width, share in ((1, 1, 1), (1, 1, 0), (13, 7, 0.5), (200, 300, 0.01)):
        covered = random.rand(height, width) < share
        covered[: height // 2] &= random.rand() < 0.5
        text = compressed(covered)
        assert np.array_equal(pixels_of(text, height, width), mask.decode(text).astype(bool))
        assert np.array_equal(pixels_of(uncompressed(covered), height, width), covered)
    smooth = np.asarray(picture(1, (500, 300), "L")) > 128
    assert np.array_equal(pixels_of(compressed(smooth), 300, 500), smooth)


def test_polygons_are_filled_as_pycocotools_does():
    from pycocotools import mask

    random = np.random.RandomState(0)
    shapes = [(random.rand(points, 2) * 60 - 5).ravel().tolist() for points in (3, 8, 20)]
    expected = mask.decode(mask.merge(mask.frPyObjects(shapes, 30, 50))).astype(bool)
    assert expected.any() and np.array_equal(pixels_of(shapes, 30, 50), expected)


def test_classes_are_numbered_in_the_order_of_their_ids(tmp_path):
    write_coco(tmp_path, [annotation(1, [RECTANGLE], category=44)])
    assert opened("coco-things", tmp_path).class_names == (BACKGROUND, "person", "car", "bottle")
    assert np.unique(mask_of(tmp_path)).tolist() == [0, 3]


def test_crowds_are_ignored(tmp_path):
    crowd = uncompressed(area_of(slice(20, 28), slice(0, 40)))
    crowd = annotation(2, crowd, category=1, crowd=1, area=320)
    write_coco(tmp_path, [annotation(1, [RECTANGLE], area=160), crowd])
    mask = mask_of(tmp_path)
    assert (mask[20:28] == IGNORED).all() and set(mask[:20].ravel()) == {0, 1}


def test_small_objects_lie_on_large_ones_and_later_on_earlier(tmp_path):
    small, large = (compressed(area_of(slice(a, 30 - a), slice(a, 40 - a))) for a in (10, 2))
    write_coco(
        tmp_path, [annotation(1, small, area=200), annotation(2, large, area=936, category=3)]
    )
    mask = mask_of(tmp_path)
    assert mask[15, 20] == 1 and mask[4, 4] == 2 and mask[0, 0] == 0
    write_coco(tmp_path, [annotation(1, small), annotation(2, large, category=3)])
    assert mask_of(tmp_path)[15, 20] == 2


def test_polygons_of_less_than_three_points_cover_nothing(tmp_path):
    write_coco(tmp_path, [annotation(1, [[1, 1, 9, 9]]), annotation(2, [])])
    assert not mask_of(tmp_path).any()
    write_coco(tmp_path, [annotation(1, [[1, 1, 9, 9], RECTANGLE])])
    assert mask_of(tmp_path).sum() == 160


def test_stuff_and_things_train_and_held_out_are_read_from_their_own_files(tmp_path):
    write_coco(tmp_path, [annotation(1, [RECTANGLE])])
    write_coco(tmp_path, [], part="val2017")
    stuff = [{"id": 92, "name": "banner"}, {"id": 183, "name": "other"}]
    write_coco(tmp_path, [annotation(1, [RECTANGLE], category=183)], kind="stuff", categories=stuff)
    assert mask_of(tmp_path).max() == 1 and mask_of(tmp_path, "coco-stuff").max() == 2
    assert opened("coco-stuff", tmp_path).class_names == (BACKGROUND, "banner", "other")
    held_out = opened("coco-things", tmp_path, held_out=True)
    assert not held_out.__getitems__([0])[1].any()
    assert "stuff_val2017.json" in refusal("coco-stuff", tmp_path, held_out=True)


def test_every_image_keeps_its_own_annotations(tmp_path):
    sides = dict(width=SIZE[0], height=SIZE[1])
    images = [dict(id=i, file_name=f"{i}.jpg", **sides) for i in (9, 4, 5)]
    (tmp_path / "train2017").mkdir()
    for image in images:
        picture(image["id"]).save(tmp_path / "train2017" / image["file_name"])
    shapes = [annotation(1, [RECTANGLE], category=44, image=5), annotation(2, [RECTANGLE], image=9)]
    write_coco(tmp_path, shapes, images=images)
    _, classes = opened("coco-things", tmp_path).__getitems__([2, 0, 1])
    assert classes.amax((1, 2)).tolist() == [3, 1, 0]


def test_loading_says_nothing(tmp_path, capsys):
    write_coco(tmp_path, [])
    opened("coco-things", tmp_path)
    assert capsys.readouterr() == ("", "")


def test_an_absent_coco_is_shown_the_layout(tmp_path):
    said = refusal("coco-stuff", tmp_path)
    for words in (str(tmp_path), "train2017/*.jpg and annotations/stuff_train2017.json"):
        assert words in said
    assert "needs --masks-path" in refusal("coco-things", None)


def test_without_pycocotools_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    write_coco(tmp_path, [])
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert "coco-things needs pycocotools" in refusal("coco-things", tmp_path)
    assert "pip install '.[segmentation]'" in refusal("coco-things", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "is no JSON of COCO's instances: Expecting value"),
        ("[1, 2]", "is no JSON of COCO's instances"),
        ('{"images": 5}', "is no JSON of COCO's instances"),
        ("{}", "has 0 categories"),
    ],
)
def test_files_that_are_no_coco_json_are_refused_by_name(tmp_path, content, words):
    path = write_coco(tmp_path, [])
    path.write_text(content)
    said = refusal("coco-things", tmp_path)
    assert words in said and str(path) in said


def test_a_json_that_does_not_fit_is_refused_on_opening(tmp_path):
    path = write_coco(tmp_path, [annotation(1, [RECTANGLE], category=99)])
    assert "it lacks 99" in refusal("coco-things", tmp_path)
    lacking = annotation(1, [RECTANGLE])
    del lacking["area"]
    write_coco(tmp_path, [lacking])
    assert "it lacks 'area'" in refusal("coco-things", tmp_path)
    many = [{"id": i, "name": str(i)} for i in range(300)]
    write_coco(tmp_path, [], categories=many)
    assert "has 300 categories: masks have room for 1 to 254" in refusal("coco-things", tmp_path)
    write_coco(tmp_path, [], images=[])
    assert f"{path} names no images" in refusal("coco-things", tmp_path)
    write_coco(tmp_path, [])
    (tmp_path / "train2017" / "000000000007.jpg").unlink()
    said = refusal("coco-things", tmp_path)
    assert "names" in said and "000000000007.jpg, which is not there" in said


WHOLE = dict(size=[30, 40])


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "not subscriptable"),
        (WHOLE, "it lacks 'counts'"),
        (WHOLE | dict(counts=[3, 5]), "runs are no 30 x 40 pixels"),
        (WHOLE | dict(counts=[1300, -100]), "runs are no 30 x 40 pixels"),
        (WHOLE | dict(counts=["a"]), "invalid literal"),
        (WHOLE | dict(counts=""), "no run lengths, or cut off"),
        (WHOLE | dict(counts="PUP"), "no run lengths, or cut off"),
        (WHOLE | dict(counts="é"), "ascii"),
        (WHOLE | dict(counts="o" * 20 + "0"), "more than 50 bits"),
        (WHOLE | dict(counts="35"), "runs are no 30 x 40 pixels"),
        (dict(size=[8, 8], counts=[64]), "its size is [8, 8], its image's [30, 40]"),
        ([[1, 2, 3, 4, 5, 6, 7]], "no list of x, y in the image"),
        ([[1e9, 2, 3, 4, 5, 6]], "no list of x, y in the image"),
        ([[float("nan"), 2, 3, 4, 5, 6]], "no list of x, y in the image"),
        ([["a", 2, 3, 4, 5, 6]], "could not convert"),
        ([5], "no list of x, y in the image"),
    ],
)
def test_a_damaged_segmentation_is_refused_by_its_number(tmp_path, segmentation, words):
    path = write_coco(tmp_path, [annotation(31, segmentation)])
    said = refusal("coco-things", tmp_path, number=0)
    start = f"{path}: the segmentation of annotation 31 cannot be read: "
    assert said.startswith(start) and words in said.removeprefix(start)


def test_an_image_of_another_size_than_the_json_says_is_refused_by_name(tmp_path):
    write_coco(tmp_path, [annotation(1, [RECTANGLE])])
    photo = tmp_path / "train2017" / "000000000007.jpg"
    picture(0, (20, 30)).save(photo)
    said = refusal("coco-things", tmp_path, number=0)
    assert f"{photo} has 20 x 30 pixels, but its mask 40 x 30" in said
    photo.write_bytes(photo.read_bytes()[:100])
    assert f"{photo} cannot be read as an image" in refusal("coco-things", tmp_path, number=0)


# Stand-ins, and names


def check_stand_in(name, size):
    for held_out in (False, True):
        masks = opened(name, None, size=size, held_out=held_out)
        domain = domains.build(name)
        data = domain.held_out_set() if held_out else domain.train_set(augment=False)
        raw, y = data.__getitems__(domains.Draws.plain([0, 5]))[:2]
        images, classes = masks.__getitems__([0, 5])
        assert len(masks) == len(data) and torch.equal(images, raw)
        assert classes.dtype == torch.int64 and classes.shape == (2, size, size)
        bright = raw[:, 0] >= 64
        for i in range(2):
            assert (classes[i][bright[i]] == 1 + y[i]).all() and bright[i].any()
            assert (classes[i][~bright[i]] == 0).all()
        assert masks.class_names == (BACKGROUND, *domain.train_source.class_names)


def test_bright_pixels_of_digits_have_their_images_class():
    check_stand_in("digits", 8)


@pytest.mark.skipif(
    not os.path.isdir(FASHION_FOLDER), reason="needs Debian's package dataset-fashion-mnist"
)
def test_bright_pixels_of_clothes_have_their_images_class():
    check_stand_in("fashion-mnist", 32)


def test_stand_ins_come_in_their_own_size_and_folder():
    assert "digits has images of 8 pixels" in refusal("digits", None, size=16)
    assert "leave out --data-path" in refusal("digits", "x", size=8)
    assert "dataset-fashion-mnist" in refusal("fashion-mnist", "x", size=32)


def test_an_unknown_name_lists_the_choices():
    said = refusal("ade20k", None)
    assert "'ade20k'" in said and said.endswith(", ".join(MASKS))
    assert "--image-size -1" in refusal("voc", "x", size=-1)
