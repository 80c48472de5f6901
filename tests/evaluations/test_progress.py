"""What a run learns as it goes: every checkpoint is looked at once, as other commands do."""

import json

import pytest

from evaluations import progress
from tests.commands import refused, succeed
from tests.evaluations.lab import DIGITS, digits_run, picture_folder

FEW = ["--images", 20, "--probed", 200, "--dropped", 10, "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three checkpoints of digits, without classes."""
    folder = tmp_path_factory.mktemp("runs")
    succeed(
        "train", "--preset", "digits", "--num-classes", 0, "--depth", 3, "--hidden-size", 16,
        "--num-heads", 2, "--encoder-depth", 1, "--gt-encoder-depth", 2, "--max-steps", 6,
        "--ckpt-every", 2, "--keep-last", 0, "--sample-every", 0, "--no-tensorboard",
        "--device", "cpu", "--results-dir", folder,
    )  # fmt: skip
    (found,) = folder.iterdir()
    return found


def test_it_says_what_the_other_commands_say(trained, tmp_path):
    succeed("evaluations.progress", trained, *FEW, "--out", tmp_path / "progress.json")
    found = json.loads((tmp_path / "progress.json").read_text())
    assert [one["step"] for one in found["checkpoints"]] == [2, 4, 6]
    last = found["checkpoints"][-1]
    assert len(last["losses"]) == 20 and len(last["probe"]) == len(found["dropped"]) == 3
    out = tmp_path / "heldout.json"
    succeed("evaluations.heldout", trained, "--images", 20, "--device", "cpu", "--out", out)
    (heldout,) = json.loads(out.read_text())["checkpoints"]
    assert last["bins"] == pytest.approx(heldout["ema"]["bins"])
    assert sum(last["losses"]) / 20 == pytest.approx(heldout["ema"]["mean"])
    succeed("evaluations.drop_blocks", trained, "--images", 10, "--samples", 0, "--device", "cpu",
            "--out", tmp_path)  # fmt: skip
    rows = json.loads((tmp_path / "drop_blocks.json").read_text())["rows"]
    assert found["dropped"] == pytest.approx([row["more"]["mean"] for row in rows[1:]])


def test_what_was_looked_at_is_not_looked_at_again(trained, monkeypatch):
    succeed("evaluations.progress", trained, *FEW)
    first = (trained / "progress.json").read_bytes()
    looked = []
    monkeypatch.setattr(progress, "looked_at", lambda *_: looked.append(1))
    succeed("evaluations.progress", trained, *FEW)
    assert not looked and (trained / "progress.json").read_bytes() == first
    succeed("evaluations.progress", trained, *FEW, "--dropped", 12)  # says nothing of the losses
    assert not looked


def test_a_vae_that_has_moved_is_named_by_its_flag(tmp_path, tiny_vae, perturb):
    for part, count in (("train", 100), ("val", 3)):
        picture_folder(tmp_path / "images" / part, [("a", count), ("b", count)])
    args = dict(dataset_name="folder", data_path=str(tmp_path / "images"), image_size=8)
    args |= dict(num_classes=2, vae=str(tmp_path / "gone"))
    shape = dict(in_channels=4, input_size=4, num_classes=2, depth=2)
    file = digits_run(tmp_path / "runs", perturb, args=args, **shape)
    words = [file.parent.parent, "--vae", tiny_vae, "--probed", 200, "--dropped", 0]
    succeed("evaluations.progress", *words, "--device", "cpu")


def test_the_losses_are_of_the_images_that_val_path_names(tmp_path, perturb):
    """Of data without a held-out part; their own images have no say in them."""
    for part in ("train", "val"):
        picture_folder(tmp_path / part, [("a", 120 if part == "train" else 5), ("b", 100)])
    args = DIGITS | dict(dataset_name="folder", data_path=str(tmp_path / "train"), num_classes=2)
    shape = dict(in_channels=3, num_classes=2, depth=2)
    run = digits_run(tmp_path / "runs", perturb, args=args, **shape).parent.parent
    words = [run, "--images", 20, "--probed", 200, "--dropped", 0, "--device", "cpu"]
    assert "--val-path" in refused("evaluations.progress", *words)
    out = tmp_path / "progress.json"
    succeed("evaluations.progress", *words, "--val-path", tmp_path / "val", "--out", out)
    (last,) = json.loads(out.read_text())["checkpoints"]
    words = [run, "--images", 20, "--data-path", tmp_path / "val", "--device", "cpu"]
    succeed("evaluations.heldout", *words, "--out", out)
    (heldout,) = json.loads(out.read_text())["checkpoints"]
    assert last["bins"] == pytest.approx(heldout["ema"]["bins"])


def test_it_wants_a_run(trained, tmp_path):
    file = next(trained.glob("checkpoints/*.pt"))
    for asked in (tmp_path, file):
        assert "is no run with checkpoints" in refused("evaluations.progress", asked)
    assert "--probed 5: give 200 or more" in refused("evaluations.progress", trained, "--probed", 5)
