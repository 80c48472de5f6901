"""Dispersive: the images of a batch repel one another (arXiv 2506.09027)."""

import math

import pytest
import torch
import torch.nn.functional as F
from regulariser_toys import assert_compiles, context, features, gradient
from torch.utils.flop_counter import FlopCounterMode

from layersync import Dispersive, dispersion, linear_decay


def public(z, tau):
    """The release's: pdist, each pair twice, the batch's zeros appended, log of the mean of exp."""
    distance = F.pdist(z).square() / z.shape[1]
    distance = torch.cat([distance, distance, torch.zeros(len(z), dtype=z.dtype)])
    return (-distance / tau).exp().mean().log()


@pytest.mark.parametrize("tau, golden", [(1.0, -0.187245659), (0.5, -0.331491433)])
def test_golden_values(tau, golden):
    z = torch.arange(12).view(3, 4) / 10
    torch.testing.assert_close(dispersion(z.double(), tau).item(), golden, atol=1e-8, rtol=0)
    block = {3: z.view(3, 2, 2)}
    value = Dispersive(3, tau=tau).penalty(context(block)).item()
    torch.testing.assert_close(value, golden, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_value_and_gradient_equal_the_public_form(tau):
    z = features(6, 20, seed=1, dtype=torch.float64)
    ours, theirs = dispersion(z, tau), public(z, tau)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
    torch.testing.assert_close(gradient(ours, z), gradient(theirs, z), atol=1e-14, rtol=0)


def test_the_gradient_is_differentiable_in_turn():
    z = features(3, 4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda z: dispersion(z, 0.5), z)


def test_dispersive_ignores_a_common_shift():
    z = features(6, 20, seed=1)
    torch.testing.assert_close(dispersion(z + 1000, 0.5), dispersion(z, 0.5), atol=1e-4, rtol=0)


def test_dispersive_ignores_the_order_of_the_images():
    z = features(6, 20, seed=1)
    torch.testing.assert_close(dispersion(z.flip(0), 0.5), dispersion(z, 0.5))


def test_it_lies_between_0_for_equal_images_and_minus_log_b_for_distant_ones():
    z = features(6, 20, seed=1)
    assert dispersion(z[:1].expand(6, -1), 0.5).abs() < 1e-6
    torch.testing.assert_close(dispersion(1e3 * z, 0.5).item(), -math.log(6))


def test_descent_moves_images_apart():
    z = features(6, 20, seed=1, dtype=torch.float64)
    after = z - 0.1 * gradient(dispersion(z, 0.5), z)
    assert F.pdist(after).min() > F.pdist(z).min()


def test_bfloat16_features_under_autocast_are_compared_in_float32():
    z = features(6, 4, 8, seed=1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = Dispersive(2).penalty(context({2: z}))
    assert loss.dtype == torch.float32
    expected = public(z.detach().flatten(1).double(), 0.5).float()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    assert gradient(loss, z).isfinite().all()


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_products_are_float32_whatever_the_run_says_and_the_setting_is_restored(
    precision, monkeypatch
):
    seen, bmm = [], torch.bmm

    def watched(a, b):
        switch = torch.backends.cuda.matmul.fp32_precision
        seen.append((torch.get_float32_matmul_precision(), switch))
        return bmm(a, b)

    monkeypatch.setattr(torch, "bmm", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        z = features(6, 20, seed=1)
        gradient(dispersion(z, 0.5), z)
        assert seen == [("highest", "ieee")] * 3, "one product forward, two backward"
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_its_cost_is_quadratic_in_the_batch():
    def flops(batch):
        with FlopCounterMode(display=False) as counter:
            dispersion(features(batch, 20, seed=1), 0.5)
        return counter.get_total_flops()

    assert [flops(batch) for batch in (4, 8)] == [2 * 4**2 * 20, 2 * 8**2 * 20]


def test_it_compiles_as_one_graph():
    z = features(4, 3, 8, seed=1)
    assert_compiles(Dispersive(2), context({2: z}), z)


def test_on_one_process_there_is_nothing_to_gather():
    inputs = context({2: features(4, 3, 8, seed=1)})
    assert Dispersive(2, gather=True).penalty(inputs) == Dispersive(2).penalty(inputs)


def test_weight_follows_the_schedule_and_there_are_no_parameters():
    dispersive = Dispersive(3, schedule=linear_decay(10))
    assert [dispersive.weight(step) for step in (0, 5, 10)] == [0.5, 0.25, 0.0]
    assert dispersive.blocks == (3,) and not list(dispersive.parameters())


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="of one image is always 0"):
        Dispersive(2).penalty(context({2: features(1, 3, 8, seed=1)}))
    with pytest.raises(ValueError, match="unequal length"):
        Dispersive(2).penalty(context({2: features(2, 3, 8, seed=1)}, token_mask=torch.ones(2, 3)))
    with pytest.raises(ValueError, match="block 0 does not exist"):
        Dispersive(0)
    with pytest.raises(ValueError, match="tau: 0 is not positive"):
        Dispersive(1, tau=0)
