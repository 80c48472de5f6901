"""timm's networks as extractors, on small random ones; nothing is downloaded."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from evaluations.extractors import open_extractor
from runtime.errors import InputError

timm = pytest.importorskip("timm")
NAME = "test_byobnet"


def opened(name=NAME, weights=None):
    return open_extractor(f"timm:{name}", torch.device("cpu"), weights=weights)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return timm.create_model(NAME, pretrained=False).eval()


@pytest.fixture(scope="module")
def weights_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def test_it_gives_the_pooled_features_of_the_file_s_network(network, weights_file):
    extractor = opened(weights=weights_file)
    images = torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8)
    data = timm.data.resolve_model_data_config(network)
    assert len(set(data["mean"])) > 1 and len(set(data["std"])) > 1
    x = F.interpolate(images.double(), data["input_size"][1:], mode="bicubic", antialias=True)
    mean, std = (255 * torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))
    x = ((x.clamp(0, 255) - mean) / std).float()
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
    pool, spatial, _ = extractor(images)
    torch.testing.assert_close(pool, expected, atol=1e-5, rtol=1e-4)
    assert pool.dtype == torch.float32 and spatial is None
    assert extractor.probabilities(pool) is None and not extractor.half_distances
    assert extractor.name == f"timm:{NAME}" and len(extractor.fingerprint) == 64


def test_the_fingerprint_is_that_of_the_weights(network, weights_file, tmp_path):
    changed = dict(network.state_dict())
    first = next(iter(changed))
    changed[first] = changed[first] + 1
    torch.save(changed, tmp_path / "changed.pth")
    files = (weights_file, weights_file, tmp_path / "changed.pth")
    one, same, other = (opened(weights=file) for file in files)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_grey_images_are_repeated_and_others_refused(weights_file):
    extractor = opened(weights=weights_file)
    grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert extractor(grey).pool.equal(extractor(grey.repeat(1, 3, 1, 1)).pool)
    with pytest.raises(InputError, match="not 2 channels"):
        extractor(grey.repeat(1, 2, 1, 1))


def test_loading_leaves_the_global_random_state_alone(weights_file):
    before = torch.get_rng_state()
    opened(weights=weights_file)
    assert torch.get_rng_state().equal(before)


def test_dinov2_loads_from_a_file_of_another_resolution(tmp_path):
    """Position tables are resampled by timm's own rule, and unused tensors are passed over."""
    name = "vit_small_patch14_dinov2"
    state = timm.create_model(name, pretrained=False, num_classes=0, img_size=140).state_dict()
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth")
    assert opened(name, tmp_path / "dinov2.pth").size == (518, 518)


def test_a_file_that_is_not_the_network_s_is_refused_and_not_run(network, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    state = network.state_dict()
    part = {k: v for k, v in state.items() if not k.startswith("stages.3")}
    torch.save({"conv1.weight": Payload()}, tmp_path / "code.pth")
    torch.save(part, tmp_path / "part.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_bytes(b"hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "damaged.safetensors").write_bytes(b"hello")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for path in files:
        with pytest.raises(InputError) as error:
            opened(weights=path)
        sentence = str(error.value)
        assert sentence.startswith(f"--extractor-weights {path} are no weights of --extractor timm")
        assert "\n" not in sentence and "weights_only" not in sentence
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet_of_nobody", None, "has no such network"),
        ("", None, "has no such network"),
        (NAME, "absent.pth", "--extractor-weights absent.pth: there is no such file"),
        (NAME, None, "--extractor timm:test_byobnet: .*--extractor-weights FILE"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(tmp_path, monkeypatch, name, weights, words):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=words) as error:
        opened(name, weights)
    assert "\n" not in str(error.value)


def test_where_the_hub_does_not_answer_its_cache_alone_is_looked_at(tmp_path, monkeypatch):
    """Its client would retry for a minute, with the weights in the cache and without."""
    from huggingface_hub import constants

    def unreachable(*_, **__):
        raise OSError("no network")

    def create(*_, **__):
        asked_offline.append(constants.HF_HUB_OFFLINE)
        raise FileNotFoundError("We cannot find the requested files in the local cache. " * 9)

    asked_offline = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("runtime.hub.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("evaluations.extractors.timm.create", create)
    with pytest.raises(InputError) as error:
        opened()
    assert asked_offline == [True]
    sentence = str(error.value)
    for words in (str(tmp_path), "HF_HOME", "--extractor-weights FILE", "files in the ...)"):
        assert words in sentence, sentence


def test_without_timm_the_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm .*--extractor-weights.*\.\[metrics\]"):
        opened()


def test_an_unknown_extractor_is_answered_with_the_choices():
    for asked in ("vgg", "", "timm_vit", "Inception"):
        with pytest.raises(InputError, match="choose from inception, classifier:FILE, timm:MODEL"):
            open_extractor(asked, torch.device("cpu"))
