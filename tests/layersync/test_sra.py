"""SRA and SRA 2: the teacher is the EMA model nearer to the data, or the data itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from regulariser_toys import assert_compiles, context, features, gradient

from layersync import SRA, SRA2, patchify, sra_decay
from models import SiT


def huber(a, b, beta=0.05):
    """The spec's smooth-L1, elementwise and in float64."""
    x = (a.double() - b.double()).abs()
    return torch.where(x < beta, 0.5 * x * x / beta, x - beta / 2)


@pytest.fixture
def student():
    return features(2, 16, 6, seed=1)


@pytest.fixture
def teacher():
    return features(2, 16, 6, seed=2)


def inputs(student, teacher, **given):
    return context({3: student}, teacher={8: teacher}, **given)


DISTANCES = {
    ("smooth_l1", "channels"): lambda h, b: huber(h, b).mean(),
    ("cosine", "channels"): lambda h, b: (
        1 - (F.normalize(h, dim=-1) * F.normalize(b, dim=-1)).sum(-1).mean()
    ),
    ("cosine", "tokens"): lambda h, b: (
        1 - (F.normalize(h, dim=1) * F.normalize(b, dim=1)).sum(1).mean()
    ),
}


@pytest.mark.parametrize("distance, axis", DISTANCES)
def test_sra_equals_its_formula_with_its_gradient(distance, axis, student, teacher):
    sra = SRA(3, 8, 6, distance=distance, cos_axis=axis)
    loss = sra.penalty(inputs(student, teacher))
    grad = gradient(loss, student)
    expected = DISTANCES[distance, axis](sra.head.double()(student.double()), teacher.double())
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, gradient(expected, student), atol=1e-6, rtol=1e-4)


def test_the_public_cosine_along_the_tokens_is_another_loss(student, teacher):
    losses = []
    for axis in ("channels", "tokens"):
        torch.manual_seed(0)
        sra = SRA(3, 8, 6, distance="cosine", cos_axis=axis)
        losses.append(sra.penalty(inputs(student, teacher)))
        if axis == "tokens":
            projected = sra.head(student)
            torch.testing.assert_close(
                losses[-1], 1 - F.cosine_similarity(projected, teacher).mean()
            )
    assert (losses[0] - losses[1]).abs() > 1e-3


def test_full_agreement_is_0(student):
    for distance in ("smooth_l1", "cosine"):
        sra = SRA(3, 8, 6, distance=distance)
        loss = sra.penalty(inputs(student, sra.head(student)))
        torch.testing.assert_close(loss.item(), 0.0, atol=1e-6, rtol=0)


def test_sra_teacher_is_later_and_never_beyond_the_data():
    sra = SRA(3, 8, 6)
    t = torch.tensor([0.0, 0.5, 0.9, 1.0])
    torch.testing.assert_close(sra.teacher_time(t, torch.zeros(4)), t)
    later = sra.teacher_time(t, torch.full((4,), 0.75))
    torch.testing.assert_close(later, torch.tensor([0.15, 0.65, 1.0, 1.0]))


def test_the_teacher_gets_no_gradient_and_the_head_does(student, teacher):
    sra = SRA(3, 8, 6)
    sra.penalty(inputs(student, teacher)).backward()
    assert teacher.grad is None and student.grad.abs().max() > 0
    assert set(dict(sra.named_parameters())) == {
        f"head.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")
    }
    assert all(parameter.grad.abs().max() > 0 for parameter in sra.parameters())


def test_the_papers_weight_falls_to_a_tenth_in_a_thousand_epochs_from_epoch_149_on():
    sra = SRA(3, 8, 6, 0.2, schedule=sra_decay(steps_per_epoch=5004))
    assert sra.weight(0) == sra.weight(149 * 5004 + 5003) == 0.2
    assert sra.weight(150 * 5004) < 0.2
    assert round(sra.weight(800 * 5004), 3) == 0.045
    assert math.isclose(sra.weight(1149 * 5004), 0.02)
    large = sra_decay(5004, last_full=99, per_tenth=800)
    assert large(99 * 5004) == 1 and math.isclose(large(899 * 5004), 0.1)
    with pytest.raises(ValueError, match="at least 1"):
        sra_decay(0)


@pytest.mark.parametrize("distance, axis", DISTANCES)
def test_sra_compiles_as_one_graph(distance, axis, student, teacher):
    sra = SRA(3, 8, 6, distance=distance, cos_axis=axis)
    assert_compiles(sra, inputs(student, teacher), student)


def test_bfloat16_features_under_autocast_are_compared_in_float32():
    student, teacher = (features(2, 16, 6, seed=s, dtype=torch.bfloat16) for s in (1, 2))
    sra, sra2 = SRA(3, 8, 6), SRA2(3, 6, (1, 1), 4)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [r.penalty(inputs(student, teacher)) for r in (sra, sra2)]
    assert all(loss.dtype == torch.float32 for loss in losses)
    expected = huber(sra.head.double()(student.double()), teacher).mean()
    torch.testing.assert_close(losses[0].double(), expected, atol=1e-6, rtol=0)


def test_masked_tokens_do_not_count(student, teacher):
    sra, mask = SRA(3, 8, 6), (torch.arange(16) < 9).expand(2, 16)
    loss = sra.penalty(inputs(student, teacher, token_mask=mask))
    torch.testing.assert_close(loss, sra.penalty(inputs(student[:, :9], teacher[:, :9])))


def test_what_is_no_sra_is_refused(student, teacher):
    for pair in ((8, 8), (8, 3), (0, 4)):
        with pytest.raises(ValueError, match="teacher must be deeper"):
            SRA(*pair, 6)
    with pytest.raises(ValueError, match="no SRA distance l2 along channels"):
        SRA(3, 8, 6, distance="l2")
    with pytest.raises(ValueError, match="no features of the EMA model's block 8"):
        SRA(3, 8, 6).penalty(context({3: student}))
    with pytest.raises(ValueError, match="along the tokens is not defined"):
        SRA(3, 8, 6, distance="cosine", cos_axis="tokens").penalty(
            inputs(student, teacher, token_mask=torch.ones(2, 16))
        )


@pytest.mark.parametrize("axes, patch", [((6,), (2,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 3))])
def test_patches_are_in_the_order_in_which_the_model_puts_them_together(axes, patch):
    model = SiT(axes, patch, in_channels=3, hidden_size=12, depth=2, num_heads=2, num_classes=2)
    x = torch.randn(2, 3, *axes)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, math.prod(model.grid), 3 * math.prod(patch))
    assert torch.equal(model.unpatchify(tokens), x)


@pytest.mark.parametrize("axes, patch", [((6,), (2,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 3))])
def test_token_n_of_sra2s_target_is_what_the_model_sees_at_token_n(axes, patch):
    model = SiT(axes, patch, in_channels=3, hidden_size=12, depth=2, num_heads=2, num_classes=2)
    x = torch.randn(2, 3, *axes)
    order = (0, *range(2, len(patch) + 2), 1)  # the convolution's (D, C, *patch)
    weight = model.x_embedder.proj.weight.permute(order).flatten(1)
    torch.testing.assert_close(F.linear(patchify(x, patch), weight), model.x_embedder(x))


def test_sra2_equals_its_formula(student):
    sra2, given = SRA2(3, 6, (1, 1), 4, hidden=10), context({3: student})
    loss = sra2.penalty(given)
    grad = gradient(loss, student)
    tokens = given.x.permute(0, 2, 3, 1).reshape(2, 16, 4)
    expected = huber(sra2.head.double()(student.double()), tokens).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, gradient(expected, student), atol=1e-7, rtol=1e-4)
    assert sra2.weight(0) == 1.0 and not sra2.teacher_blocks and not sra2.takes_targets


def test_sra2s_target_is_the_clean_data_whatever_the_noise(student):
    sra2, given = SRA2(3, 6, (1, 1), 4, hidden=10), context({3: student})
    loss = sra2.penalty(given)
    noisier = given._replace(noise=9 * given.noise, x_t=given.noise, t=0 * given.t)
    assert sra2.penalty(noisier) == loss
    assert sra2.penalty(given._replace(x=given.x + 1)) != loss


def test_sra2s_head_has_the_layers_asked_for():
    linears = [m for m in SRA2(3, 6, (2, 2), 4, layers=5).head if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 5 and linears[-1].out_features == 16


def test_sra2_compiles_as_one_graph(student):
    assert_compiles(SRA2(3, 6, (1, 1), 4, hidden=10), context({3: student}), student)


def test_what_is_no_sra2_is_refused(student):
    with pytest.raises(ValueError, match=r"\(3, 3\) does not divide.*\(4, 4\)"):
        SRA2(3, 6, (3, 3), 4).penalty(context({3: student}))
    with pytest.raises(ValueError, match=r"\(1,\) does not divide"):
        SRA2(3, 6, (1,), 4).penalty(context({3: student}))
    with pytest.raises(ValueError, match="the head's output"):
        SRA2(3, 6, (2, 2), 4).penalty(context({3: student}))
    with pytest.raises(ValueError, match="0 layers"):
        SRA2(3, 6, (2, 2), 4, layers=0)
    with pytest.raises(ValueError, match="block 0"):
        SRA2(0, 6, (2, 2), 4)
