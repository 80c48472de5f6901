"""The data order is a function of (seed, step, position), for any number of ranks."""

import numpy as np
import pytest

from domains.order import Draws, GlobalBatches, positions

SIZE, BATCH, STEPS = 98, 24, 12  # four batches per epoch, two images left out of each


def batches(*, rank=0, ranks=1, micro_batches=1, seed=3, start=0, stop=STEPS):
    return GlobalBatches(
        SIZE, BATCH, seed=seed, start=start, stop=stop,
        rank=rank, ranks=ranks, micro_batches=micro_batches,
    )  # fmt: skip


def drawn(**flags):
    """The (index, seed) of every position of every step."""
    return [pairs(draws) for draws in batches(**flags)]


def global_steps(ranks, micro_batches):
    """The Draws of every step by position, put together from what each rank was given."""
    steps = [[None] * BATCH for _ in range(STEPS)]
    for rank in range(ranks):
        parts = list(batches(rank=rank, ranks=ranks, micro_batches=micro_batches))
        for number, draws in enumerate(parts):
            step, micro = divmod(number, micro_batches)
            where = positions(
                BATCH, rank=rank, ranks=ranks, micro=micro, micro_batches=micro_batches
            )
            assert steps[step][where] == [None] * len(draws.index), "two ranks at one position"
            steps[step][where] = pairs(draws)
    return steps


def pairs(draws):
    return list(zip(draws.index.tolist(), draws.seed.tolist(), strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_draws_the_same_images_and_seeds_for_any_ranks_and_micro_batches(
    ranks, micro_batches
):
    assert global_steps(ranks, micro_batches) == drawn()


def test_an_epoch_repeats_no_image_and_the_next_one_has_another_order():
    indices = [draws.index.tolist() for draws in batches()]
    epochs = [sum(indices[first : first + 4], []) for first in (0, 4, 8)]
    for epoch in epochs:
        assert len(set(epoch)) == 4 * BATCH and set(epoch) <= set(range(SIZE))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_an_image_is_left_out_of_some_epochs_only():
    indices = [index for draws in batches(stop=40) for index in draws.index]
    assert set(indices) == set(range(SIZE))


@pytest.mark.parametrize("start", [1, 4, 7])
def test_starting_at_a_step_goes_on_with_the_same_sequence(start):
    assert drawn(start=start) == drawn()[start:]


def test_the_number_of_batches_is_known_before_they_are_drawn():
    sampler = batches(rank=1, ranks=2, micro_batches=3, start=5)
    assert len(sampler) == len(list(sampler)) == (STEPS - 5) * 3


def test_another_seed_is_another_order_with_other_augmentation():
    one, other = (next(iter(batches(seed=seed))) for seed in (3, 4))
    assert one.index.tolist() != other.index.tolist()
    assert not set(one.seed.tolist()) & set(other.seed.tolist())


def test_every_position_of_every_step_has_a_seed_of_its_own():
    seeds = [seed for draws in batches() for seed in draws.seed.tolist()]
    assert len(set(seeds)) == len(seeds) == STEPS * BATCH and min(seeds) >= 0


def test_half_of_the_positions_are_flipped():
    flipped = np.concatenate([draws.flipped for draws in batches(stop=200)])
    assert 0.47 < flipped.mean() < 0.53
    assert not Draws.plain(range(5)).flipped.any()


def test_the_data_order_is_that_of_runs_begun_earlier():
    """A run resumed after an update of this code must go on with its epoch."""
    assert next(iter(batches())).index[:8].tolist() == [26, 27, 70, 65, 33, 55, 58, 57]
