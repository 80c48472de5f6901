"""Controls and ablations of LayerSync: the same term with another teacher, and at some times."""

from functools import partial

import pytest
import torch
from regulariser_toys import assert_compiles, context, features, gradient

from layersync import LayerSync, cosine, relation, smooth_l1, spatial, trd

PAIR = (2, 5)


@pytest.fixture
def student():
    return features(3, 4, 8, seed=1)


@pytest.fixture
def teacher():
    return features(3, 4, 8, seed=2)


def test_another_images_teacher_is_the_previous_one_of_the_batch(student, teacher):
    sync = LayerSync([PAIR], teacher="other_image")
    loss = sync({2: student, 5: teacher})
    previous = torch.stack([teacher[2], teacher[0], teacher[1]])
    torch.testing.assert_close(loss, -cosine(student, previous))
    loss.backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


def test_of_another_image_only_tokens_that_both_have_count(student, teacher):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    both = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    loss = LayerSync([PAIR], teacher="other_image")({2: student, 5: teacher}, mask)
    torch.testing.assert_close(loss, -cosine(student, teacher.roll(1, 0), both))


def test_one_image_has_no_other():
    with pytest.raises(ValueError, match="at least 2 images"):
        LayerSync([PAIR], teacher="other_image")({2: torch.randn(1, 4, 8), 5: torch.randn(1, 4, 8)})


def test_a_random_teacher_is_asked_of_the_loop_and_not_of_the_model(student, teacher):
    sync = LayerSync([PAIR, (1, 5)], teacher="random")
    assert sync.blocks == (1, 2) and sync.teacher_blocks == (5,)
    t = torch.rand(3)
    assert torch.equal(sync.teacher_time(t, torch.rand(3)), t), "it sees the same noise level"
    inputs = context({1: student, 2: student}, teacher={5: teacher})
    torch.testing.assert_close(sync.penalty(inputs), -cosine(student, teacher))


def test_reversed_the_deep_block_follows_the_random_models_shallow_one(student, teacher):
    sync = LayerSync([PAIR], teacher="random", reverse=True)
    assert sync.blocks == (5,) and sync.teacher_blocks == (2,)
    loss = sync.penalty(context({5: student}, teacher={2: teacher}))
    torch.testing.assert_close(loss, -cosine(student, teacher))
    assert gradient(loss, student).abs().max() > 0


def test_without_the_random_model_there_is_no_loss(student):
    with pytest.raises(ValueError, match="the random teacher's blocks"):
        LayerSync([PAIR], teacher="random").penalty(context({2: student}))


def test_an_unknown_teacher_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'dino': choose from own, ema, other_image, random"):
        LayerSync([PAIR], teacher="dino")


def test_the_ema_models_teacher_sees_the_same_noise_and_stands_behind_no_head(student, teacher):
    sync = LayerSync([PAIR], teacher="ema")
    assert sync.blocks == (2,) and sync.teacher_blocks == (5,) and not list(sync.parameters())
    t = torch.rand(3)
    assert torch.equal(sync.teacher_time(t, torch.rand(3)), t)
    loss = sync.penalty(context({2: student}, teacher={5: teacher}))
    torch.testing.assert_close(loss, -cosine(student, teacher))


def test_an_image_outside_the_times_has_no_term_and_one_inside_its_own(student, teacher):
    sync, t = LayerSync([PAIR], times=(0.5, 0.9)), torch.tensor([0.2, 0.5, 0.95])
    blocks = {2: student, 5: teacher}
    loss = sync.penalty(context(blocks, t=t))
    torch.testing.assert_close(loss, -cosine(student[1:2], teacher[1:2]) / 3)
    found, whole = gradient(loss, student), gradient(LayerSync([PAIR])(blocks), student)
    assert found[[0, 2]].abs().max() == 0
    torch.testing.assert_close(found[1], whole[1])


def test_times_leave_out_what_the_mask_leaves_out(student, teacher):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    within = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    t, blocks = torch.tensor([0.1, 0.2, 0.8]), {2: student, 5: teacher}
    loss = LayerSync([PAIR], times=(0, 0.5))(blocks, mask, t=t)
    torch.testing.assert_close(loss, LayerSync([PAIR])(blocks, within))


def test_times_are_not_guessed(student, teacher):
    sync, blocks = LayerSync([PAIR], times=(0, 0.5)), {2: student, 5: teacher}
    for t, given in ((None, "none"), (torch.rand(3, 1), r"\(3, 1\)"), (torch.rand(2), r"\(2,\)")):
        with pytest.raises(ValueError, match=rf"needs t of every image, \(3,\): got {given}"):
            sync(blocks, t=t)
    with pytest.raises(ValueError, match=r"the mask is \(4,\), the tokens \(3, 4\)"):
        sync(blocks, torch.ones(4), t=torch.rand(3))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"similarity": spatial}, {"similarity": smooth_l1}, {"similarity": relation},
        {"similarity": partial(trd, frames=2)}, {"teacher": "other_image"},
        {"teacher": "ema"}, {"reverse": True},
    ],
)  # fmt: skip
def test_the_terms_of_the_halves_add_up_to_the_whole(options, student, teacher):
    """Of pairs whose tokens differ in number, too."""
    few = (features(3, 2, 8, seed=3), features(3, 2, 8, seed=4))
    blocks = {2: student, 5: teacher, 1: few[0], 4: few[1]}
    inputs = context(blocks, teacher=blocks, t=torch.tensor([0.1, 0.9, 0.2]))

    def term(low, high):
        return LayerSync([PAIR, (1, 4)], times=(low, high), **options).penalty(inputs)

    torch.testing.assert_close(term(0, 0.5) + term(0.51, 1), term(0, 1))
    assert term(0, 0.5) != term(0, 1)


def test_a_batch_may_have_no_image_inside_the_times(student, teacher):
    sync = LayerSync([PAIR], times=(0.9, 1))
    loss = sync.penalty(context({2: student, 5: teacher}))
    assert loss == 0 and gradient(loss, student).abs().max() == 0
    assert sync.may_vanish and not LayerSync([PAIR]).may_vanish, "no alarm of it"


def test_what_is_not_as_published_is_in_the_runs_first_line():
    assert str(LayerSync([PAIR])) == "LayerSync(pairs=2:5, weight=0.2)"
    other = LayerSync([PAIR], teacher="ema", times=[0, 0.5])
    assert str(other) == "LayerSync(pairs=2:5, weight=0.2, teacher=ema, times=(0.0, 0.5))"


@pytest.mark.parametrize(
    "times",
    [(0.5, 0.5), (0.9, 0.1), (-0.1, 1), (0, 1.1), (0, float("nan")), (0, 0.5, 1), (0.5,), 1, None],
)
def test_times_are_a_part_of_those_from_noise_to_data(times):
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        LayerSync([PAIR], times=times)


@pytest.mark.parametrize("kind", ["own", "ema", "other_image", "random"])
def test_controls_compile_as_one_graph(kind, student, teacher):
    inputs = context({2: student, 5: teacher}, teacher={5: teacher.detach()})
    assert_compiles(LayerSync([PAIR], teacher=kind, times=(0.2, 0.8)), inputs, student)
    assert_compiles(LayerSync([PAIR], teacher=kind), inputs, student)
