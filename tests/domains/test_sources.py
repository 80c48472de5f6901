"""Sources and the table of data sets: what is in them, and what bad data get."""

import gzip
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

import domains
from runtime.errors import InputError


def write_idx(path, array, *, magic=None, opener=open):
    header = struct.pack(f">{1 + array.ndim}I", magic or 0x0800 + array.ndim, *array.shape)
    with opener(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    """A folder like Debian's: training files gzipped, test files plain."""
    random = np.random.RandomState(0)
    images = {"train": random.randint(0, 256, (20, 28, 28)), "t10k": np.full((6, 28, 28), 7)}
    for part, opener, ending in (("train", gzip.open, ".gz"), ("t10k", open, "")):
        labels = np.arange(len(images[part])) % 10
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{ending}", images[part], opener=opener)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{ending}", labels, opener=opener)
    return tmp_path, images


def all_of(image_set):
    return image_set.__getitems__(domains.Draws.plain(range(len(image_set)))).checked()


def test_domains_and_the_digits_need_torch_and_numpy_only():
    heavy = ["PIL", "diffusers", "datasets", "sklearn", "torchvision", "matplotlib", "tyro"]
    code = (
        "import sys, domains; domains.build('digits').train_set(); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_digits_are_split_once_and_for_all_into_disjoint_parts():
    domain = domains.build("digits")
    train, held_out = domain.train_set(), domain.held_out_set()
    assert (len(train), len(held_out)) == (1297, 500)
    assert domain.shape == domain.raw_shape == (1, 8, 8) and domain.num_classes == 10
    batch = all_of(held_out)
    assert batch.raw.max() == 255 and batch.raw.min() == 0
    assert batch.y[:8].tolist() == HELD_OUT_LABELS
    from sklearn.datasets import load_digits

    originals = np.rint(load_digits().images * 255 / 16).astype(int).reshape(1797, -1)
    ours = np.concatenate([all_of(s).raw.numpy() for s in (train, held_out)])
    assert sorted(map(tuple, originals)) == sorted(map(tuple, ours.reshape(1797, -1).astype(int)))


HELD_OUT_LABELS = [0, 9, 6, 9, 8, 4, 5, 8]


def test_fashion_mnist_is_padded_and_t10k_is_held_out(fashion):
    folder, images = fashion
    domain = domains.build("fashion-mnist", data_path=str(folder))
    train, held_out = (all_of(s) for s in (domain.train_set(), domain.held_out_set()))
    assert train.raw.shape == (20, 1, 32, 32) and held_out.raw.shape == (6, 1, 32, 32)
    assert np.array_equal(train.raw[:, 0, 2:30, 2:30], images["train"])
    assert train.raw[:, :, :2].max() == 0 and train.raw[..., 30:].max() == 0
    assert train.y.tolist() == [i % 10 for i in range(20)]


def test_fashion_mnist_reads_gzipped_and_plain_files_alike(fashion, tmp_path):
    folder, images = fashion
    plain = tmp_path / "plain"
    plain.mkdir()
    write_idx(plain / "train-images-idx3-ubyte", images["train"])
    write_idx(plain / "train-labels-idx1-ubyte", np.arange(20) % 10)
    one, other = (domains.build("fashion-mnist", data_path=str(p)) for p in (folder, plain))
    a, b = (all_of(domain.train_set()) for domain in (one, other))
    assert a.raw.equal(b.raw) and a.y.equal(b.y)


def test_idx_files_that_lie_are_refused_by_name(fashion):
    folder, images = fashion
    path = folder / "t10k-images-idx3-ubyte"
    held_out = domains.build("fashion-mnist", data_path=str(folder)).held_out_set
    whole = path.read_bytes()
    for content, words in [
        (whole[:-1], "header promises 4704"),
        (whole + b"x", "holds more than 4704 bytes"),
        (b"\x00\x00\x0d\x03" + whole[4:], "starts with 0x00000d03"),
        (whole[:7], "cannot be read as an IDX file"),
        (whole[:4] + struct.pack(">3I", 6, 14, 56) + whole[16:], "not 28x28"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=words) as error:
            held_out()
        assert str(path) in str(error.value)


def test_a_truncated_gzip_is_refused_by_name(fashion):
    folder, _ = fashion
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="train-images-idx3-ubyte.gz cannot be read"):
        domains.build("fashion-mnist", data_path=str(folder)).train_set()


def test_unequal_counts_of_images_and_labels_are_refused(fashion):
    folder, _ = fashion
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(InputError, match="6 t10k images but 5 labels"):
        domains.build("fashion-mnist", data_path=str(folder)).held_out_set()


def test_absent_fashion_mnist_names_folder_flag_and_package(tmp_path):
    with pytest.raises(InputError) as error:
        domains.build("fashion-mnist", data_path=str(tmp_path)).train_set()
    for word in (str(tmp_path), "--data-path", "dataset-fashion-mnist"):
        assert word in str(error.value)


def test_a_label_beyond_the_classes_names_image_id_and_flag(fashion):
    folder, _ = fashion
    write_idx(folder / "t10k-labels-idx1-ubyte", np.array([0, 1, 2, 77, 4, 5]))
    domain = domains.build("fashion-mnist", data_path=str(folder))
    with pytest.raises(InputError) as error:
        all_of(domain.held_out_set())
    for words in ("image 3 of fashion-mnist", "class id 77", "--num-classes 10"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("imagenet", {}, "choose from digits, fashion-mnist, folder, imagenet-1k"),
        ("digits", dict(image_size=16), "--image-size 16"),
        ("digits", dict(num_classes=5), "has 10 classes, but --num-classes is 5"),
        ("digits", dict(num_classes=-1), "--num-classes -1"),
        ("digits", dict(vae="ema"), "needs color images"),
        ("digits", dict(data_path="x"), "leave out --data-path"),
        ("imagenet-1k", dict(image_size=100), "no multiple of 8"),
        ("imagenet-1k", dict(image_size=0), "--image-size 0"),
        ("imagenet-1k", dict(vae="./no-such-folder"), "--vae ./no-such-folder"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_data_are_opened(name, flags, words):
    with pytest.raises(InputError, match=words):
        domains.build(name, **flags)


def test_imagenet_needs_neither_data_nor_weights_to_know_its_shapes():
    domain = domains.build("imagenet-1k")
    assert domain.shape == (4, 32, 32) and domain.raw_shape == (3, 256, 256)
    assert domain.num_classes == 1000 and domain.guided_channels == 3 and domain.hflip
    assert domains.build("imagenet-1k", image_size=512, vae="mse").shape == (4, 64, 64)
    pixels = domains.build("imagenet-1k", image_size=64, vae="none")
    assert pixels.shape == (3, 64, 64) and pixels.guided_channels is None


# Hugging Face data sets, saved to disk as a user would


@pytest.fixture
def saved(tmp_path):
    """A data set of 5 red-to-blue images with odd column names, and where it lies."""
    import datasets
    from PIL import Image

    images = [Image.new("RGB", (40, 40), (50 * i, 0, 255 - 50 * i)) for i in range(5)]
    features = datasets.Features(
        {"note": datasets.Value("string"), "picture": datasets.Image(),
         "species": datasets.ClassLabel(names=["cat", "dog"])}
    )  # fmt: skip
    columns = {"note": list("abcde"), "picture": images, "species": [0, 1, 0, 1, 1]}
    data = datasets.Dataset.from_dict(columns, features=features)
    data.save_to_disk(tmp_path / "saved")
    return data, str(tmp_path / "saved")


def test_columns_of_a_saved_data_set_are_found_by_type(saved):
    _, folder = saved
    domain = domains.build(folder, image_size=16, vae="none")
    batch = all_of(domain.train_set(augment=False))
    assert domain.num_classes == 2 and domain.train_source.class_names == ("cat", "dog")
    assert batch.y.tolist() == [0, 1, 0, 1, 1] and batch.raw.shape == (5, 3, 16, 16)
    assert batch.raw[:, 0, 8, 8].tolist() == [0, 50, 100, 150, 200]
    same = domains.build("imagenet-1k", data_path=folder, image_size=16, vae="none")
    assert all_of(same.train_set(augment=False)).raw.equal(batch.raw)


def test_a_saved_data_set_without_the_needed_columns_lists_those_it_has(saved, tmp_path):
    data, _ = saved
    data.remove_columns("species").save_to_disk(tmp_path / "unlabeled")
    data.remove_columns("picture").save_to_disk(tmp_path / "imageless")
    with pytest.raises(InputError, match=r"no label columns among note \(Value\), picture"):
        domains.build(str(tmp_path / "unlabeled"), image_size=16, vae="none").train_set()
    with pytest.raises(InputError, match=r"no image columns among note \(Value\), species"):
        domains.build(str(tmp_path / "imageless"), image_size=16, vae="none").train_set()
    free = domains.build(str(tmp_path / "unlabeled"), image_size=16, vae="none", num_classes=0)
    assert len(free.train_set()) == 5


def test_splits_of_a_saved_data_set_are_train_and_validation(saved, tmp_path):
    import datasets

    data, _ = saved
    both = {"train": data.select(range(3)), "validation": data.select(range(3, 5))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "both")
    domain = domains.build(str(tmp_path / "both"), image_size=16, vae="none")
    assert (len(domain.train_set()), len(domain.held_out_set())) == (3, 2)
    datasets.DatasetDict({"other": data}).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match="has splits other, not train"):
        domains.build(str(tmp_path / "other"), image_size=16, vae="none").train_set()


def test_a_data_set_without_splits_has_no_held_out_images(saved):
    _, folder = saved
    with pytest.raises(domains.NoHeldOut, match="no splits"):
        domains.build(folder, image_size=16, vae="none").held_out_set()


def test_a_data_set_with_training_images_alone_holds_none_out(saved, tmp_path, monkeypatch):
    """Which commands then answer by the training images; another failure they do not swallow."""
    import datasets

    data, _ = saved
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "alone")
    domain = domains.build(str(tmp_path / "alone"), image_size=16, vae="none")
    with pytest.raises(domains.NoHeldOut, match="has splits train, not validation or test"):
        domain.held_out_set()
    data.to_parquet(tmp_path / "train.parquet")
    files, load = {"train": str(tmp_path / "train.parquet")}, datasets.load_dataset

    def load_from_here(hub_id, **where):
        return load("parquet", data_files=files, **where)

    monkeypatch.setattr(datasets, "load_dataset", load_from_here)
    where = dict(image_size=16, vae="none", cache_dir=str(tmp_path / "cache"))
    domain = domains.build("some/images", **where)
    assert len(domain.train_set()) == 5
    with pytest.raises(domains.NoHeldOut, match='Unknown split "validation"'):
        domain.held_out_set()
    files["validation"] = str(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="cannot be opened") as error:
        domains.build("some/images", **where).held_out_set()
    assert not isinstance(error.value, domains.NoHeldOut)


def test_integer_labels_need_a_class_count_and_missing_ones_are_refused(saved, tmp_path):
    data, _ = saved
    data = data.remove_columns("species").add_column("label", [0, 3, -1, 1, 2])
    data.save_to_disk(tmp_path / "integers")
    unknown = domains.build(str(tmp_path / "integers"), image_size=16, vae="none")
    with pytest.raises(InputError, match="--num-classes"):
        unknown.train_set()
    domain = domains.build(str(tmp_path / "integers"), image_size=16, vae="none", num_classes=4)
    with pytest.raises(InputError, match="image 2 of .* has class id -1"):
        all_of(domain.train_set())


def test_a_corrupt_image_of_a_hub_data_set_is_named_by_number(saved, tmp_path):
    import datasets

    rows = {"image": [{"bytes": b"no image", "path": None}], "label": [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "bad")
    domain = domains.build(str(tmp_path / "bad"), image_size=16, vae="none")
    with pytest.raises(InputError, match=f"image 0 of {tmp_path}/bad cannot be read.*--skip"):
        all_of(domain.train_set())


def test_an_image_folder_given_as_a_name_is_sent_to_the_right_flags(tmp_path):
    with pytest.raises(InputError, match=f"--dataset_name folder --data-path {tmp_path}"):
        domains.build(str(tmp_path), image_size=16, vae="none").train_set()


def test_a_saved_folder_needs_no_slash_in_its_name(saved, monkeypatch):
    _, folder = saved
    monkeypatch.chdir(os.path.dirname(folder))
    assert len(domains.build(os.path.basename(folder), image_size=16, vae="none").train_set()) == 5


def test_without_classes_every_label_is_zero():
    domain = domains.build("digits", num_classes=0)
    assert domain.num_classes == 0
    assert all_of(domain.held_out_set()).y.unique().tolist() == [0]


def test_an_unreachable_hub_names_the_data_set_and_where_it_looked(tmp_path):
    code = (
        "import domains, runtime.entry\n"
        "runtime.entry.run(lambda: domains.build("
        f"'imagenet-1k', vae='none', cache_dir={str(tmp_path)!r}).train_set())"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    for words in ("ILSVRC/imagenet-1k", str(tmp_path), "--cache-dir", "--data-path"):
        assert words in done.stderr


def test_without_hugging_face_datasets_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"imagenet-1k needs Hugging Face datasets .*\[hub\]"):
        domains.build("imagenet-1k", vae="none").train_set()
