"""SiT in other libraries' layouts: the Hugging Face Hub's folders, diffusers' DiT."""

import json

import pytest
import torch

from models import MDM, SiT, from_dit
from models.hub import HubSiT
from runtime import checkpoint
from tests.commands import checkpoint_of, full_disk, refused, succeed

SMALL = dict(input_size=8, in_channels=4, hidden_size=96, depth=4, num_heads=4, num_classes=10)


def saved(path, model):
    config = model.config
    checkpoint.save(path, {"ema": model.state_dict(), "args": {}, "architecture": config})
    return path


@pytest.fixture
def sit(perturb):
    return perturb(SiT(**SMALL, class_dropout_prob=0.0), 0.05).eval()


def inputs(classes=10):
    x, t = torch.randn(5, 4, 8, 8), torch.tensor([0.0, 0.3, 0.5, 0.97, 1.0])
    return x, t, torch.tensor([0, 3, classes - 1, classes, classes])


@torch.no_grad()
def test_the_hub_s_folder_is_the_same_network(sit, tmp_path):
    out = tmp_path / "out"
    succeed("export", "--ckpt", saved(tmp_path / "0000007.pt", sit), "--out", out)
    again = HubSiT.from_pretrained(out)
    x = inputs()
    assert torch.equal(again(*x).pred, sit(*x).pred) and not again.training
    card = (out / "README.md").read_text()
    assert "| steps | 7 |" in card and "arxiv.org/abs/2510.12581" in card
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 96


@pytest.fixture
def digits(perturb, tmp_path):
    """A checkpoint of a model of digits, and what export.py made of it."""
    small = SMALL | dict(in_channels=1, depth=2, hidden_size=32, num_heads=2)
    model = perturb(SiT(**small, class_dropout_prob=0.0), 0.1)
    args = dict(dataset_name="digits", model="SiT-Ti/2", image_size=8, vae="none", lr=0.1)
    state = {"ema": model.state_dict(), "args": args, "architecture": model.config}
    path = tmp_path / "0000042.pt"
    checkpoint.save(path, state | {"codec": {"name": "pixels"}, "train_steps": 42})
    succeed("export", "--ckpt", path, "--out", tmp_path / "exported")
    return path, tmp_path / "exported"


def test_what_was_exported_is_sampled_as_its_checkpoint(digits, tmp_path):
    flags = ["--num-sampling-steps", 3, "--num-fid-samples", 6, "--sample-dir", tmp_path]
    files = dict(
        zip(("ours", "theirs", "file"), (*digits, digits[1] / checkpoint.EXPORTED), strict=True)
    )
    for name, ckpt in files.items():
        succeed("sample_ddp", "ODE", "--ckpt", ckpt, *flags, "--name", name)
    ours, theirs, file = ((tmp_path / f"{name}.npz").read_bytes() for name in files)
    assert ours == theirs == file
    card = json.loads((tmp_path / "theirs.json").read_text())
    assert card["checkpoint"]["step"] == 42 and card["checkpoint"]["model"] == "SiT-Ti/2"
    out = tmp_path / "grid.png"
    succeed("sample", "ODE", "--ckpt", digits[1], "--num-sampling-steps", 2, "--out", out)
    assert out.exists()


def test_what_was_exported_says_of_its_run_only_what_a_reader_needs(digits):
    """Flags hold paths of whoever trained it."""
    found = checkpoint.read(digits[1])
    assert found.args == dict(dataset_name="digits", model="SiT-Ti/2", image_size=8, vae="none")
    assert found.codec == {"name": "pixels"} and found.step == 42 and not found.opt


def test_fine_tuning_starts_from_what_was_exported(digits, tmp_path):
    flags = ["--dataset_name", "digits", "--model", "SiT-Ti/2", "--depth", 2, "--hidden-size", 32]
    flags += ["--num-heads", 2, "--lr", 0, "--max-steps", 1, "--global-batch-size", 8]
    flags += ["--num-workers", 0, "--no-tensorboard", "--results-dir", tmp_path / "results"]
    succeed("train", *flags, "--fine-tune", "--ckpt", digits[1])
    tuned, original = checkpoint_of(tmp_path / "results", 1), checkpoint.read(digits[0])
    assert all(torch.equal(tuned["ema"][name], value) for name, value in original.ema.items())


@pytest.mark.parametrize("run", [["args"], {"args": 7}, {"args": {"image_size": "8"}}])
def test_an_exported_folder_that_lies_about_its_run_is_one_sentence(digits, run):
    path = digits[1] / checkpoint.EXPORTED_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {checkpoint.RUN: run}))
    refused("sample", "ODE", "--ckpt", digits[1])


def test_weights_beside_another_library_s_config_are_read_as_they_are(digits):
    (digits[1] / checkpoint.EXPORTED_CONFIG).write_text('{"model_type": "bert"}')
    found = checkpoint.read(digits[1])
    assert found.ema and found.architecture is None and not found.args


def test_raw_weights_that_a_file_lacks_are_asked_for_in_vain(sit, tmp_path):
    torch.save({"ema": sit.state_dict(), "architecture": sit.config}, tmp_path / "ema.pt")
    said = refused(
        "export", "--ckpt", tmp_path / "ema.pt", "--weights", "model", "--out", tmp_path / "out"
    )
    assert "holds no raw weights: leave out --weights model" in said


@pytest.mark.parametrize("to", ["hub", "diffusers"])
def test_a_full_disk_leaves_the_folder_as_it_was(sit, tmp_path, to):
    """One sentence, whichever way the library says it."""
    pytest.importorskip("diffusers")
    path, out = saved(tmp_path / "1.pt", sit), tmp_path / "out"
    with full_disk(after=2000):
        said = refused("export", "--ckpt", path, "--to", to, "--out", out)
    assert "File too large" in said and not list(out.iterdir())


def test_a_folder_of_other_tensors_is_refused(sit, tmp_path):
    HubSiT.of(sit.state_dict(), sit.config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"depth": 5}))
    with pytest.raises(RuntimeError, match="blocks.4"):
        HubSiT.from_pretrained(tmp_path)


def test_the_hub_s_pickles_are_not_read():
    with pytest.raises(ValueError, match="pickles are not read"):
        HubSiT._load_as_pickle(None, "pytorch_model.bin", "cpu", True)


def test_other_networks_are_no_sit_for_the_hub():
    mdm = MDM(input_size=(8,), hidden_size=16, depth=2, num_heads=2)
    with pytest.raises(ValueError, match="of a MDM, and not of a SiT"):
        HubSiT.of(mdm.state_dict(), mdm.config)


@pytest.mark.parametrize("learn_sigma", [True, False])
@torch.no_grad()
def test_diffusers_dit_has_the_same_outputs_and_comes_back(perturb, tmp_path, learn_sigma):
    diffusers = pytest.importorskip("diffusers")
    sit = perturb(SiT(**SMALL, class_dropout_prob=0.0, learn_sigma=learn_sigma), 0.05).eval()
    said = succeed(
        "export", "--ckpt", saved(tmp_path / "1.pt", sit), "--to", "diffusers", "--out",
        tmp_path / "dit",
    ).out  # fmt: skip
    assert "timestep is t" in said
    dit = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "dit").eval()
    x, t, y = inputs()
    expected = sit(x, t, y).pred
    found = dit(x, timestep=t, class_labels=y).sample
    assert found.shape[1] == (8 if learn_sigma else 4)
    torch.testing.assert_close(found[:, :4], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_dit(dit)(x, t, y).pred, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_unconditional_sit_is_a_dit_whose_one_class_adds_nothing(perturb):
    diffusers = pytest.importorskip("diffusers")
    from models import dit_config, dit_weights

    sit = perturb(SiT(**SMALL | {"num_classes": 0}), 0.05).eval()
    dit = diffusers.DiTTransformer2DModel(**dit_config(sit.config)).eval()
    dit.load_state_dict(dit_weights(sit.state_dict(), sit.config))
    x, t, _ = inputs()
    found = dit(x, timestep=t, class_labels=torch.zeros(5, dtype=torch.int64)).sample
    torch.testing.assert_close(found[:, :4], sit(x, t).pred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(input_size=(8, 16)), "squares alone"),
        (dict(input_size=(4, 8, 8), patch_size=(1, 2, 2)), "squares alone"),
        (dict(multi_label=True), "one class per image"),
    ],
)
def test_what_diffusers_has_no_network_for_is_one_sentence(tmp_path, changes, sentence):
    path = saved(tmp_path / "1.pt", SiT(**SMALL | changes, class_dropout_prob=0.0))
    said = refused("export", "--ckpt", path, "--to", "diffusers", "--out", tmp_path / "out")
    assert sentence in said and not (tmp_path / "out").exists()


def test_pushing_without_a_network_keeps_the_folder(sit, tmp_path):
    words = ["--ckpt", saved(tmp_path / "1.pt", sit), "--out", tmp_path / "out"]
    said = refused("export", *words, "--push", "someone/sit")
    assert "--push someone/sit: the Hub refused it" in said
    assert (tmp_path / "out/model.safetensors").exists()
