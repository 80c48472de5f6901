"""A real architecture of DINOv2, random weights, through the path of the published file."""

import pytest
import torch
import torch.nn.functional as F

import domains
from domains import Draws
from evaluations.extractors.timm import Asked
from evaluations.extractors.vit import VisionTransformer
from evaluations.features import Encoder
from runtime.errors import InputError

NAME = "vit_small_patch14_dinov2.lvd142m"
ASKED = Asked(f"timm:{NAME}", "--encoder-weights")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """As Meta publishes it: 37 x 37 positions, and a mask token that nobody needs."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(NAME, pretrained=False, num_classes=0)
    state = network.state_dict() | {"mask_token": torch.zeros(1, 384)}
    assert state["pos_embed"].shape[1] == 1 + 37 * 37
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return VisionTransformer(NAME, file, (16, 16), ASKED)


def test_dinov2_sees_224_pixels_as_256_patch_tokens_before_its_last_norm(network):
    assert network.size == (224, 224) and network.depth == 12
    batch = domains.build("digits").held_out_set().__getitems__(Draws.plain([0, 1]))
    found = Encoder(network, (3, 12))(batch)
    assert {block: tokens.shape for block, tokens in found.items()} == {
        3: (2, 256, 384), 12: (2, 256, 384),
    }  # fmt: skip
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406),
                                                         (0.229, 0.224, 0.225)))  # fmt: skip
    x = (batch.raw.expand(-1, 3, -1, -1).float() / 255 - mean) / std
    x = F.interpolate(x, (224, 224), mode="bicubic")
    with torch.no_grad():
        normed = network.network.forward_features(x)[:, 1:]
        last = network.network.norm(found[12])
    torch.testing.assert_close(last, normed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.tokens(batch.raw), normed)


@pytest.mark.parametrize(("side", "smoothed"), [(256, False), (447, False), (512, True)])
def test_large_images_are_antialiased_and_those_of_256_pixels_are_as_in_repa(
    network, side, smoothed
):
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    x = (images.float() / 255 - network.mean) / network.std
    x = F.interpolate(x, (224, 224), mode="bicubic", antialias=smoothed)
    assert network.pixels(images).equal(x)


def test_blocks_it_does_not_have_are_refused(network):
    with pytest.raises(InputError, match="--blocks 13 does not exist: choose 1 to 12"):
        Encoder(network, (13,))


def test_what_is_no_vision_transformer_is_refused():
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="timm:resnet18: it is no vision transformer of timm"):
        VisionTransformer("resnet18", None, (2, 2), Asked("timm:resnet18", "--encoder-weights"))
