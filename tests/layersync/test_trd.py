"""TRD of video: the paper's Eqs. 4 to 6, made frame by frame."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from regulariser_toys import assert_compiles, context, features, gradient
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import host_peak
from layersync import LayerSync, record_blocks, relation, trd

BATCH, FRAMES, SIZE, WIDTH = 2, 3, 4, 8
PAIR = (2, 5)


@pytest.fixture
def pair():
    return tuple(features(BATCH, FRAMES * SIZE, WIDTH, seed=seed) for seed in (1, 2))


def by_loops(y, h, frames):
    """Eqs. 4 to 6, sum by sum, each over the number of its summands."""
    batch, tokens, _ = y.shape
    size = tokens // frames

    def cosine(x, video, d, i, e, j):
        one, other = x[video, d * size + i], x[video, e * size + j]
        return one @ other / (one.norm() * other.norm())

    spatial = temporal = 0
    for video in range(batch):
        for d in range(frames):
            for e in range(frames):
                for i in range(size):
                    for j in range(size):
                        at = video, d, i, e, j
                        distance = (cosine(y, *at) - cosine(h, *at)).abs()
                        if e == d:
                            spatial += distance / (batch * frames * size**2)
                        else:
                            temporal += distance / (batch * frames * (frames - 1) * size**2)
    return spatial + temporal


def distances(y, h, frames):
    """(B, f, s, f, s): all distances at once."""
    grams = [unit @ unit.mT for unit in (F.normalize(x, dim=-1) for x in (y, h))]
    return (grams[0] - grams[1]).abs().unflatten(2, (frames, -1)).unflatten(1, (frames, -1))


def dense(y, h, frames):
    means = distances(y, h, frames).mean((2, 4))
    same = torch.eye(frames, dtype=torch.bool)
    return means[:, same].mean() + means[:, ~same].mean()


@pytest.mark.parametrize("frames", [2, 3, 6, 12])
def test_the_loss_equals_the_literal_loops_of_the_paper(frames, pair):
    sync = LayerSync([PAIR], similarity=partial(trd, frames=frames))
    loss = sync(dict(zip(PAIR, pair, strict=True)))
    exact = by_loops(*(x.detach().double() for x in pair), frames)
    torch.testing.assert_close(loss.double(), exact, atol=1e-6, rtol=0)
    assert exact > 0.1, "features so alike that any formula would pass"


@pytest.mark.parametrize("frames", [2, 3, 6])
def test_gradients_made_frame_by_frame_are_those_of_all_pairs_at_once(frames, pair):
    grads = torch.autograd.grad(-trd(*pair, frames=frames), pair)
    for grad, expected in zip(grads, torch.autograd.grad(dense(*pair, frames), pair), strict=True):
        torch.testing.assert_close(grad, expected, atol=1e-7, rtol=1e-5)
        assert expected.abs().max() > 1e-3


def test_memory_is_that_of_one_frames_pairs():
    """Forward and backward, the peak is far below one matrix of all pairs of tokens."""
    tokens = 1024
    y, h = (features(1, tokens, 2, seed=seed) for seed in (1, 2))

    def peak(loss):
        return host_peak(lambda: gradient(loss(y, h.detach(), frames=16), y))

    pairs = 4 * tokens**2  # bytes
    assert peak(dense) > 3 * pairs
    assert peak(trd) < pairs / 2


def test_two_frames_meet_once():
    with FlopCounterMode(display=False) as counter:
        trd(torch.randn(1, 40, 3), torch.randn(1, 40, 3), frames=4)
    assert counter.get_total_flops() == 2 * 2 * 10**2 * 3 * (4 + 3 + 2 + 1)


def test_equal_features_are_at_distance_0(pair):
    loss = trd(pair[0], pair[0], frames=FRAMES)
    assert loss == 0
    turned = pair[0] @ torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
    torch.testing.assert_close(trd(pair[0], turned, frames=FRAMES).item(), 0.0, atol=1e-6, rtol=0)


def test_one_frame_has_no_temporal_term(pair):
    mask = torch.rand(BATCH, FRAMES * SIZE) < 0.7
    for counted in (None, mask):
        assert trd(*pair, counted, frames=1) == relation(*pair, counted)


def test_frames_of_one_token_have_no_spatial_term(pair):
    """A token's relation to itself is 1 in every block."""
    means = distances(*pair, FRAMES * SIZE)[:, :, 0, :, 0]
    different = ~torch.eye(FRAMES * SIZE, dtype=torch.bool)
    loss = -trd(*pair, frames=FRAMES * SIZE)
    torch.testing.assert_close(loss, means[:, different].mean())


def test_what_changes_from_frame_to_frame_is_temporal_alone(pair):
    """Other signs of whole frames leave each frame's relations as they are."""
    signs = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(SIZE)[:, None]
    still = pair[0]
    torch.testing.assert_close(relation(still[:, :SIZE], (signs * still)[:, :SIZE]).item(), -0.0)
    loss = -trd(still, signs * still, frames=FRAMES)
    units = F.normalize(still, dim=-1)
    frames = (units @ units.mT).abs().unflatten(2, (FRAMES, -1)).unflatten(1, (FRAMES, -1))
    means = 2 * frames.mean((0, 2, 4))
    torch.testing.assert_close(loss, (means[0, 1] + means[1, 2]) / 3)


def test_gradient_stops_at_teacher(pair):
    student, teacher = pair
    LayerSync([PAIR], similarity=partial(trd, frames=FRAMES))({2: student, 5: teacher}).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None


def test_ablations_let_the_other_block_move(pair):
    similarity = partial(trd, frames=FRAMES)
    blocks = dict(zip(PAIR, pair, strict=True))
    both = LayerSync([PAIR], similarity=similarity, stop_gradient=False)(blocks)
    assert all(grad.abs().max() > 0 for grad in torch.autograd.grad(both, pair))
    swapped = LayerSync([PAIR], similarity=similarity, reverse=True)(blocks)
    torch.testing.assert_close(swapped, both)  # a distance
    swapped.backward()
    assert pair[0].grad is None and pair[1].grad.abs().max() > 0


def test_only_pairs_of_tokens_that_count_count(pair):
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0], [1] * 8 + [0] * 4]).bool()
    of = distances(*(x.detach() for x in pair), FRAMES)
    counted = mask.unflatten(1, (FRAMES, -1))
    pairs = counted[:, :, :, None, None] & counted[:, None, None]
    same = torch.eye(FRAMES, dtype=torch.bool)[:, None, :, None]
    expected = sum(
        of[video][pairs[video] & chosen].mean() / BATCH
        for video in range(BATCH)
        for chosen in (same, ~same)
    )
    torch.testing.assert_close(-trd(*pair, mask, frames=FRAMES), expected)
    torch.testing.assert_close(
        trd(*pair, torch.ones(BATCH, FRAMES * SIZE), frames=FRAMES), trd(*pair, frames=FRAMES)
    )
    assert trd(*pair, torch.zeros(BATCH, FRAMES * SIZE), frames=FRAMES) == 0


def test_what_a_mask_leaves_out_gets_no_gradient(pair):
    mask = (torch.arange(FRAMES * SIZE) < 7).expand(BATCH, -1)
    grad = gradient(trd(*pair, mask, frames=FRAMES), pair[0])
    assert not grad[:, 7:].any() and grad[:, :7].abs().max() > 0


def vectors(*degrees):
    angle = torch.tensor([degrees]).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1)


def test_by_hand():
    """Two frames of two tokens: cosines 1 and 0 to the first one's, and 0 and 1."""
    student, teacher = vectors(0.0, 0.0, 0.0, 90.0), vectors(0.0, 90.0, 0.0, 0.0)
    # In a frame 2 of 4 pairs differ, by 1; between them (0, 0), (0, 1), (1, 0), (1, 1): 0, 1, 1, 0.
    torch.testing.assert_close(trd(student, teacher, frames=2).item(), -(0.5 + 0.5))


def test_a_margin_forgives_small_differences_by_hand():
    student, teacher = vectors(0.0, 60.0), vectors(0.0, 90.0)  # cosines 0.5 and 0
    for margin, expected in [(0.0, 0.5), (0.1, 0.4), (0.5, 0.0), (2.0, 0.0)]:
        spatial = trd(student, teacher, frames=1, margin=margin)
        torch.testing.assert_close(spatial.item(), -expected / 2, atol=1e-6, rtol=0)
        temporal = trd(student, teacher, frames=2, margin=margin)
        torch.testing.assert_close(temporal.item(), -expected, atol=1e-6, rtol=0)


def test_pooling_is_the_mean_of_the_cells_of_each_frame(pair):
    """2 frames of 3 x 4 tokens, cells of 3 x 2: one row of two cells per frame."""
    y, h = (features(BATCH, 24, WIDTH, seed=seed) for seed in (3, 4))
    first, second = [0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]
    cells = [[token + 12 * frame for token in cell] for frame in (0, 1) for cell in (first, second)]
    small = [torch.stack([x[:, cell].mean(1) for cell in cells], 1) for x in (y, h)]
    value = trd(y, h, frames=2, grid=(3, 4), pool=(3, 2))
    torch.testing.assert_close(value, trd(*small, frames=2))
    torch.testing.assert_close(trd(y, h, frames=2, grid=(3, 4), pool=(1, 1)), trd(y, h, frames=2))
    torch.testing.assert_close(trd(y, h, frames=1, grid=(24,), pool=(1,)), relation(y, h))


def test_it_is_float32_of_bfloat16_features_under_autocast():
    y, h = (features(2, 12, 8, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    options = dict(frames=3, grid=(2, 2), pool=(1, 2), margin=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        value = trd(y, h, **options)
        grad = gradient(value, y)
    exact = y.detach().float().requires_grad_()
    expected = trd(exact, h.float(), **options)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    torch.testing.assert_close(grad, gradient(expected, exact).bfloat16())


@pytest.mark.parametrize(
    "options",
    [{}, {"margin": 0.1}, {"grid": (2, 2), "pool": (2, 1)}],
    ids=["plain", "margin", "pool"],
)
def test_it_compiles_as_one_graph(options, pair):
    torch._dynamo.reset()
    sync = LayerSync([PAIR], similarity=partial(trd, frames=FRAMES, **options))
    assert_compiles(sync, context(dict(zip(PAIR, pair, strict=True))), pair[0])


def test_it_is_one_argument_for_a_model_of_ones_own():
    layer = partial(torch.nn.TransformerEncoderLayer, WIDTH, 2, 16, batch_first=True)
    blocks = torch.nn.ModuleList(layer() for _ in range(3))
    sync = LayerSync([(1, 3)], weight=0.5, similarity=partial(trd, frames=FRAMES))
    with record_blocks(blocks, sync.blocks) as seen:
        torch.nn.Sequential(*blocks)(torch.randn(BATCH, FRAMES * SIZE, WIDTH))
    sync(seen).backward()
    assert all(p.grad is not None for p in blocks[0].parameters())
    assert all(p.grad is None for block in blocks[1:] for p in block.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(frames=5), "12 tokens are not those of 5 equal frames"),
        (dict(frames=0), "of 0 equal frames"),
        (dict(frames=3, margin=-0.1), "0 or more, not -0.1"),
        (dict(frames=3, pool=(2, 2)), "a pool of 2 x 2 does not divide a frame's unknown tokens"),
        (dict(frames=3, grid=(2, 2), pool=(2, 3)), "2 x 3 does not divide a frame's 2 x 2 tokens"),
        (dict(frames=3, grid=(2, 2), pool=(0, 1)), "a pool of 0 x 1 does not divide"),
        (dict(frames=3, grid=(2, 4), pool=(2, 2)), r"12 tokens are not .* 3 frames of \(2, 4\)"),
        (dict(frames=3, mask=torch.ones(BATCH, 1)), "the mask is"),
        (dict(frames=3, mask=torch.ones(2, 12), grid=(2, 2), pool=(2, 2)), "cannot pool"),
    ],
)
def test_what_has_no_meaning_is_refused(options, sentence, pair):
    with pytest.raises(ValueError, match=sentence):
        trd(*pair, **options)
