"""How alike two blocks are, in the ways that are really different; test_trd.py has TRD of video."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from regulariser_toys import assert_compiles, context, features, gradient

import layersync
from layersync import LayerSync, centred, cosine, relation, smooth_l1, spatial


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def dot(a, b):
    return (unit(a) * unit(b)).sum(-1).mean()


def relation_by_loops(a, b):
    """The paper's Eq. 5 for one frame, pair by pair of tokens."""
    a, b = unit(a), unit(b)
    batch, tokens, _ = a.shape
    total = 0
    for image in range(batch):
        for i in range(tokens):
            for j in range(tokens):
                total += (a[image, i] @ a[image, j] - b[image, i] @ b[image, j]).abs()
    return -total / (batch * tokens**2)


def smooth_l1_by_cases(a, b):
    x = (a - b).abs()
    return -torch.where(x < 0.05, 10 * x * x, x - 0.025).mean()


# Straightforward restatements for float64.
RESTATED = {
    "cosine": dot,
    "centred": lambda a, b: dot(a - a.detach().mean(0), b - b.detach().mean(0)),
    "spatial": lambda a, b: dot(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)),
    "smooth_l1": smooth_l1_by_cases,
    "relation": relation_by_loops,
}
RESTATED["centred_all"] = RESTATED["centred"]  # there is one rank here
RESTATED["trd"] = relation_by_loops  # of one frame
SIMILARITIES = layersync.SIMILARITIES | {"trd": partial(layersync.trd, frames=1)}
NAMES = list(SIMILARITIES)


@pytest.fixture
def pair():
    return features(3, 5, 8, seed=1), features(3, 5, 8, seed=2)


def rotation(width=8):
    return torch.linalg.qr(torch.randn(width, width))[0]


def test_the_table_holds_all_of_them():
    assert layersync.SIMILARITIES.keys() == RESTATED.keys()


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_definition(name, pair):
    exact = [x.detach().double().requires_grad_() for x in pair]
    ours, expected = SIMILARITIES[name](*pair), RESTATED[name](*exact)
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=0)
    grads = torch.autograd.grad(ours, pair), torch.autograd.grad(expected, exact)
    for grad, exact_grad in zip(*grads, strict=True):
        torch.testing.assert_close(grad.double(), exact_grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_float32_of_bfloat16_features_under_autocast(name):
    a, b = (features(3, 5, 8, seed=s, dtype=torch.bfloat16) for s in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        value = SIMILARITIES[name](a, b)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, SIMILARITIES[name](a.float(), b.float()), atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_most_alike_themselves(name, pair):
    best = SIMILARITIES[name](pair[0], pair[0])
    expected = 0.0 if name in ("smooth_l1", "relation", "trd") else 1.0
    torch.testing.assert_close(best.item(), expected, atol=1e-6, rtol=0)
    assert SIMILARITIES[name](*pair) < best


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_do_not_count(name, pair):
    mask = (torch.arange(5) < 3).expand(3, 5)
    similarity = SIMILARITIES[name]
    kept = [x[:, :3] for x in pair]
    torch.testing.assert_close(similarity(*pair, mask), similarity(*kept))
    torch.testing.assert_close(similarity(*pair, torch.ones(3, 5)), similarity(*pair))


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_other_tokens_is_refused(name, pair):
    with pytest.raises(ValueError, match="mask is"):
        SIMILARITIES[name](*pair, torch.ones(3, 1))


@pytest.mark.parametrize("name", NAMES)
def test_layersync_with_it_compiles_as_one_graph(name, pair):
    torch._dynamo.reset()  # one function is compiled here for every similarity
    sync = LayerSync([(2, 5)], similarity=SIMILARITIES[name])
    assert_compiles(sync, context({2: pair[0], 5: pair[1]}), pair[0])


def test_what_all_images_share_matters_to_the_cosine_and_not_to_the_centred_one(pair):
    shared = 20 * torch.randn(1, 5, 8)
    moved = [x + shared for x in pair]
    assert cosine(*moved) > cosine(*pair) + 0.1
    torch.testing.assert_close(centred(*moved), centred(*pair), atol=1e-5, rtol=0)


def test_the_batch_mean_is_no_way_for_the_gradient(pair):
    """One image's gradient comes through its own features alone."""
    student, teacher = pair
    mean = student.detach().mean(0)
    alone = F.cosine_similarity(student[0] - mean, teacher[0] - teacher.mean(0), dim=-1)
    grads = gradient(centred(*pair), student), gradient(alone.mean() / 3, student)
    torch.testing.assert_close(grads[0][0], grads[1][0])


def test_what_all_tokens_of_an_image_share_does_not_matter_to_the_spatial_one(pair):
    moved = [x + 3 * torch.randn(3, 1, 8) for x in pair]
    torch.testing.assert_close(spatial(*moved), spatial(*pair), atol=1e-5, rtol=0)


def test_only_relations_ignore_a_rotation_of_one_block(pair):
    student, teacher = pair
    turned = teacher @ rotation()
    torch.testing.assert_close(relation(student, turned), relation(*pair), atol=1e-6, rtol=0)
    for other in (cosine, centred, spatial, smooth_l1):
        assert (other(student, turned) - other(*pair)).abs() > 1e-3


def test_only_smooth_l1_depends_on_the_scale(pair):
    student, teacher = pair
    for name in NAMES:
        value, scaled = SIMILARITIES[name](*pair), SIMILARITIES[name](3 * student, teacher)
        assert torch.isclose(value, scaled, atol=1e-6) == (name != "smooth_l1")


def test_golden_smooth_l1():
    a = torch.arange(12.0).view(1, 3, 4) / 10
    value = smooth_l1(a, a.flip(1)).item()
    torch.testing.assert_close(value, -0.51666671, atol=1e-7, rtol=0)


def test_l2_of_normalized_tokens_is_the_cosine_with_twice_the_weight(pair):
    student, teacher = pair
    l2 = (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean()
    torch.testing.assert_close(l2, 2 - 2 * cosine(*pair))


def test_one_image_is_its_own_mean():
    with pytest.raises(ValueError, match="at least 2 images"):
        centred(features(1, 5, 8, seed=1), features(1, 5, 8, seed=2))


def test_on_one_process_all_ranks_are_this_one(pair):
    assert centred(*pair, all_ranks=True) == centred(*pair)
