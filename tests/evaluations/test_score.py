"""The first score, on the real digits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluations import classifier as classifiers
from evaluations.classifier import Images, images_of
from evaluations.frechet import Moments
from evaluations.score import Yardstick, main, read_samples, score, score_images, table
from runtime.errors import InputError

ROOT = Path(__file__).parents[2]
IMAGES = np.zeros((4, 8, 8, 1), np.uint8)


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "evaluations.score", *map(str, flags)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def noisy(images, sigma):
    random = torch.Generator().manual_seed(5)
    noise = sigma * torch.randn(images.shape, generator=random)
    return (images.float() + noise).clamp(0, 255).to(torch.uint8)


def save(path, images, labels=None, protocol=None):
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.numpy()
    np.savez(path, **arrays)
    if protocol is not None:
        path.with_suffix(".json").write_text(json.dumps(protocol))
    return path


@pytest.fixture
def scored(digits, classifier, yardstick):
    return lambda images, labels=None: score_images(
        images, labels, digits, classifier, yardstick=yardstick
    )


def test_corruption_and_missing_classes_score_worse_than_held_out_images(yardstick, scored):
    images, labels = yardstick.held_out
    held_out, weak, strong = (scored(noisy(images, sigma), labels) for sigma in (0, 32, 96))
    half = scored(images[labels < 5], labels[labels < 5])
    fd = "fd_classifier"
    assert 2 * held_out[fd] < weak[fd] < strong[fd] / 2
    assert half[fd] > 10 * held_out[fd] and half[fd] > 10 * half["floor"]
    assert held_out["accuracy"] > 0.97 > 0.9 > strong["accuracy"]
    assert half["accuracy"] > 0.97  # which is why accuracy alone is no score


def test_held_out_images_score_exactly_the_floor(yardstick, scored):
    result = scored(*yardstick.held_out)
    assert result["fd_classifier"] == pytest.approx(result["floor"], rel=1e-9)
    assert result["accuracy"] == result["classifier"]["held_out_accuracy"]
    assert result["floor_n"] == result["n"] == 500


def test_the_floor_is_taken_at_the_samples_number(yardstick, scored):
    images, labels = yardstick.held_out
    few, many = scored(images[:60], labels[:60]), scored(torch.cat([images, images]))
    assert (few["n"], few["floor_n"]) == (60, 60) and (many["n"], many["floor_n"]) == (1000, 500)
    assert few["floor"] > 2 * many["floor"]
    assert "no more than 500 real images" in table(many) and "no more" not in table(few)


def test_the_floor_of_a_part_has_all_classes_even_if_the_data_lie_sorted(
    digits, classifier, yardstick, monkeypatch
):
    def sorted_images_of(domain, image_set):
        images = images_of(domain, image_set)
        order = images.y.argsort()
        return Images(images.raw[order], images.y[order])

    monkeypatch.setattr("evaluations.score.images_of", sorted_images_of)
    assert len(Yardstick.of(digits, classifier).held_out.y[:60].unique()) == 10


def test_the_reference_is_the_training_images(digits, classifier, yardstick, scored):
    real = images_of(digits, digits.train_set())
    assert yardstick.reference.n == 1297
    expected = Moments.of(classifier.read(real.raw).features).mean
    torch.testing.assert_close(yardstick.reference.mean, expected)
    assert scored(*real)["fd_classifier"] < 1e-8


def test_accuracy_counts_samples_read_as_asked_for(yardstick, scored):
    images, labels = yardstick.held_out
    wrong = (labels + 1) % 10
    mixed = torch.where(torch.arange(500) < 125, wrong, labels)
    assert 0.72 < scored(images, mixed)["accuracy"] < 0.77
    assert scored(images)["accuracy"] is None


def test_a_yardstick_is_made_where_none_is_given(digits, classifier, yardstick, scored):
    images, labels = yardstick.held_out.raw[:50], yardstick.held_out.y[:50]
    assert score_images(images, labels, digits, classifier) == scored(images, labels)


def test_the_command_scores_an_npz_end_to_end(tmp_path, yardstick, classifier, classifier_file):
    images, labels = noisy(yardstick.held_out.raw, 8)[:300], yardstick.held_out.y[:300]
    protocol = {"dataset_name": "digits", "image_size": 8, "seed": 3, "sampler": {"mode": "ODE"}}
    samples = save(tmp_path / "cfg-1.0.npz", images, labels, protocol)
    done = command(samples, "--classifier", classifier_file)
    assert done.returncode == 0, done.stderr

    result = json.loads((tmp_path / "cfg-1.0.score.json").read_text())
    assert 0 < result["floor"] < result["fd_classifier"] < 3 * result["floor"]
    assert result["n"] == result["floor_n"] == 300 and result["accuracy"] > 0.95
    assert result["protocol"] == protocol and result["dataset_name"] == "digits"
    assert result["reference"] == {"images": "real training images", "n": 1297}
    found = result["classifier"]
    assert found["name"] == classifier.name and found["sha256"] == classifier.fingerprint
    assert found["held_out_accuracy"] == pytest.approx(classifier.accuracy)

    for number in (result["fd_classifier"], result["floor"]):
        assert f"{number:.3f}" in done.stdout
    assert "FID" not in done.stdout + json.dumps(result)
    last = [str(tmp_path / f"cfg-1.0.score.{ending}") for ending in ("png", "json")]
    assert done.stdout.splitlines()[-2:] == last
    assert Image.open(last[0]).size == (17 * 66 + 2, 10 * 66 + 2)


def test_the_classifier_is_trained_once_per_folder(tmp_path, yardstick, classifier, monkeypatch):
    trainings = []
    monkeypatch.setattr(classifiers, "train", lambda _: trainings.append(1) or classifier)
    for name in ("one", "two"):
        samples = save(tmp_path / f"{name}.npz", yardstick.held_out.raw[:20])
        result = score(samples, dataset_name="digits")
    assert len(trainings) == 1
    assert result["classifier"]["file"] == str(tmp_path / "classifier-digits.pt")


def test_the_picture_shows_each_class_in_its_row_real_images_left(tmp_path, classifier_file):
    """Samples whose every pixel is their class, so that the rows can be read off."""
    labels = torch.arange(30) % 10
    images = (labels * 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    samples = save(tmp_path / "s.npz", images, labels)
    result = score(samples, dataset_name="digits", classifier=classifier_file)
    sheet = np.asarray(Image.open(result["picture"]))
    tile = 66  # pixels, its gap included
    for label in range(10):
        row = sheet[2 + tile * label + 30, :, 0]
        assert row[: tile * 8].min() < 255  # real images
        assert (row[2 + tile * 8 : tile * 9] == 255).all()  # the gap
        left = 2 + tile * 9
        assert (row[left + 8], row[left + 2 * tile + 8]) == (20 * label, 20 * label)
        assert (row[left + 3 * tile :] == 255).all()  # there are three samples of each


def test_unconditional_samples_have_a_table_without_accuracy(tmp_path, yardstick, classifier_file):
    samples = save(tmp_path / "s.npz", yardstick.held_out.raw[:50])
    result = score(samples, dataset_name="digits", classifier=classifier_file)
    assert result["accuracy"] is None
    row = table(result).splitlines()[2].split()
    assert row == ["samples", "50", f"{result['fd_classifier']:.3f}", "-"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (dict(images=IMAGES), "no array arr_0.*but images"),
        (dict(), "no array arr_0.*nothing"),
        (dict(arr_0=IMAGES.astype(np.float32)), r"float32 \(4, 8, 8, 1\), not uint8"),
        (dict(arr_0=IMAGES[0]), "not uint8"),
        (dict(arr_0=IMAGES.astype(object)), "no readable .npz"),
        (dict(arr_0=IMAGES, arr_1=np.array([None] * 4)), "no readable .npz"),
        (dict(arr_0=IMAGES, arr_1=np.zeros(3, int)), r"arr_1 is int64 \(3,\).* each of 4 images"),
        (dict(arr_0=IMAGES, arr_1=np.zeros(4)), "arr_1 is float64"),
        (dict(arr_0=IMAGES, arr_1=np.array([0, 1, 10, 2])), "class id 10 .*digits has 0 to 9"),
        (dict(arr_0=IMAGES, arr_1=np.array([0, -1, 1, 2])), "class id -1"),
        (dict(arr_0=IMAGES[:1]), "at least 2 images, not 1"),
        (dict(arr_0=IMAGES[:0]), "at least 2 images, not 0"),
        (
            dict(arr_0=np.zeros((4, 32, 32, 3), np.uint8)),
            r"\(3, 32, 32\).*--dataset_name digits has \(1, 8, 8\)",
        ),
        (dict(arr_0=np.zeros((4, 8, 8, 3), np.uint8)), r"\(3, 8, 8\).*\(1, 8, 8\)"),
    ],
)
def test_samples_of_another_kind_are_refused_before_anything_is_trained(tmp_path, arrays, words):
    samples = tmp_path / "s.npz"
    np.savez(samples, **arrays)
    with pytest.raises(InputError, match=words) as error:
        score(samples, dataset_name="digits")
    assert str(samples) in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [samples]


def test_damaged_files_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "good.npz", arr_0=IMAGES)
    np.save(tmp_path / "single.npy", IMAGES)
    good, single = ((tmp_path / name).read_bytes() for name in ("good.npz", "single.npy"))
    flipped = good[:150] + b"x" + good[151:]
    path = tmp_path / "bad.npz"
    for content in (good[: len(good) // 2], good[:-1], b"", b"text", flipped, single):
        path.write_bytes(content)
        with pytest.raises(InputError, match="bad.npz: this is no .*.npz file"):
            read_samples(path)
    assert len(read_samples(tmp_path / "good.npz")[0]) == 4


def test_a_protocol_that_is_none_is_refused(tmp_path, yardstick):
    samples = save(tmp_path / "s.npz", yardstick.held_out.raw[:4])
    with pytest.raises(InputError, match="give --dataset_name"):
        score(samples)
    for content in (b"{", b"[1]", b"\xff", b'{"dataset_name": ["digits"]}', b'{"image_size": "8"}'):
        (tmp_path / "s.json").write_bytes(content)
        with pytest.raises(InputError, match="s.json is no (JSON|protocol)"):
            score(samples)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_flag_overrides_the_protocol(tmp_path, yardstick, classifier_file):
    protocol = {"dataset_name": "fashion-mnist", "image_size": 32}
    samples = save(tmp_path / "s.npz", yardstick.held_out.raw[:9], protocol=protocol)
    with pytest.raises(InputError, match="--dataset_name fashion-mnist has"):
        score(samples, classifier=classifier_file)
    result = score(samples, dataset_name="digits", classifier=classifier_file)
    assert result["dataset_name"] == "digits"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["absent.npz"], "absent.npz: there is no such file"),
        (["cut.npz", "--dataset_name", "digits"], "cut.npz: this is no .npz file"),
        (["s.npz"], "give --dataset_name"),
        (["s.npz", "--dataset_name", "digts"], "unknown --dataset_name 'digts'"),
        (["s.npz", "--dataset_name", "digits", "--classifier", "absent.pt"], "--classifier absent"),
        (["s.npz", "--dataset_name", "digits", "--classifier", "cut.npz"], "cut.npz is no file of"),
    ],
)
def test_bad_input_ends_the_command_with_one_sentence(
    tmp_path, sentence_of, monkeypatch, flags, words
):
    monkeypatch.chdir(tmp_path)
    samples = save(tmp_path / "s.npz", torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    (tmp_path / "cut.npz").write_bytes(samples.read_bytes()[:200])
    assert words in sentence_of(main, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.npz", "s.npz"]


def test_the_command_itself_ends_without_a_traceback():
    done = command("absent.npz")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_help_teaches_what_the_score_is():
    done = command("--help")
    for words in ("no FID", "arr_0", "--classifier", "floor"):
        assert words in " ".join(done.stdout.split())
