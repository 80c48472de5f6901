"""python -m evaluations.motion from end to end, with an evaluator that is trained here."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

import domains
from domains.humanml3d import Caption, read_clips
from evaluations.motion.batches import Batch
from evaluations.motion.in_training import MotionScore
from evaluations.motion.networks import Matching, load
from evaluations.motion.report import warnings_of
from evaluations.motion.words import FILES, read_vocabulary
from experiments import motion_evaluator
from runtime.config import TrainConfig
from runtime.distributed import start_alone
from runtime.files import write_json
from tests.commands import call, launched, score_rows, succeed
from tests.evaluations.captioned_motions import write_humanml3d

COMMAND, TRAINER = "evaluations.motion.__main__", "experiments.motion_evaluator"
FINEST = "t2m/text_mot_match/model/finest.tar"
CLIPS, REPLICATIONS = 64, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("motions") / "small" / "steps"
    return write_humanml3d(root, train=128, val=20, test=CLIPS)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of an evaluator, and what its trainer printed."""
    out = tmp_path_factory.mktemp("evaluator")
    return out, succeed(TRAINER, "--data", data, "--out", out, "--epochs", 8).out


@pytest.fixture(scope="module")
def real(data):
    """Real clips as samples, all of them in every replication: motions, and their arr_1."""
    clips = read_clips(str(data), "test")
    random = np.random.default_rng(1)
    motions = np.tile(np.load(data / "Mean.npy"), (REPLICATIONS * CLIPS, 196, 1))
    asked = np.zeros((len(motions), 2), np.int64)
    for first in range(0, len(motions), CLIPS):
        for i, number in enumerate(random.permutation(CLIPS), start=first):
            crop = clips.clips[number].crop(short=False, place=0.0)
            motions[i, : len(crop)] = crop
            asked[i] = clips.clips[number].captions[0], len(crop)
    return motions, asked


@pytest.fixture
def evaluator(trained, tmp_path):
    """A copy of the evaluator to be changed."""
    shutil.copytree(trained[0], tmp_path / "evaluator")
    return tmp_path / "evaluator"


def flags_for(path, data, evaluator, *more):
    wanted = ["--data", data, "--evaluator", evaluator, "--per-replication", CLIPS]
    return [path, *wanted, "--device", "cpu", *more]


def scored(path, arrays, data, evaluator, *more):
    """The JSON of a set of samples, and what was printed."""
    np.savez(path, *arrays)
    out = succeed(COMMAND, *flags_for(path, data, evaluator, *more)).out
    return json.loads(path.with_name(f"{path.stem}.score.json").read_text()), out


def refused(script, *arguments):
    """The last line that a command says to bad input: bars of progress may come before."""
    result = call(script, *arguments)
    *_, said = result.err.splitlines()
    assert result.code == 2 and result.out == "" and said.startswith("error: "), result
    return said


def mean(result, who, name):
    return result["measured"][who][name]["mean"]


# What it says of samples


@pytest.fixture(scope="module")
def result(data, trained, real, tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    write_json(path.with_suffix(".json"), {"sampler": {"mode": "ddpm"}, "guidance": {"scale": 2.5}})
    found, out = scored(path, real, data, trained[0])
    return found, out, path


def test_real_motions_as_samples_score_as_the_real_row(result):
    found, _, _ = result
    top = mean(found, "real", "r_precision_3")
    assert top > 3 * 3 / 32
    assert mean(found, "samples", "r_precision_3") == pytest.approx(top, abs=0.1)
    assert mean(found, "samples", "r_precision_1") <= mean(found, "samples", "r_precision_2")
    for name in ("matching_score", "diversity"):
        assert mean(found, "samples", name) == pytest.approx(mean(found, "real", name), rel=0.15)
    assert mean(found, "samples", "fd_trained") < 0.1


def test_the_score_in_training_is_the_commands(data, trained, real, tmp_path):
    """Of the same motions: there they are drawn by number, here they are in a file."""
    motions, asked = (part[:CLIPS].astype(np.float32 if part.ndim == 3 else int) for part in real)
    found, _ = scored(tmp_path / "one.npz", (motions, asked), data, trained[0])
    domain = domains.build("humanml3d", image_size=196, data_path=str(data), text_encoder="none")
    config = TrainConfig(
        dataset_name="humanml3d", data_path=str(data), score_samples=CLIPS,
        score_reference=str(trained[0]),
    )  # fmt: skip
    score = MotionScore(config, domain, start_alone("test", "cpu"))

    def draw(numbers):
        raw = torch.from_numpy(motions[numbers.start : numbers.stop]).transpose(1, 2)
        return raw, torch.from_numpy(2 * asked[numbers.start : numbers.stop, 0])

    score.try_out(draw)
    assert score(draw) == found["scores"]
    motions[:] = math.nan
    (nothing,) = score(draw).values()
    assert math.isnan(nothing)  # a model that breaks down is the run's to judge
    assert score.facts()["images"] == CLIPS and "small/steps" in score.facts()["extractor"]


def test_two_processes_score_motions_as_one_and_resumed_runs_too(data, trained, tmp_path):
    words = (
        f"--preset motions --text-encoder none --image-size 48 --hidden-size 32 --num-heads 2 "
        f"--sample-every 0 --device cpu --data-path {data} --score-every 2 --score-samples 64 "
        f"--score-reference {trained[0]} --global-batch-size 4 --resume auto"
    ).split()
    for name, processes, stops in (("one", 1, [4]), ("two", 2, [4]), ("parts", 1, [2, 4])):
        for stop in stops:
            folder = ["--results-dir", tmp_path / name, "--max-steps", stop]
            launched("train", *words, *folder, processes=processes)
    one, two, parts = (score_rows(tmp_path / name) for name in ("one", "two", "parts"))
    assert [row["step"] for row in one] == [2, 4] and one == parts
    assert one[0]["scores"]["fd_trained"] != one[1]["scores"]["fd_trained"]
    for a, b in zip(one, two, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], rel=1e-3)


def test_shuffled_captions_score_by_chance_at_the_same_distance(data, trained, real, result,
                                                                tmp_path):  # fmt: skip
    motions, asked = real
    shuffled = asked.copy()
    shuffled[:, 0] = np.roll(asked[:, 0], 5)
    found, _ = scored(tmp_path / "x.npz", (motions, shuffled), data, trained[0])
    assert mean(found, "samples", "r_precision_3") < 2 * 3 / 32
    assert found["measured"]["real"] == result[0]["measured"]["real"]
    for name in ("fd_trained", "diversity"):
        assert found["measured"]["samples"][name] == result[0]["measured"]["samples"][name]
    assert mean(found, "samples", "matching_score") > 1.5 * mean(found, "real", "matching_score")


def test_motions_of_another_kind_are_far_away(data, trained, real, result, tmp_path):
    motions, asked = real
    still = np.broadcast_to(motions[:, :1], motions.shape)
    found, _ = scored(tmp_path / "x.npz", (still.copy(), asked), data, trained[0])
    assert mean(found, "samples", "fd_trained") > 20 * mean(result[0], "samples", "fd_trained")


def test_the_result_says_all_that_it_depends_on(result, trained):
    found, out, path = result
    assert found["replications"] == REPLICATIONS and found["per_replication"] == CLIPS
    assert found["scores"] == {k: v["mean"] for k, v in found["measured"]["samples"].items()}
    assert found["evaluator"]["name"] == "trained on 128 clips of small/steps"
    assert len(found["evaluator"]["sha256"]) == len(found["samples_sha256"]) == 64
    assert found["reference"]["motions"] == CLIPS and found["reference"]["name"] == "small/steps"
    assert found["protocol"]["guidance"] == {"scale": 2.5} and "torch" in found["versions"]
    assert list(found["measured"]) == ["real", "samples"]  # the ground truth first
    values = found["measured"]["samples"]["r_precision_1"]
    assert len(values["values"]) == values["n"] == REPLICATIONS and values["reach"] >= 0
    assert path.with_name("x.score.png").stat().st_size > 5000
    lines = out.splitlines()
    assert lines[2].startswith("real ") and lines[3].startswith("samples ") and "±" in lines[3]
    assert "Frechet distance" in lines[1] and "FID" not in out and "T2M" not in out
    assert "2 of 20 replications" in out and "64 motions are too few for a covariance" in out
    assert "diversity is of 64 pairs" in out


def test_what_fills_no_replication_is_left_out_and_said(data, trained, real, result, tmp_path):
    motions, asked = (np.concatenate([array, array[:10]]) for array in real)
    found, out = scored(tmp_path / "x.npz", (motions, asked), data, trained[0])
    assert found["left_out"] == 10 and "the last 10 samples fill no replication" in out
    assert found["measured"] == result[0]["measured"]  # and the same flags give the same numbers


def test_another_seed_draws_other_crops_of_the_real_motions(data, trained, real, result, tmp_path):
    found, _ = scored(tmp_path / "x.npz", real, data, trained[0], "--seed", 1)
    assert found["measured"]["real"] != result[0]["measured"]["real"]


# The evaluator


def untrained(path):
    content = torch.load(path, weights_only=True)
    for name in ("text_encoder", "motion_encoder"):
        content[name] = {key: torch.randn_like(x) * 0.1 for key, x in content[name].items()}
    torch.save(content, path)


def test_an_evaluator_that_cannot_tell_real_motions_is_called_so(data, evaluator, real, tmp_path):
    torch.manual_seed(0)
    untrained(evaluator / FINEST)
    _, out = scored(tmp_path / "x.npz", real, data, evaluator)
    assert "where chance is 0.094: this evaluator cannot tell motions of this data" in out


def test_a_file_as_published_is_named_and_held_to_its_published_number(data, evaluator, real,
                                                                       tmp_path):  # fmt: skip
    content = torch.load(evaluator / FINEST, weights_only=True)
    del content["trained_on"]
    torch.save(content, evaluator / FINEST)
    found, out = scored(tmp_path / "x.npz", real, data, evaluator)
    assert found["evaluator"]["name"] == "T2M" and "fid" in found["measured"]["real"]
    assert "FID" in out and "0.797 is published" in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"r_precision_3": 0.72}, "R-precision, top 3 is 0.72, where 0.797 is published"),
        ({"fid": 0.05}, "FID is 0.05, where 0.002 is published"),
        ({"diversity": 8.7}, "diversity is 8.7, where 9.503 is published"),
    ],
)
def test_every_sanity_number_of_real_motions_is_held_to_the_published_one(result, change, said):
    values = {"r_precision_3": 0.799, "fid": 0.003, "diversity": 9.4} | change
    real = {name: {"mean": value} for name, value in values.items()}
    as_t2m = {"name": "T2M", "width": 512}
    found = warnings_of(result[0] | {"measured": {"real": real}, "evaluator": as_t2m})
    strange = [one for one in found if "published" in one]
    assert len(strange) == bool(said) and all(said in one for one in strange)


def move(folder, *pairs):
    for before, after in pairs:
        (folder / after).parent.mkdir(parents=True, exist_ok=True)
        (folder / before).rename(folder / after)


LAYOUTS = {
    "text-to-motion": (
        (FINEST, f"checkpoints/{FINEST}"),
        ("dataset/t2m_mean.npy", "checkpoints/t2m/Comp_v6_KLD01/meta/mean.npy"),
        ("dataset/t2m_std.npy", "checkpoints/t2m/Comp_v6_KLD01/meta/std.npy"),
    ),
    "deps": (
        (FINEST, f"t2m/{FINEST}"),
        ("dataset/t2m_mean.npy", "t2m/t2m/Comp_v6_KLD01/meta/mean.npy"),
        ("dataset/t2m_std.npy", "t2m/t2m/Comp_v6_KLD01/meta/std.npy"),
    ),
    "flat": (
        ("dataset/t2m_mean.npy", "t2m_mean.npy"),
        ("dataset/t2m_std.npy", "t2m_std.npy"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_others_are_read(data, evaluator, real, result, layout, tmp_path):
    move(evaluator, *LAYOUTS[layout])
    one = [array[:CLIPS] for array in real]
    found, out = scored(tmp_path / "x.npz", one, data, evaluator)
    assert found["measured"]["samples"]["diversity"]["reach"] is None and "no interval" in out
    first = result[0]["measured"]["samples"]["matching_score"]["values"][0]
    assert mean(found, "samples", "matching_score") == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(
    "name", [FINEST, "glove/our_vab_data.npy", "dataset/t2m_mean.npy", "dataset/t2m_std.npy"]
)
def test_a_part_that_is_missing_is_named(data, evaluator, real, tmp_path, name):
    (evaluator / name).unlink()
    np.savez(tmp_path / "x.npz", *real)
    said = refused(COMMAND, *flags_for(tmp_path / "x.npz", data, evaluator))
    assert name.rsplit("/")[-1] in said


def test_the_datas_own_statistics_are_no_evaluators(data, evaluator, real, tmp_path):
    """Mean.npy and Std.npy in their place would ruin the distance silently."""
    np.savez(tmp_path / "x.npz", *real)
    for name in ("mean", "std"):
        shutil.copy(data / f"{name.title()}.npy", evaluator / f"dataset/t2m_{name}.npy")
    said = refused(COMMAND, *flags_for(tmp_path / "x.npz", data, evaluator))
    assert "t2m_std.npy is not the evaluator's own" in said
    assert "1 times it for the root and the feet, where 25 belongs" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda std: std * 3, "0.333 times for the others"), (lambda std: std * 0, "more than 0")],
)
def test_statistics_of_other_data_are_refused(data, evaluator, real, tmp_path, change, words):
    np.savez(tmp_path / "x.npz", *real)
    path = evaluator / "dataset/t2m_std.npy"
    np.save(path, change(np.load(path)))
    assert words in refused(COMMAND, *flags_for(tmp_path / "x.npz", data, evaluator))


def test_shorter_canvases_are_held_against_clips_that_are_cut_as_well(
    data, trained, real, tmp_path
):
    motions, asked = real
    short = motions[:, :60], np.minimum(asked, [[10**6, 60]])
    found, out = scored(tmp_path / "x.npz", short, data, trained[0])
    assert found["frames"] == 60 and "motions of at most 60 frames, real ones too" in out
    assert mean(found, "samples", "fd_trained") < 0.3


def test_samples_of_other_captions_are_refused(data, trained, real, tmp_path):
    np.savez(tmp_path / "x.npz", *real)
    write_json(tmp_path / "x.json", {"sampler": {"mode": "DDPM"}, "captions": "another"})
    said = refused(COMMAND, *flags_for(tmp_path / "x.npz", data, trained[0]))
    assert "was drawn with other captions than those of" in said


# Bad input


def bad(value):
    def change(motions, asked):
        motions[70, 3, 5] = value
        return motions, asked

    return change


def asking(value, column):
    def change(motions, asked):
        asked[9, column] = value
        return motions, asked

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x,), r"no array arr_1 \(the captions and lengths\), but arr_0"),
        (bad(np.nan), "motion 70 has numbers that are not finite"),
        (bad(np.inf), "motion 70 has numbers"),
        (lambda x, y: (x[..., :251], y), r"arr_0 is float32 \(128, 196, 251\), not float32"),
        (lambda x, y: (x[:, :101], y), "not float32"),
        (lambda x, y: (x[:, :40], y), "in arr_1, and they are 4 to 40"),
        (lambda x, y: (x.astype(np.float64), y), "arr_0 is float64"),
        (lambda x, y: (np.asfortranarray(x), y), "not float32"),
        (lambda x, y: (x, y[:9]), r"arr_1 is int64 \(9, 2\)"),
        (lambda x, y: (x, y.astype(float)), "arr_1 is float64"),
        (lambda x, y: (x, np.array([{}])), "no readable .npz"),
        (asking(-1, 0), "caption -1 in arr_1, and they are 0 to 63"),
        (asking(64, 0), "caption 64 in arr_1"),
        (asking(200, 1), "length 200 in arr_1, and they are 4 to 196"),
        (asking(0, 1), "length 0 in arr_1"),
        (lambda x, y: (x[:40], y[:40]), "40 motions, .* of 64: give --per-replication 32"),
        (lambda x, y: (x[:9], y[:9]), "9 motions, .* draw at least 32"),
    ],
)
def test_samples_that_cannot_be_scored_are_refused(data, trained, real, tmp_path, change, words):
    arrays = change(*(array.copy() for array in real))
    np.savez(tmp_path / "x.npz", *arrays)
    said = refused(COMMAND, *flags_for(tmp_path / "x.npz", data, trained[0]))
    assert re.search(words, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz"]


def test_damaged_samples_are_refused(data, trained, real, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, *real)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    assert "no readable .npz" in refused(COMMAND, *flags_for(path, data, trained[0]))
    path.write_bytes(whole[: len(whole) // 2])
    assert "only the beginning" in refused(COMMAND, *flags_for(path, data, trained[0]))
    path.unlink()
    assert "there is no such file" in refused(COMMAND, *flags_for(path, data, trained[0]))


@pytest.mark.parametrize("each", [31, 48, 0])
def test_replications_are_whole_batches(data, trained, real, tmp_path, each):
    np.savez(tmp_path / "x.npz", *real)
    flags = flags_for(tmp_path / "x.npz", data, trained[0], "--per-replication", each)
    assert "give a multiple of 32" in refused(COMMAND, *flags)


def test_fewer_than_32_test_clips_are_refused(data, trained, real, tmp_path):
    few = tmp_path / "few"
    shutil.copytree(data, few)
    names = (few / "test.txt").read_text().split()
    (few / "test.txt").write_text("\n".join(names[:31]))
    np.savez(tmp_path / "x.npz", *real)
    said = refused(COMMAND, *flags_for(tmp_path / "x.npz", few, trained[0]))
    assert "31 clips in test.txt: R-precision is among 32" in said


# The trainer


def test_the_trainer_says_what_it_trained_on_and_writes_the_public_layout(trained):
    folder, out = trained
    assert "128 clips of small/steps: loss" in out and "on val.txt after" in out
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {FINEST, "dataset/t2m_mean.npy", "dataset/t2m_std.npy",
                     *(f"glove/{name}" for name in FILES)}  # fmt: skip


def test_it_keeps_the_weights_of_the_lowest_loss(data, trained):
    folder, out = trained
    flags = motion_evaluator.Flags(str(data), folder)
    statistics = motion_evaluator.own_statistics(flags.data)
    clips = read_clips(flags.data, "val")
    networks, _ = load(folder / FINEST)
    vocabulary = read_vocabulary(folder / "glove")
    loss = motion_evaluator.held_out_loss(networks, vocabulary, clips, statistics, seed=0)
    assert float(re.search(r"loss (\S+)", out)[1]) == pytest.approx(loss, rel=1e-3)


def test_training_is_a_function_of_the_seed(tmp_path):
    data = write_humanml3d(tmp_path / "few", train=32, val=4)
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / name
        succeed(TRAINER, "--data", data, "--out", out, "--epochs", 1, "--seed", seed)
        files.append(torch.load(out / FINEST, weights_only=True))
    weights = [file["motion_encoder"]["input_emb.weight"] for file in files]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_captions_of_the_same_words_are_not_pushed_apart():
    """Two of the three motions are of one caption."""
    captions = [Caption("", (f"{verb}/VERB",)) for verb in ("walk", "run", "walk")]
    vocabulary = motion_evaluator.vocabulary_of(captions)
    networks = Matching(motion_evaluator.SIZES).eval()
    batch = Batch(torch.randn(3, 196, 263), torch.tensor([40, 80, 196]), captions)
    texts = networks.texts(vocabulary.words([caption.tokens for caption in captions]))
    far = torch.cdist(texts, networks.motions(batch.motions, batch.lengths))
    other = [(0, 1), (1, 0), (1, 2), (2, 1)]  # not (0, 2) and (2, 0)
    pushed = sum(max(10 - far[pair], 0) ** 2 for pair in other) / len(other)
    pulled = sum(far[i, i] ** 2 for i in range(3)) / 3
    torch.testing.assert_close(motion_evaluator.loss_of(networks, vocabulary, batch),
                               pulled + pushed)  # fmt: skip


def test_a_words_vector_is_its_own_in_every_vocabulary():
    one, other = (
        motion_evaluator.vocabulary_of([Caption("", tokens)])
        for tokens in (("a/DET", "walk/VERB"), ("walk/VERB", "zebra/NOUN", "jump/VERB"))
    )
    assert list(other.rows) == ["sos", "eos", "unk", "jump", "walk", "zebra"]
    assert (one.vectors[one.rows["walk"]] == other.vectors[other.rows["walk"]]).all()


def test_too_few_clips_to_train_on_are_refused(tmp_path):
    few = write_humanml3d(tmp_path / "few", train=31, val=4)
    said = refused(TRAINER, "--data", few, "--out", tmp_path / "out")
    assert "31 clips to train on and 4 in val.txt" in said and not (tmp_path / "out").exists()
