"""`python -m evaluations.images`: what the scores say, on real digits and clothes, and to whom."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import domains
from domains.pictures import HEADING
from domains.sources import FASHION_FOLDER
from evaluations.extractors import Features
from evaluations.extractors import classifier as classifiers
from evaluations.extractors.classifier import Classifier, SmallCNN, images_of
from evaluations.images.evaluator import Evaluator
from evaluations.images.features import look_at
from evaluations.images.reference import as_arrays, make_reference
from evaluations.images.scores import How
from evaluations.images.sources import Block, Real, open_images, real_of
from evaluations.metrics import Moments, frechet_distance, precision_recall
from runtime.distributed import Ranks
from runtime.errors import InputError, LocalError
from tests.commands import ROOT, call, launched, refused, succeed
from tests.evaluations.lab import picture_folder

ALONE = Ranks(0, 1, torch.device("cpu"))
TOOL = "evaluations.images.__main__"


class Held:
    """Images in memory."""

    name, rate = "held", None

    def __init__(self, raw, y=None):
        self.raw, self.y, self.shape = raw, y, tuple(raw.shape[1:])

    def __len__(self):
        return len(self.raw)

    def fingerprint(self):
        return "held"

    def blocks(self, numbers, size):
        for first in range(numbers.start, numbers.stop, size):
            part = slice(first, min(first + size, numbers.stop))
            yield Block(self.raw[part], None if self.y is None else self.y[part])


def noisy(raw, sigma):
    random = torch.Generator().manual_seed(5)
    noise = sigma * torch.randn(raw.shape, generator=random)
    return (raw.float() + noise).clamp(0, 255).to(torch.uint8)


def blurred(raw):
    return torch.nn.functional.avg_pool2d(raw.float(), 3, 1, 1).to(torch.uint8)


def shuffled(raw):
    random = torch.Generator().manual_seed(6)
    return torch.stack([image.flatten()[torch.randperm(image.numel(), generator=random)]
                        for image in raw]).view_as(raw)  # fmt: skip


def evaluator_of(domain, classifier):
    real = real_of(domain.name, domain, workers=0)
    return Evaluator(real, classifier, ALONE, How(half=False), batch=500, progress=False)


@pytest.fixture(scope="module")
def evaluator(digits, classifier):
    return evaluator_of(digits, classifier)


def save(path, images, labels=None, protocol=None):
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.numpy()
    np.savez(path, **arrays)
    if protocol is not None:
        path.with_suffix(".json").write_text(json.dumps(protocol))
    return path


def check_order(evaluator, held_out):
    """What the tables of the evaluation protocol show, for any small domain."""
    raw, y = held_out
    scores = {
        name: evaluator.evaluate(Held(images, labels))["scores"]
        for name, images, labels in [
            ("real", raw, y), ("noise 8", noisy(raw, 8), y), ("noise 32", noisy(raw, 32), y),
            ("noise 96", noisy(raw, 96), y), ("blur", blurred(raw), y),
            ("half", raw[y < 5], y[y < 5]), ("shuffled", shuffled(raw), y),
        ]
    }  # fmt: skip
    fd = {name: one["fd_classifier"] for name, one in scores.items()}
    assert fd["real"] < fd["noise 8"] < fd["noise 32"] < fd["noise 96"]
    assert all(fd[name] > 10 * fd["real"] for name in ("blur", "half", "shuffled"))
    kd = {name: one["kd_classifier"] for name, one in scores.items()}
    assert kd["real"] < kd["noise 32"] < kd["noise 96"]
    # Missing classes are seen in recall and in the class score, not in precision or accuracy.
    real, half = scores["real"], scores["half"]
    assert half["recall"] < real["recall"] - 0.2 and half["precision"] > real["precision"] - 0.05
    assert half["inception_score"] < 0.65 * real["inception_score"]
    assert half["accuracy"] > real["accuracy"] - 0.05 > scores["noise 96"]["accuracy"]
    assert scores["shuffled"]["precision"] < 0.2 > scores["shuffled"]["recall"]


def test_scores_of_digits_order_corruption_and_missing_classes(evaluator, held_out):
    check_order(evaluator, held_out)


def test_held_out_images_score_the_floor(digits, evaluator):
    result = evaluator.evaluate(evaluator.real.held_out)
    assert result["scores"] == pytest.approx(result["floor"]["scores"], rel=1e-9)
    assert result["floor"]["images"] == result["images"] == 500
    low, high = result["intervals"]["kd_classifier"]
    assert low < result["scores"]["kd_classifier"] < high


def test_the_floor_is_taken_at_the_samples_number(evaluator, held_out):
    raw, _ = held_out
    few, many = evaluator.evaluate(Held(raw[:60])), evaluator.evaluate(Held(raw.repeat(2, 1, 1, 1)))
    assert (few["floor"]["images"], many["floor"]["images"]) == (60, 500)
    distances = [one["floor"]["scores"]["fd_classifier"] for one in (few, many)]
    assert distances[0] > 2 * distances[1]
    assert "accuracy" not in few["scores"]
    assert any("too few for a covariance of 64" in warning for warning in few["warnings"])


def test_a_last_split_that_is_shorter_is_said(digits, classifier, held_out):
    """Three images alone score 3 at most, and count as much as the 80 before them."""
    real = real_of(digits.name, digits, workers=0)
    by_80 = Evaluator(real, classifier, ALONE, How(half=False, split=80), batch=500, progress=False)
    said = [
        by_80.evaluate(Held(held_out.raw[:count]), with_floor=False)["warnings"]
        for count in (160, 163)
    ]
    assert not any("Inception score" in one for one in said[0])
    assert any("the last 3 images count for the Inception score" in one for one in said[1])


def test_the_reference_is_the_training_images(digits, classifier, evaluator):
    real = images_of(digits, digits.train_set())
    result = evaluator.evaluate(Held(*real))
    assert result["scores"]["fd_classifier"] < 1e-8
    assert result["scores"]["precision"] == result["scores"]["recall"] == 1
    expected = Moments.of(classifier(real.raw).pool)
    torch.testing.assert_close(evaluator.reference.moments.mean, expected.mean)


def test_labels_that_the_classifier_does_not_know_are_refused(evaluator, held_out):
    raw, y = held_out
    with pytest.raises(InputError, match="class id 11 among the labels"):
        evaluator.evaluate(Held(raw, y + 2))
    with pytest.raises(InputError, match="at least"):
        evaluator.evaluate(Held(raw[:1]))
    with pytest.raises(InputError, match="trained on images of"):
        evaluator.evaluate(Held(raw.repeat(1, 3, 1, 1)))


# References


class Linear:
    """An extractor with spatial features and without classes."""

    name, fingerprint, distance = "linear", "f" * 64, "fd_linear"
    half_distances, reads_labels, rate, device = False, False, None, torch.device("cpu")

    def __call__(self, images):
        flat = images.flatten(1).float() / 255
        return Features(flat[:, :8], flat[:, 8:11])

    def probabilities(self, pool):
        return None


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (300, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()


def statistics(features):
    moments = Moments.of(features)
    return moments.mean.numpy(), moments.covariance.numpy()


def adm_reference(path, pixels, **more):
    """As ADM's: statistics of many images, and a few of them."""
    features = Linear()(pixels)
    (mu, sigma), (mu_s, sigma_s) = statistics(features.pool), statistics(features.spatial)
    few = pixels[:50].permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=few, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, **more)
    return path


def test_stored_statistics_are_used_and_the_images_for_precision(tmp_path, pixels, monkeypatch):
    linear = Linear()
    monkeypatch.setattr(Linear, "name", "inception-2015-12-05")  # of a file that does not say
    path = adm_reference(tmp_path / "ref.npz", pixels)
    evaluator = Evaluator(open_images(str(path)), linear, ALONE, How(False), batch=64)
    samples = noisy(pixels, 30)
    scores = evaluator.evaluate(Held(samples))["scores"]
    for part, name in enumerate(["fd_linear", "sfd_linear"]):
        real, drawn = (Moments.of(linear(images)[part]) for images in (pixels, samples))
        assert scores[name] == pytest.approx(frechet_distance(drawn, real), rel=1e-6)
    assert len(evaluator.reference.pool) == 50 and "inception_score" not in scores


def test_features_that_are_not_finite_are_one_sentence(tmp_path, pixels, monkeypatch):
    """Of damaged weights, say; one process alone may see them."""

    def broken(self, images):
        flat = images.flatten(1).float()
        return Features(flat[:, :8], flat[:, 8:11] / (flat[:, 8:9] - flat[7, 8]))

    monkeypatch.setattr(Linear, "__call__", broken)
    with pytest.raises(LocalError, match="linear sees NaN or infinity in held"):
        look_at(Held(pixels), Linear(), ALONE, batch=64, progress=False)
    monkeypatch.setattr("evaluations.images.__main__.open_extractor", lambda *_, **__: Linear())
    samples = save(tmp_path / "s.npz", pixels)
    result = call(TOOL, samples, samples, "--device", "cpu")
    assert result.code == 2 and "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("error: --extractor linear sees NaN")


def test_a_reference_of_few_images_is_said_to_set_precision_and_recall(
    tmp_path, pixels, monkeypatch
):
    """ImageNet-512's holds 1,000."""
    monkeypatch.setattr(Linear, "name", "inception-2015-12-05")
    monkeypatch.setattr(Linear, "distance", "fid")
    real = open_images(str(adm_reference(tmp_path / "ref.npz", pixels)))
    evaluator = Evaluator(real, Linear(), ALONE, How(False), batch=64, progress=False)
    said = "precision and recall are of 50 images of "
    assert any(said in one for one in evaluator.evaluate(Held(pixels))["warnings"])
    monkeypatch.setattr("evaluations.images.scores.KEPT", 50)
    assert not any(said in one for one in evaluator.evaluate(Held(pixels))["warnings"])


def test_sounds_of_another_rate_are_not_heard_too_fast(pixels, monkeypatch):
    monkeypatch.setattr(Linear, "rate", 44_100)
    for rate, name in ((None, "unknown"), (44_100, "music")):
        sounds = Held(pixels)
        sounds.rate, sounds.name = rate, name
        assert len(look_at(sounds, Linear(), ALONE, batch=64, progress=False)) == 300
    sounds.rate = 16_000
    with pytest.raises(InputError, match="takes sounds of 44100 .* and music has 16000"):
        look_at(sounds, Linear(), ALONE, batch=64)


def test_classes_are_kept_where_every_block_has_them(pixels):
    """Of music a block may hold a track with several tags, and the next one none."""

    class Some(Held):
        def blocks(self, numbers, size):
            for number, (raw, y) in enumerate(super().blocks(numbers, size)):
                yield Block(raw, y if number else None)

    y = torch.arange(300)
    assert look_at(Held(pixels, y), Linear(), ALONE, batch=64, progress=False).y.equal(y)
    assert look_at(Some(pixels, y), Linear(), ALONE, batch=64, progress=False).y is None
    kept = as_arrays("arr_0", Some(pixels, y), y[:99], batch=64)
    assert kept.keys() == {"arr_0"} and len(kept["arr_0"]) == 99


def test_statistics_of_another_extractor_are_refused(tmp_path, pixels):
    def opened(path):
        return Evaluator(open_images(str(path)), Linear(), ALONE, How(False), batch=64)

    with pytest.raises(InputError, match="has statistics of inception-2015-12-05"):
        opened(adm_reference(tmp_path / "adm.npz", pixels))
    own = dict(extractor="linear", fingerprint="e" * 64, count=300)
    with pytest.raises(InputError, match="has statistics of linear eeeeeeee, but --extractor"):
        opened(adm_reference(tmp_path / "other.npz", pixels, **own))
    own["fingerprint"] = "f" * 64
    assert opened(adm_reference(tmp_path / "own.npz", pixels, **own)).reference.count == 300
    content = dict(np.load(tmp_path / "own.npz"))
    sigma = content["sigma"]
    for wrong in (np.eye(3), -sigma, np.triu(sigma), sigma * np.nan, sigma + 1j, sigma.astype(int)):
        np.savez(tmp_path / "bad.npz", **content | {"sigma": wrong})
        with pytest.raises(InputError, match="mu and sigma are no statistics"):
            opened(tmp_path / "bad.npz")
    for wrong in (np.array([1, 2]), np.array(np.nan), np.array("abc"), np.array(-5)):
        np.savez(tmp_path / "bad.npz", **content | {"count": wrong})
        with pytest.raises(InputError, match="not a number of images"):
            opened(tmp_path / "bad.npz")
    np.savez(tmp_path / "swapped.npz", **content | {"mu": content["mu"].astype(">f4")})
    opened(tmp_path / "swapped.npz")


def test_a_reference_can_be_made_again_of_one_whose_number_is_not_known(
    tmp_path, pixels, monkeypatch
):
    monkeypatch.setattr(Linear, "name", "inception-2015-12-05")
    old = open_images(str(adm_reference(tmp_path / "old.npz", pixels)))
    make_reference(old, Linear(), ALONE, tmp_path / "new.npz", batch=64)
    evaluator = Evaluator(
        open_images(str(tmp_path / "new.npz")), Linear(), ALONE, How(False), batch=64
    )
    assert evaluator.reference.count is None and evaluator.reference.vouched
    mean = evaluator.reference.moments.mean
    assert np.allclose(mean, np.load(tmp_path / "old.npz")["mu"])


def test_a_reference_of_clips_holds_their_features(tmp_path):
    """10,000 clips of SSv2 would be 395 GB; eight of them are for the picture."""

    def drawn(seed, count):
        random = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (count, 4, 6, 5, 3), generator=random).byte().numpy()

    np.savez(
        tmp_path / "clips.npz", arr_0=drawn(0, 60), held_out=drawn(1, 30), frame_stride=2,
        held_out_labels=np.arange(30),
    )  # fmt: skip
    np.savez(tmp_path / "samples.npz", arr_0=drawn(2, 25))
    clips, samples = (open_images(str(tmp_path / f"{name}.npz")) for name in ("clips", "samples"))
    make_reference(clips, Linear(), ALONE, tmp_path / "made.npz", batch=16)
    content = np.load(tmp_path / "made.npz")
    shapes = {name: content[name].shape for name in content.files}
    assert shapes["arr_0"] == shapes["held_out"] == (8, 4, 6, 5, 3)
    assert shapes["pool"] == (60, 8) and shapes["held_out_pool"] == (30, 8)

    made = open_images(str(tmp_path / "made.npz"))
    assert len(made.held_out) == 30 and made.held_out.labels.tolist() == list(range(30))
    found, expected = (
        Evaluator(real, Linear(), ALONE, How(False), batch=16).evaluate(samples.images)
        for real in (made, clips)
    )
    names = set(found["scores"]) - {"sfd_linear"}  # spatial features are not kept
    for one, other in ((found, expected), (found["floor"], expected["floor"])):
        assert {name: one["scores"][name] for name in names} == pytest.approx(
            {name: other["scores"][name] for name in names}, rel=1e-6
        )
    assert found["clips"] == expected["clips"] and found["clips"]["frame_stride"] == 2
    assert sum(len(block.raw) for block in made.held_out.blocks(range(30), 3)) == 8
    make_reference(made, Linear(), ALONE, tmp_path / "again.npz", batch=16)
    assert np.array_equal(np.load(tmp_path / "again.npz")["pool"], content["pool"])

    # Features are not those of samples under another extractor, nor anything else.
    other = Linear()
    other.fingerprint = "e" * 64
    with pytest.raises(InputError, match="statistics of linear ffffffff, but --extractor"):
        look_at(made.held_out, other, ALONE, batch=16)
    for wrong in (np.zeros(3), np.full((60, 8), np.nan), np.zeros((60, 8), int), np.zeros((0, 8))):
        np.savez(tmp_path / "bad.npz", **dict(content) | {"pool": wrong})
        with pytest.raises(InputError, match="pool is .* not finite features"):
            open_images(str(tmp_path / "bad.npz"))


def test_a_made_reference_scores_like_the_data_set(tmp_path, digits_classifier, held_out):
    samples = save(tmp_path / "s.npz", noisy(held_out.raw, 8), held_out.y)
    extractor = ["--extractor", f"classifier:{digits_classifier}", "--device", "cpu"]
    made = tmp_path / "digits-ref.npz"
    succeed(TOOL, "make-reference", "digits", "--out", made, *extractor)
    results = []
    for reference in ("digits", made):
        succeed(TOOL, reference, samples, *extractor)
        results.append(json.loads((tmp_path / "s.score.json").read_text()))
    one, other = results
    assert one["scores"] == pytest.approx(other["scores"], rel=1e-6)
    assert one["floor"]["scores"] == pytest.approx(other["floor"]["scores"], rel=1e-6)
    content = np.load(made, allow_pickle=False)
    assert content["arr_0"].shape == (1297, 8, 8, 1) and content["mu"].shape == (64,)


def test_a_reference_keeps_a_fixed_random_choice_of_a_folder_sorted_by_class(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluations.images.reference.KEPT", 40)
    folder = picture_folder(tmp_path / "images", [(name, 20) for name in "abcd"])
    domain = domains.build("folder", data_path=str(folder), image_size=8, vae="none")
    real = real_of("images", domain, workers=0)
    for name in ("one", "two"):
        made = make_reference(real, Linear(), ALONE, tmp_path / f"{name}.npz", batch=16)
    one, two = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    (whole,) = real.images.blocks(range(80), 80)
    pixels = whole.raw.movedim(1, -1).numpy()
    rows = [int(np.flatnonzero((pixels == image).all((1, 2, 3)))[0]) for image in one["arr_0"]]
    assert len(rows) == 40 and rows == sorted(set(rows))
    assert one["arr_1"].tolist() == whole.y[rows].tolist()
    assert (np.bincount(one["arr_1"], minlength=4) >= 4).all()  # and not the first 40 alone
    assert made.pool.equal(Linear()(whole.raw[rows]).pool)
    mean = Linear()(whole.raw).pool.double().mean(0)  # of all images
    assert np.allclose(one["mu"], mean) and one["count"] == 80


# The command


@pytest.mark.parametrize("asked", [None, "half", "float32"])
@pytest.mark.parametrize("own", [True, False])
def test_distances_are_the_extractors_unless_they_are_asked_for(
    tmp_path, pixels, monkeypatch, asked, own
):
    """In float16 points that are nearer than its steps are equal, and inside."""
    monkeypatch.setattr(Linear, "half_distances", own)
    monkeypatch.setattr("evaluations.images.__main__.open_extractor", lambda *_, **__: Linear())
    nearly = noisy(pixels, 1)
    ref, samples = save(tmp_path / "ref.npz", pixels), save(tmp_path / "s.npz", nearly)
    words = ["--pr-precision", asked] if asked else []
    succeed(TOOL, ref, samples, "--device", "cpu", *words)
    found = json.loads((tmp_path / "s.score.json").read_text())
    half = own if asked is None else asked == "half"
    assert found["how"]["precision_recall"]["distances"] == ("half" if half else "float32")
    sides = (Linear()(images).pool for images in (pixels, nearly))
    expected = precision_recall(*sides, half=half)
    scores = found["scores"]
    assert (scores["precision"], scores["recall"]) == tuple(expected)


@pytest.mark.slow
def test_a_model_that_was_trained_for_a_minute_is_better_than_noise(
    tmp_path, digits_classifier, evaluator
):
    """Samples of the EMA model under the very classifier that the noise is scored by."""
    (tmp_path / "runs").mkdir()
    words = ["--preset", "digits", "--max-steps", 400, "--sample-every", 0, "--score-every", 400]
    words += ["--score-samples", 200, "--score-extractor", f"classifier:{digits_classifier}"]
    succeed("train", *words, "--results-dir", tmp_path / "runs", "--device", "cpu")
    (log,) = (tmp_path / "runs").glob("*/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    (trained,) = [row["scores"] for row in rows if "scores" in row]
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (200, 1, 8, 8), generator=random).byte()
    found = evaluator.evaluate(Held(noise), with_floor=False)["scores"]
    assert trained["fd_classifier"] < found["fd_classifier"] / 2
    assert trained["precision"] > found["precision"] and trained["recall"] > found["recall"]


@pytest.fixture
def digits_flags(digits_classifier):
    return ["--extractor", f"classifier:{digits_classifier}", "--device", "cpu"]


def test_the_command_leaves_a_table_a_json_and_a_picture(tmp_path, held_out, classifier):
    protocol = {"task": "Samples", "sampler": {"mode": "ODE"}, "seed": 3}
    samples = save(tmp_path / "cfg-1.0.npz", noisy(held_out.raw, 8), held_out.y, protocol)
    done = succeed(TOOL, "digits", samples, "--extractor", "classifier", "--device", "cpu")
    result = json.loads((tmp_path / "cfg-1.0.score.json").read_text())
    assert result["protocol"] == protocol and result["images"] == 500
    assert result["extractor"] == {"name": classifier.name, "sha256": classifier.fingerprint}
    assert result["reference"]["name"] == "digits" and result["reference"]["images"] == 1297
    assert result["how"]["precision_recall"] == {"k": 3, "distances": "float32"}
    assert f"{result['scores']['fd_classifier']:.4g}" in done.out and "FID" not in done.out
    assert done.out.splitlines()[-1] == str(tmp_path / "cfg-1.0.score.json")
    sheet = Image.open(tmp_path / "cfg-1.0.score.png")
    assert sheet.size == (17 * 66 + 2, HEADING + 10 * 66 + 2)
    for left in (0, 9 * 66):  # "real" above the left half, "samples" above the right one
        assert np.asarray(sheet)[:HEADING, left : left + 66].min() < 100
    trained = tmp_path / "classifier-digits.pt"
    before = trained.stat().st_mtime_ns
    succeed(TOOL, "digits", samples, "--extractor", "classifier", "--device", "cpu")
    assert trained.stat().st_mtime_ns == before, "trained once per folder"


def test_two_processes_find_what_one_finds(tmp_path, held_out, digits_flags):
    samples = save(tmp_path / "s.npz", noisy(held_out.raw, 8), held_out.y)
    succeed(TOOL, "digits", samples, *digits_flags)
    alone = json.loads((tmp_path / "s.score.json").read_text())
    launched("evaluations.images.__main__", "digits", samples, *digits_flags, processes=2)
    both = json.loads((tmp_path / "s.score.json").read_text())
    assert alone["scores"] == pytest.approx(both["scores"], rel=1e-5)


def test_several_sets_give_means_and_intervals(tmp_path, held_out, digits_flags):
    sets = [
        save(tmp_path / f"{i}.npz", noisy(held_out.raw[i:498:3], 8), held_out.y[i:498:3])
        for i in range(3)
    ]
    done = succeed(TOOL, "digits", *sets, *digits_flags, "--out", tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    found = content["summary"]["scores"]["fd_classifier"]
    values = [result["scores"]["fd_classifier"] for result in content["results"]]
    assert found["mean"] == pytest.approx(np.mean(values)) and found["n"] == 3
    assert found["low"] < min(values) < max(values) < found["high"]
    assert "3 independent sets" in done.out
    assert "all:2" in succeed(TOOL, "--compare", tmp_path / "all.json").out
    assert "named twice" in refused(TOOL, "digits", sets[0], sets[0], *digits_flags)
    few = save(tmp_path / "few.npz", held_out.raw[:9])
    assert "are of one size" in refused(TOOL, "digits", sets[0], few, *digits_flags)
    protocol = {"sampler": {"num_sampling_steps": 5}}
    (tmp_path / "1.json").write_text(json.dumps(protocol))
    said = refused(TOOL, "digits", *sets, *digits_flags)
    assert "were drawn with another sampler" in said


def test_an_interval_is_over_sets_of_one_model_and_other_seeds(tmp_path, held_out, digits_flags):
    def drawn(name, model, seed):
        protocol = {"checkpoint": {"sha256": model, "file": name}, "seed": seed, "sampler": {}}
        return save(tmp_path / f"{name}.npz", held_out.raw[:99], protocol=protocol)

    first, other = drawn("first", "aa", 0), drawn("other", "bb", 1)
    said = refused(TOOL, "digits", first, other, *digits_flags)
    assert "were drawn from different checkpoints" in said
    twice = drawn("twice", "aa", 0)
    assert "with the same seed" in refused(TOOL, "digits", first, twice, *digits_flags)
    second = drawn("second", "aa", 1)
    assert "2 independent sets" in succeed(TOOL, "digits", first, second, *digits_flags).out


def test_results_are_compared_only_if_they_were_made_alike(tmp_path, held_out, digits_flags):
    def scored(name, count, steps):
        protocol = {"task": "Samples", "sampler": {"num_sampling_steps": steps}, "seed": 0}
        save(tmp_path / f"{name}.npz", held_out.raw[:count], held_out.y[:count], protocol)
        succeed(TOOL, "digits", tmp_path / f"{name}.npz", *digits_flags)
        return tmp_path / f"{name}.score.json"

    a, b, c, d = (
        scored(*one) for one in [("a", 300, 9), ("b", 300, 9), ("c", 300, 5), ("d", 99, 9)]
    )
    table = succeed(TOOL, "--compare", a, b).out
    assert table.splitlines()[0].split()[-1].endswith("b") and "fd_classifier" in table
    assert "differ in protocol.sampler" in refused(TOOL, "--compare", a, c)
    assert "differ in images" in refused(TOOL, "--compare", a, b, d)
    assert "fd_classifier" in succeed(TOOL, "--compare", a, c, "--anyway").out
    result = json.loads(a.read_text())
    for wrong in ({"fd_classifier": "0.5"}, {"fd_classifier": float("nan")}, {"fd": 10**400}):
        (tmp_path / "x.json").write_text(json.dumps(result | {"scores": wrong}))
        assert "is no result" in refused(TOOL, "--compare", a, tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps(result | {"images": 7, "protocol": result}))
    assert "differ in images" in refused(TOOL, "--compare", a, tmp_path / "x.json")
    for wrong in ("a.npz", "none.json"):
        assert wrong in refused(TOOL, "--compare", a, tmp_path / wrong)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["digits", "{samples}"], "no Inception weights: looked for"),
        (["digits", "{samples}", "--extractor", "vgg"], "unknown --extractor 'vgg'"),
        (["digits", "{samples}", "--extractor", "classifier:gone.pt"], "gone.pt: there is no such"),
        (["{samples}", "{samples}", "--extractor", "classifier"], "needs a data set|trains on the"),
        (["digitz", "{samples}", "--extractor", "classifier"], "choose from digits"),
        (["digits", "gone.npz", "--extractor", "classifier"], "gone.npz: there is no such file"),
        (["digits", "--extractor", "classifier"], "SAMPLES are missing"),
        (["digits", "{samples}", "--is-split", "0"], "--is-split 0: give 1 or more"),
        (["digits", "{samples}", "--batch-size", "-1"], "--batch-size -1: give 1 or more"),
        (["digits", "{samples}", "--out", "{folder}"], "is a folder"),
        (["digits", "{samples}", "--extractor-weights", "x"], "those of --extractor timm"),
        (
            ["digits", "{samples}", "--extractor", "timm:x", "--inception-weights", "x"],
            "--inception-weights are those of --extractor inception",
        ),
        (["make-reference", "digits", "--out", "{folder}"], "is a folder"),
        (["make-reference", "digits", "--out", "x.npz", "--held-out", "0"], "give 1 or more"),
        (["digits", "{color}", "--extractor", "classifier"], "trained on images of"),
        (["make-reference", "digits", "--out", "{folder}/no.npz"], "no Inception weights"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path, held_out, words, sentence, monkeypatch, digits_classifier
):
    shutil.copy(digits_classifier, tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "samples.npz", held_out.raw[:20])
    save(tmp_path / "color.npz", held_out.raw[:20].repeat(1, 3, 1, 1))
    places = {
        "samples": tmp_path / "samples.npz", "color": tmp_path / "color.npz", "folder": tmp_path
    }  # fmt: skip
    result = call(TOOL, *[word.format(**places) for word in words], "--device", "cpu")
    said = result.err.strip().splitlines()[-1]
    assert result.code == 2 and said.startswith("error: "), result.err
    assert any(part in said for part in sentence.split("|"))
    assert "Traceback" not in result.err and not (tmp_path / "samples.score.json").exists()


def test_memory_does_not_grow_with_the_file(tmp_path):
    """The largest resident size of a process that scores 16 MB, and of one that scores 126 MB."""
    torch.manual_seed(0)
    config = {"channels": 3, "num_classes": 4, "image_size": 256}
    Classifier(SmallCNN(**config), config, "photos", 1.0).save(tmp_path / "clf.pt")
    random = np.random.RandomState(0)
    real = random.randint(0, 256, (80, 256, 256, 3), np.uint8)
    np.savez(tmp_path / "ref.npz", real)
    np.savez(tmp_path / "small.npz", real)
    np.savez(tmp_path / "large.npz", np.tile(real, (8, 1, 1, 1)))
    code = (
        "import resource, sys; from evaluations.images.__main__ import main; main(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for name in ("small", "large"):
        words = ["ref.npz", f"{name}.npz", "--extractor", "classifier:clf.pt", "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--batch-size", "16"], cwd=tmp_path, check=True,
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + 50


def test_a_full_disk_is_one_sentence(tmp_path, held_out, digits_flags):
    samples = save(tmp_path / "s.npz", held_out.raw[:50])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        result = call(TOOL, "digits", samples, *digits_flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 2 and result.err.strip().splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz"]


@pytest.mark.skipif(
    not os.path.isdir(FASHION_FOLDER), reason="needs Debian's package dataset-fashion-mnist"
)
def test_scores_of_clothes_order_corruption_and_missing_classes():
    """On 60,000 real pictures the floor is a hundredth of the mildest corruption."""
    domain = domains.build("fashion-mnist")
    classifier = classifiers.train(domain, steps=300)
    assert classifier.accuracy > 0.75
    real = classifiers.images_of(domain, domain.train_set(augment=False))
    few = Held(real.raw[:6000], real.y[:6000])
    evaluator = Evaluator(
        Real(few, None), classifier, ALONE, How(half=False), batch=500, progress=False
    )
    held_out = classifiers.images_of(domain, domain.held_out_set())
    check_order(evaluator, classifiers.LabeledImages(held_out.raw[:3000], held_out.y[:3000]))
