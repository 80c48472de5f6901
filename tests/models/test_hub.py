"""SiT in other libraries' layouts: the Hugging Face Hub's folders, diffusers' DiT."""

import json

import pytest
import torch

from models import MDM, SiT, from_dit
from models.hub import HubSiT
from runtime import checkpoint
from tests.commands import refused, succeed

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
