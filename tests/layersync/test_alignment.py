"""REPA, iREPA, REED: a block learns to tell what another network sees."""

import pytest
import torch
import torch.nn.functional as F
from regulariser_toys import assert_compiles, context, features, gradient

from layersync import Alignment, Target, linear_decay

GRID = (4, 4)


def cosines(a, b):
    """Written out, in float64: (..., Z), (..., Z) -> (...)."""
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())


def repa(**options):
    return Alignment([Target(8, 6)], 12, grid=GRID, hidden=10, **options)


@pytest.fixture
def student():
    return features(2, 16, 12, seed=1)


@pytest.fixture
def y():
    return features(2, 16, 6, seed=2)


def restated(regulariser, student, y):
    """-(1 / B N) sum cos(P(h), y) of REPA's one target."""
    first, second, third = (
        regulariser.projectors[0].double()[i] for i in (0, 2, 4)
    )  # fmt: skip
    h = F.silu(F.linear(student.double(), first.weight, first.bias))
    h = F.silu(F.linear(h, second.weight, second.bias))
    h = F.linear(h, third.weight, third.bias)
    return -sum(cosines(h[b, n], y[b, n]) for b in range(2) for n in range(16)) / 32


def test_repa_equals_its_formula_with_its_gradient(student, y):
    regulariser = repa()
    loss = regulariser.penalty(context({8: student}, targets=(y,)))
    grad = gradient(loss, student)
    expected = restated(regulariser, student, y)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, gradient(expected, student), atol=1e-7, rtol=1e-4)


def test_the_target_of_repa_gets_no_gradient(student, y):
    repa().penalty(context({8: student}, targets=(y,))).backward()
    assert y.grad is None and student.grad.abs().max() > 0


def test_the_projector_trains_with_the_model_and_is_not_in_it(student, y):
    regulariser = repa()
    names = dict(regulariser.named_parameters())
    layers = [f"projectors.0.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")]
    assert list(names) == layers
    regulariser.penalty(context({8: student}, targets=(y,))).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in names.values())


def test_scale_of_the_target_does_not_matter(student, y):
    regulariser = repa()
    one, other = (
        regulariser.penalty(context({8: student}, targets=(scale * y,))) for scale in (1, 50)
    )
    torch.testing.assert_close(one, other)


def test_irepa_convolves_the_student_and_compares_with_the_spatially_normalized_target(student, y):
    regulariser = repa(head="conv", spatial_norm=True)
    loss = regulariser.penalty(context({8: student}, targets=(y,)))
    conv = regulariser.projectors[0].double().conv
    image = student.double().reshape(2, 4, 4, 12).permute(0, 3, 1, 2)
    h = F.conv2d(image, conv.weight, conv.bias, padding=1).permute(0, 2, 3, 1).reshape(2, 16, 6)
    exact = y.double()
    mean = exact.sum(1, keepdim=True) / 16
    unbiased = ((exact - mean).square().sum(1, keepdim=True) / 15).sqrt()
    expected = -cosines(h, (exact - mean) / (unbiased + 1e-6)).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)


def test_what_all_tokens_of_an_image_share_does_not_matter_to_irepa(student, y):
    regulariser = repa(spatial_norm=True)
    one, other = (
        regulariser.penalty(context({8: student}, targets=(target,)))
        for target in (y, y + 3 * torch.randn(2, 1, 6))
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_reed_is_the_weighted_sum_of_its_targets_and_a_vector_meets_the_mean_token(student, y):
    caption, deep = features(2, 5, seed=3), features(2, 16, 12, seed=4)
    targets = [Target(8, 6), Target(16, 5, 0.5, "vector")]
    reed = Alignment(targets, 12, grid=GRID, hidden=10, velocity_warmup=50_000)
    assert reed.blocks == (8, 16) and reed.takes_targets
    loss = reed.penalty(context({8: student, 16: deep}, targets=(y, caption)))
    heads = [head.double() for head in reed.projectors]
    image = cosines(heads[0](student.double()), y).mean()
    text = cosines(heads[1](deep.double().mean(1)), caption).mean()
    torch.testing.assert_close(loss.double(), -(image + 0.5 * text), atol=1e-6, rtol=0)


def test_reeds_velocity_loss_is_warmed_up_and_repas_is_not():
    warmed = repa(velocity_warmup=50_000)
    steps = (0, 25_000, 50_000, 100_000)
    assert [warmed.velocity_weight(step) for step in steps] == [0, 0.5, 1, 1]
    assert [repa().velocity_weight(step) for step in steps] == [1, 1, 1, 1]


def test_weight_follows_the_schedule():
    assert [repa(schedule=linear_decay(10)).weight(step) for step in (0, 5)] == [0.5, 0.25]


def test_bfloat16_features_under_autocast_are_compared_in_float32():
    student = features(2, 16, 12, seed=1, dtype=torch.bfloat16)
    y = features(2, 16, 6, seed=2, dtype=torch.bfloat16)
    regulariser = repa()
    with torch.autocast("cpu", torch.bfloat16):
        loss = regulariser.penalty(context({8: student}, targets=(y,)))
    assert loss.dtype == torch.float32
    expected = restated(regulariser, student, y)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)


def test_masked_tokens_do_not_count(student, y):
    mask = (torch.arange(16) < 9).expand(2, 16)
    vector = features(2, 5, seed=3)
    regulariser = Alignment(
        [Target(8, 6), Target(8, 5, kind="vector")], 12, grid=GRID, hidden=10
    )  # fmt: skip
    loss = regulariser.penalty(context({8: student}, targets=(y, vector), token_mask=mask))
    heads = [head.double() for head in regulariser.projectors]
    kept = student[:, :9].double()
    tokens, pooled = cosines(heads[0](kept), y[:, :9]), cosines(heads[1](kept.mean(1)), vector)
    torch.testing.assert_close(loss.double(), -(tokens.mean() + pooled.mean()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, dict(head="conv", spatial_norm=True)])
def test_it_compiles_as_one_graph(options, student, y):
    assert_compiles(repa(**options), context({8: student}, targets=(y,)), student)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Alignment([], 12, grid=GRID), "at least one target"),
        (lambda: Target(8, 6, kind="image"), "unknown kind 'image'"),
        (lambda: Target(0, 6), "block 0 does not exist"),
        (lambda: repa(head="linear"), "unknown head 'linear': choose from mlp, conv"),
        (
            lambda: Alignment([Target(8, 6, grid=(14, 14))], 12, grid=GRID),
            r"token grid \(14, 14\), the student \(4, 4\)",
        ),
        (
            lambda: Alignment([Target(8, 6, kind="vector")], 12, grid=GRID, spatial_norm=True),
            "one vector has no grid",
        ),
        (
            lambda: Alignment([Target(8, 6)], 12, grid=(1, 1), spatial_norm=True),
            "one token has no deviation",
        ),
    ],
)
def test_a_construction_without_meaning_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_targets_that_are_not_as_declared_are_refused(student, y):
    with pytest.raises(ValueError, match="0 targets were given, 1 were declared"):
        repa().penalty(context({8: student}))
    with pytest.raises(ValueError, match=r"\(2, 9, 6\), not \(2, 16, 6\).*grid is \(4, 4\)"):
        repa().penalty(context({8: student}, targets=(y[:, :9],)))
    with pytest.raises(ValueError, match=r"has 9 tokens, its grid is \(4, 4\)"):
        repa().penalty(context({8: student[:, :9]}, targets=(y,)))
    with pytest.raises(ValueError, match="need whole grids"):
        repa(head="conv").penalty(context({8: student}, targets=(y,), token_mask=torch.ones(2, 16)))
