"""Every regulariser through the training step that DDP wraps, around a real SiT."""

import copy
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from layersync import SRA, SRA2, Alignment, Context, Dispersive, LayerSync, Target, trd
from models import SiT
from transport import TrainingStep, create_transport

GRID = (4, 4)
REGULARISERS = {
    "layersync": lambda: LayerSync([(1, 3)]),
    "trd": lambda: LayerSync([(1, 3)], similarity=partial(trd, frames=4)),
    "random teacher": lambda: LayerSync([(1, 3)], teacher="random"),
    "dispersive": lambda: Dispersive(2),
    "repa": lambda: Alignment([Target(2, 5)], 24, grid=GRID, hidden=16),
    "irepa": lambda: Alignment([Target(2, 5)], 24, grid=GRID, head="conv", spatial_norm=True),
    "sra": lambda: SRA(1, 3, 24),
    "sra2": lambda: SRA2(2, 24, (2, 2), 3, hidden=16),
}


@pytest.fixture
def run(perturb):
    def losses(regulariser, weight=0.5):
        torch.manual_seed(0)
        model = perturb(SiT(8, 2, 3, hidden_size=24, depth=4, num_heads=2, num_classes=5)).eval()
        step = TrainingStep(model, create_transport(), regulariser)
        x, noise = torch.randn(2, 4, 3, 8, 8)
        extra = {}
        if regulariser.teacher_blocks:
            extra = dict(ema=perturb(copy.deepcopy(model)), uniform=torch.rand(4))
        if regulariser.takes_targets:
            extra = dict(targets=(torch.randn(4, 16, 5),))
        t, cond = torch.linspace(0.1, 0.9, 4), {"y": torch.arange(4)}
        return step, step(x, noise, t, cond, torch.tensor(weight), **extra)

    return losses


@pytest.mark.parametrize("name", REGULARISERS)
def test_it_trains_the_model_below_its_block_and_its_own_parameters(name, run):
    regulariser = REGULARISERS[name]()
    step, losses = run(regulariser)
    assert losses.reg.isfinite() and losses.reg.dtype == torch.float32 and losses.reg != 0
    losses.total.backward()
    own = list(regulariser.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in own)
    assert not {id(p) for p in own} & {id(p) for p in step.model.parameters()}
    assert {id(p) for p in own} <= {id(p) for p in step.parameters()}


@pytest.mark.parametrize("name", REGULARISERS)
def test_at_weight_0_the_model_trains_as_without_it_and_no_parameter_is_left_out(name, run):
    """DDP then needs no search for unused parameters when a term ends in mid-run."""
    regulariser = REGULARISERS[name]()
    step, losses = run(regulariser, weight=0.0)
    losses.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in regulariser.parameters())
    assert torch.equal(losses.total, losses.velocity)


def test_flops_of_every_rival_are_counted_without_numbers():
    """As `models.flops` counts the model's, on the meta device: 3 times the forward's products.

    TRD's are made twice, and its teacher has no gradient.
    """

    def flops(regulariser):
        blocks = {k: torch.empty(4, 16, 24, requires_grad=True) for k in (1, 2, 3)}
        x, t = torch.empty(4, 3, 8, 8), torch.empty(4)
        targets = (torch.empty(4, 16, 5),) if regulariser.takes_targets else ()
        inputs = Context(blocks, x, x, t, x, {}, None, blocks, targets)
        with FlopCounterMode(display=False) as counter:
            regulariser.penalty(inputs).backward()
        return counter.get_total_flops()

    with torch.device("meta"):
        counted = {name: flops(build()) for name, build in REGULARISERS.items()}
    tokens, width = 4 * 16, 24
    weights = {
        "repa": width * 16 + 16 * 16 + 16 * 5,
        "irepa": 9 * width * 5,
        "sra": 4 * width**2,
        "sra2": width * 16 + 16 * 16 + 16 * 12,
    }
    expected = {name: 3 * 2 * tokens * size for name, size in weights.items()}
    expected |= {"layersync": 0, "random teacher": 0, "dispersive": 3 * 2 * 4**2 * 16 * width}
    pairs = 10 * 4**2  # of tokens: each of 4 frames of 4 meets itself and the later ones
    expected["trd"] = 3 * 2 * 2 * 4 * pairs * width
    assert counted == expected
