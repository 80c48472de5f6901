"""The small classifier, on the real digits."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import domains
from domains.codecs import fingerprint
from evaluations.extractors import classifier as classifiers
from evaluations.extractors import open_extractor
from evaluations.extractors.classifier import Classifier, SmallCNN, images_of
from evaluations.images.__main__ import main
from runtime.errors import InputError
from tests.commands import full_disk


def test_it_reads_held_out_digits(digits, classifier):
    held_out = images_of(digits, digits.held_out_set())
    reading = classifier.read(held_out.raw)
    right = (reading.classes == held_out.y).float().mean().item()
    assert right == classifier.accuracy > 0.97
    assert reading.features.shape == (500, 64)


def test_it_is_a_function_of_its_seed_and_leaves_the_global_random_state_alone(digits):
    state = torch.get_rng_state()
    one, same, other = (classifiers.train(digits, seed=seed, steps=3) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(state)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    # Not the order of the batches alone: three small steps could not carry the weights so far.
    assert (one.network.head.weight - other.network.head.weight).abs().max() > 0.1
    assert one.fingerprint != classifiers.train(digits, seed=0, steps=4).fingerprint


def test_the_fingerprint_covers_every_weight(digits, classifier):
    for name in classifier.network.state_dict():
        network = SmallCNN(**classifier.config)
        network.load_state_dict(classifier.network.state_dict())
        network.state_dict()[name].view(-1)[-1] += 1
        changed = Classifier(network, classifier.config, digits.name, classifier.accuracy)
        assert changed.fingerprint != classifier.fingerprint, name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_it_takes_grey_and_color_images_of_8_to_64_pixels(channels, size):
    network = SmallCNN(channels, num_classes=7, image_size=size)
    raw = torch.randint(0, 256, (5, channels, size, size), dtype=torch.uint8)
    features, logits = network(raw)
    assert features.shape == (5, 64) and logits.shape == (5, 7)
    assert (features.std(0) > 0).any()


def test_reading_does_not_depend_on_the_company(classifier, held_out):
    raw = held_out.raw
    alone = torch.cat([classifier.read(raw[i : i + 1]).features for i in range(5)])
    torch.testing.assert_close(alone, classifier.read(raw).features[:5])


def test_a_saved_classifier_is_plain_data_and_reads_the_same(digits, held_out, tmp_path):
    classifier, path = classifiers.train(digits, steps=20), tmp_path / "clf.pt"
    classifier.save(path)
    content = torch.load(path, weights_only=True)
    assert set(content) == {"state", "config", "dataset_name", "accuracy", "sha256"}
    loaded = classifiers.load(path)
    assert loaded.name == classifier.name == f"classifier:{classifier.fingerprint[:8]}"
    assert loaded.accuracy == classifier.accuracy
    raw = held_out.raw[:9]
    assert loaded.read(raw).features.equal(classifier.read(raw).features)


def test_a_full_disk_names_the_classifier(classifier, tmp_path):
    """torch.save has an error of its own for that."""
    with full_disk(after=2000), pytest.raises(OSError) as error:
        classifier.save(tmp_path / "classifier.pt")
    assert error.value.filename == str(tmp_path / "classifier.pt") and not list(tmp_path.iterdir())


def test_it_is_an_extractor(classifier, digits_classifier, held_out):
    raw, reading = held_out.raw[:9], classifier.read(held_out.raw[:9])
    extractor = open_extractor(f"classifier:{digits_classifier}", torch.device("cpu"))
    pool, spatial, _ = extractor(raw)
    assert pool.equal(reading.features) and spatial is None
    assert extractor.name == classifier.name and not extractor.half_distances
    assert extractor.fingerprint == classifier.fingerprint
    probabilities = extractor.probabilities(pool)
    assert probabilities.equal(classifier.network(raw)[1].softmax(1))  # bias included
    assert probabilities.argmax(1).equal(reading.classes)


def test_an_extractor_of_other_images_or_files_is_refused(classifier, digits_classifier, tmp_path):
    for shape in ((2, 3, 8, 8), (2, 1, 9, 8), (2, 1, 8, 16)):
        with pytest.raises(InputError, match=r"trained on images of \(1, 8, 8\)"):
            classifier(torch.zeros(shape, dtype=torch.uint8))
    (tmp_path / "text.pt").write_bytes(b"hello")
    for asked, words in (
        (f"classifier:{tmp_path}/absent.pt", "--extractor classifier:.*absent.pt: there is no"),
        (f"classifier:{tmp_path}/text.pt", "name another one with --extractor classifier:FILE"),
        (f"inception:{digits_classifier}", "its file is --inception-weights FILE"),
    ):
        with pytest.raises(InputError, match=words):
            open_extractor(asked, torch.device("cpu"))


def test_a_file_that_is_no_classifier_is_refused(tmp_path, digits_classifier):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    content, whole = torch.load(digits_classifier), digits_classifier.read_bytes()
    state = content["state"]
    torch.save({"state": Payload()}, tmp_path / "code.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(content | {"config": {"channels": 1}}, tmp_path / "config.pt")
    torch.save(content | {"state": {"head.bias": state["head.bias"]}}, tmp_path / "part.pt")
    infinite = state | {"head.bias": state["head.bias"] * float("inf")}
    sums = {"sha256": fingerprint(infinite)}
    torch.save(content | {"state": infinite} | sums, tmp_path / "infinite.pt")
    flipped = state | {"head.bias": -state["head.bias"]}
    torch.save(content | {"state": flipped}, tmp_path / "flipped.pt")
    (tmp_path / "cut.pt").write_bytes(whole[:2000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_bytes(b"hello\n")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 11
    for path in files:
        with pytest.raises(InputError) as error:
            classifiers.load(path)
        sentence = str(error.value)
        assert sentence.startswith(
            f"{path} is no classifier of evaluations.images train-classifier ("
        )
        assert "--extractor classifier:FILE" in sentence and "\n" not in sentence
    assert not (tmp_path / "executed").exists()
    with pytest.raises(
        InputError, match="--extractor classifier:.*absent.pt: there is no such file"
    ):
        classifiers.load(tmp_path / "absent.pt")


def test_a_classifier_of_another_data_set_is_refused(classifier, tmp_path, sentence_of):
    other = Classifier(classifier.network, classifier.config, "numbers", 1.0)
    other.save(tmp_path / "clf.pt")
    np.savez(tmp_path / "s.npz", np.zeros((9, 8, 8, 1), np.uint8))
    words = ["--extractor", f"classifier:{tmp_path}/clf.pt", "--device", "cpu"]
    sentence = sentence_of(main, "digits", tmp_path / "s.npz", *words)
    assert "was trained on numbers, but the reference is digits" in sentence


def test_a_data_set_too_large_for_memory_is_refused(monkeypatch, digits):
    monkeypatch.setattr(classifiers, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="fd_classifier is for small data sets"):
        classifiers.train(digits)


def test_a_data_set_without_held_out_images_is_refused(tmp_path):
    (tmp_path / "cats").mkdir()
    folder = domains.build("folder", data_path=str(tmp_path), vae="none")
    with pytest.raises(InputError, match="--data-path"):
        classifiers.train(folder)


def test_the_command_saves_a_classifier_and_says_how_good_it_is(
    tmp_path, digits, classifier, monkeypatch, capsys
):
    out = tmp_path / "a" / "clf.pt"
    monkeypatch.setattr(classifiers, "train", lambda domain: classifier)
    words = ["images", "train-classifier", "--dataset-name", "digits", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert classifiers.load(out).fingerprint == classifier.fingerprint
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{classifier.name}: {classifier.accuracy:.2%}") and last == str(out)


def test_a_classifier_below_the_minimum_is_not_saved(tmp_path, digits, monkeypatch):
    train = classifiers.train
    monkeypatch.setattr(classifiers, "train", lambda domain: train(domain, steps=1))
    with pytest.raises(InputError, match="below --min-accuracy 0.8"):
        classifiers.train_to_file(digits, tmp_path / "clf.pt", min_accuracy=0.8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset_name", "digts"], "unknown --dataset_name 'digts'"),
        (["--dataset_name", "folder"], "needs --data-path"),
        (["--dataset_name", "fashion-mnist", "--data-path", "nowhere"], "--data-path"),
    ],
)
def test_bad_flags_end_the_command_with_one_sentence(tmp_path, sentence_of, flags, words):
    assert words in sentence_of(main, "train-classifier", *flags, "--out", tmp_path / "clf.pt")
    assert not list(tmp_path.iterdir())


def test_a_folder_as_out_is_refused_before_training(tmp_path, sentence_of, monkeypatch):
    monkeypatch.delattr(classifiers, "train")
    sentence = sentence_of(main, "train-classifier", "--dataset_name", "digits", "--out", tmp_path)
    assert sentence.startswith(f"error: --out {tmp_path} is a folder")
