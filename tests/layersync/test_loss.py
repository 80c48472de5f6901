"""The LayerSync term itself: what it computes, and where its gradient goes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from layersync import LayerSync, cosine
from models import SiT

PAIR = (2, 5)


@pytest.fixture
def model(perturb):
    return perturb(
        SiT(input_size=8, in_channels=3, hidden_size=48, depth=6, num_heads=4, num_classes=5)
    ).eval()


def forward(model, blocks=(), batch=3):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 3, 8, 8, generator=generator)
    t = torch.rand(batch, generator=generator)
    return model(x, t, torch.arange(batch) % 5, return_blocks=blocks)


def gradient_size(module) -> float:
    return max(
        (p.grad.abs().max().item() for p in module.parameters() if p.grad is not None), default=0
    )


def test_loss_equals_the_public_formula(model):
    sync = LayerSync([PAIR])
    blocks = forward(model, sync.blocks).blocks
    student, teacher = (F.normalize(blocks[k], dim=-1) for k in PAIR)
    public = -(student * teacher.detach()).sum(-1).mean()
    torch.testing.assert_close(sync(blocks), public, atol=1e-6, rtol=0)
    assert public > -0.99, "features so alike that any formula would pass"


def test_gradient_reaches_the_student_and_below_and_nothing_above(model):
    sync = LayerSync([PAIR])
    sync(forward(model, sync.blocks).blocks).backward()
    below = [model.x_embedder, model.t_embedder, model.y_embedder, *model.blocks[: PAIR[0]]]
    above = [*model.blocks[PAIR[0] :], model.final_layer]
    assert all(gradient_size(module) > 1e-4 for module in below)
    assert all(gradient_size(module) == 0 for module in above)


def test_gradient_stops_at_teacher(model):
    student = torch.randn(2, 4, 8, requires_grad=True)
    teacher = torch.randn(2, 4, 8, requires_grad=True)
    LayerSync([PAIR])({2: student, 5: teacher}).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_without_stop_gradient_the_teacher_moves_too():
    student = torch.randn(2, 4, 8, requires_grad=True)
    teacher = torch.randn(2, 4, 8, requires_grad=True)
    LayerSync([PAIR], stop_gradient=False)({2: student, 5: teacher}).backward()
    assert student.grad.abs().max() > 0 and teacher.grad.abs().max() > 0


def test_reversed_the_deep_block_follows_the_shallow_one():
    student = torch.randn(2, 4, 8, requires_grad=True)
    teacher = torch.randn(2, 4, 8, requires_grad=True)
    LayerSync([PAIR], reverse=True)({2: student, 5: teacher}).backward()
    assert student.grad is None and teacher.grad.abs().max() > 0


def test_at_adaln_zero_the_loss_is_minus_one_and_its_gradient_zero():
    fresh = SiT(input_size=8, in_channels=3, hidden_size=48, depth=6, num_heads=4, num_classes=5)
    sync = LayerSync([PAIR])
    loss = sync(forward(fresh, sync.blocks).blocks)
    loss.backward()
    torch.testing.assert_close(loss.item(), -1.0, atol=1e-6, rtol=0)
    assert gradient_size(fresh) < 1e-6


def test_pairs_average(model):
    blocks = forward(model, (1, 2, 3, 5)).blocks
    one, other = LayerSync([(2, 5)])(blocks), LayerSync([(1, 3)])(blocks)
    torch.testing.assert_close(LayerSync([(2, 5), (1, 3)])(blocks), (one + other) / 2)
    assert not torch.isclose(one, other, atol=1e-3), "pairs so alike that any mixture would pass"
    torch.testing.assert_close(LayerSync([(2, 5), (2, 5)])(blocks), one)


def test_cosine_is_computed_in_float32_under_autocast():
    a, b = (
        torch.randn(2, 16, 64, dtype=torch.bfloat16),
        torch.randn(2, 16, 64, dtype=torch.bfloat16),
    )
    with torch.autocast("cpu", torch.bfloat16):
        value = cosine(a, b)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, cosine(a.float(), b.float()), atol=0, rtol=0)


def test_scale_of_the_features_does_not_matter():
    a, b = torch.randn(2, 16, 8), torch.randn(2, 16, 8)
    torch.testing.assert_close(cosine(a, b), cosine(100 * a, 0.01 * b))


def test_masked_tokens_do_not_count():
    a, b = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    expected = (cosine(a[:1, :2], b[:1, :2]) + cosine(a[1:, :5], b[1:, :5])) / 2
    torch.testing.assert_close(cosine(a, b, mask), expected)
    torch.testing.assert_close(cosine(a, b, torch.ones(2, 6)), cosine(a, b))
    assert cosine(a, b, torch.zeros(2, 6)) == 0
    with pytest.raises(ValueError, match="mask is"):
        cosine(a, b, torch.ones(2, 1))


@pytest.mark.parametrize("pair", [(8, 8), (5, 2), (0, 3), (-1, 4)])
def test_a_pair_that_is_no_pair_is_refused(pair):
    with pytest.raises(ValueError, match=f"{pair[0]}:{pair[1]}.*teacher must be deeper"):
        LayerSync([pair])


@pytest.mark.parametrize(
    "pairs", [[(2.9, 5.9)], [("2", "5")], [(True, 5)], (8, 16), [(2, 5, 7)], ["25"], None]
)
def test_what_is_no_list_of_pairs_of_whole_numbers_is_refused(pairs):
    with pytest.raises(ValueError, match=r"give a list of \(student, teacher\) block numbers"):
        LayerSync(pairs)


def test_block_numbers_of_numpy_and_torch_are_whole_numbers():
    assert LayerSync([(np.int64(2), torch.tensor(5))]).pairs == (PAIR,)


@pytest.mark.parametrize("weight", [-0.2, float("nan"), float("inf")])
def test_a_weight_that_is_negative_or_no_number_is_refused(weight):
    with pytest.raises(ValueError, match=f"the weight of LayerSync is {weight}: give a finite"):
        LayerSync([PAIR], weight)


def test_no_pair_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        LayerSync([])


def test_a_missing_block_is_an_error_never_a_zero():
    with pytest.raises(ValueError, match="no features for block 5"):
        LayerSync([PAIR])({2: torch.randn(1, 2, 4)})


@pytest.mark.parametrize("teacher", [(1, 4, 8), (3, 1, 8), (3, 4, 1), (4, 8)])
def test_features_of_other_shapes_are_refused_not_broadcast(teacher):
    features = {2: torch.randn(3, 4, 8), 5: torch.randn(teacher)}
    with pytest.raises(ValueError, match=r"pair 2:5: block 2 is \(3, 4, 8\) and block 5 \("):
        LayerSync([PAIR])(features)
    with pytest.raises(ValueError, match=r"pair 2:5.*are \(batch, tokens, width\) of one shape"):
        LayerSync([PAIR])({2: torch.randn(4, 8), 5: torch.randn(4, 8)})


def test_same_gradients_with_activation_checkpointing(model):
    sync = LayerSync([PAIR])

    def gradients():
        model.zero_grad()
        pred, blocks = forward(model, sync.blocks)
        (pred.square().mean() + sync(blocks)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.activation_checkpointing = True
    for a, b in zip(plain, gradients(), strict=True):
        assert torch.equal(a, b)


def test_model_and_loss_compile_as_one_graph(model):
    sync = LayerSync([PAIR, (1, 4)])

    def loss(x, t, y):
        pred, blocks = model(x, t, y, return_blocks=sync.blocks)
        return pred.square().mean() + 0.2 * sync(blocks)

    arguments = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 3])
    loss(*arguments).backward()
    eager = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    # aot_eager traces forward and backward whole without a C++ compiler.
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*arguments).backward()
    compiled = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
