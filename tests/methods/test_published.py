"""What a rival's authors published for B, L and XL is what its --loss-type does without a flag."""

from types import SimpleNamespace

import pytest
from torch import nn

import domains
from layersync import cosine, smooth_l1
from layersync.projector import TokenConvolution
from methods import METHODS, rivals
from models import SiT
from runtime.config import TrainConfig

DEPTHS = (12, 24, 28)  # B, L, XL


def built(depth, loss_type, **flags):
    """The resolved flags and the regulariser, of a narrow model of a depth."""
    model = SiT((4, 4), 2, 3, hidden_size=12, depth=depth, num_heads=1, num_classes=0)
    config = TrainConfig(loss_type=loss_type, **flags)
    config, method = METHODS[loss_type](config, model, domains.build("digits"))
    return config, method.regulariser


@pytest.mark.parametrize(
    ("variant", "blocks", "weight", "tau"),
    [("jax", (3, 6, 7), 0.5, 0.5), ("torch", DEPTHS, 0.25, 1.0)],
)
def test_dispersive(variant, blocks, weight, tau):
    """2506.09027: the paper's, which is JAX, and the release's."""
    for depth, block in zip(DEPTHS, blocks, strict=True):
        config, term = built(depth, "dispersive", disp_variant=variant)
        assert (term.blocks, term.peak_weight, term.tau) == ((block,), weight, tau)
        assert (config.encoder_depth, config.reg_weight, config.disp_tau) == (block, weight, tau)


@pytest.mark.parametrize(
    ("variant", "weight", "head", "normalized"),
    [("repa", 0.5, nn.Sequential, False), ("irepa", 1.0, TokenConvolution, True)],
)
def test_repa(variant, weight, head, normalized, monkeypatch):
    """2410.06940 and 2512.10794; block 4 of B, 8 of L and XL by its author's word."""
    targets = SimpleNamespace(width=768, encoder=SimpleNamespace(size=(28, 28)))
    monkeypatch.setattr(rivals, "EncoderTargets", lambda *asked: targets)
    for depth, block in zip(DEPTHS, (4, 8, 8), strict=True):
        config, term = built(depth, "repa", repa_variant=variant)
        assert (term.blocks, term.peak_weight, term.spatial_norm) == ((block,), weight, normalized)
        assert (config.encoder_depth, config.reg_weight) == (block, weight)
        (projector,) = term.projectors
        assert type(projector) is head
    assert TrainConfig().repa_encoder == "vit_base_patch14_dinov2.lvd142m"


@pytest.mark.parametrize(("side", "says"), [(32, False), (64, False), (16, True)])
def test_repa_of_another_grid_than_its_papers_says_what_its_encoder_sees(side, says, monkeypatch):
    targets = SimpleNamespace(width=768, encoder=SimpleNamespace(size=(side * 7, side * 7)))
    monkeypatch.setattr(rivals, "EncoderTargets", lambda *asked: targets)
    model = SiT((side, side), 2, 3, hidden_size=12, depth=2, num_heads=1, num_classes=0)
    config = TrainConfig(loss_type="repa")
    _, method = METHODS["repa"](config, model, domains.build("digits"))
    assert (method.note is not None) == says
    if says:
        assert "112 x 112 pixels for 8 x 8 tokens" in method.note


@pytest.mark.parametrize(
    ("variant", "similarity", "weight"), [("paper", smooth_l1, 0.2), ("cos", cosine, 0.5)]
)
def test_sra(variant, similarity, weight):
    """2505.02831; the cosine and the pair of B are its authors' of 2026, L's is by their rule."""
    for depth, (student, teacher) in zip(DEPTHS, [(3, 8), (6, 18), (8, 20)], strict=True):
        config, term = built(depth, "sra", sra_variant=variant)
        assert (term.blocks, term.teacher_blocks) == ((student,), (teacher,))
        assert (term.similarity, term.peak_weight) == (similarity, weight)
        assert (config.encoder_depth, config.gt_encoder_depth) == (student, teacher)
        assert config.reg_weight == weight


@pytest.mark.parametrize(("pixels", "last", "tenth"), [(256, 149, 1000), (512, 99, 800)])
def test_sra_decays_by_a_tenth_in_so_many_epochs(pixels, last, tenth):
    _, term = built(28, "sra", sra_epoch_steps=10, image_size=pixels)
    assert term.weight(10 * last + 9) == 0.2 > term.weight(10 * (last + 1))
    assert term.weight(10 * (last + tenth)) == pytest.approx(0.02)


def test_sra2():
    """2601.17830; at SRA's student, for it does not say."""
    for depth, block in zip(DEPTHS, (3, 6, 8), strict=True):
        config, term = built(depth, "sra2")
        assert (term.blocks, term.peak_weight) == ((block,), 1.0)
        assert (config.encoder_depth, config.reg_weight) == (block, 1.0)
