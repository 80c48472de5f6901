"""How much sooner a run is where another one ends."""

import numpy as np
import pytest

from evaluations.metrics import crossing, pace, speed_up

STEPS = np.arange(10, 101, 10)


def losses_of(speed, *, seeds=3, images=40, spread=0.02, seed=0):
    """Curves that fall as a power of the steps, (seeds, steps, images); images differ in how hard
    they are, the same for all runs, and seeds a little."""
    random = np.random.default_rng(seed)
    hard = np.random.default_rng(99).uniform(0.8, 1.2, images)
    noise = 1 + spread * random.standard_normal((seeds, 1, 1))
    return (speed * STEPS[None, :, None]) ** -0.5 * hard * noise


def test_a_curve_that_falls_twice_as_fast_is_there_in_half_the_steps():
    found = speed_up(STEPS, losses_of(1), losses_of(2))
    assert found.ratio == pytest.approx(2) and found.reached == 1


def test_a_run_is_as_fast_as_itself():
    found = speed_up(STEPS, losses_of(1), losses_of(1))
    assert found.ratio == found.low == found.high == 1


def test_what_is_never_reached_is_not_extrapolated():
    slower = losses_of(0.5)
    assert crossing(STEPS, slower.mean((0, 2)), losses_of(1).mean((0, 2))[-1]) is None
    assert speed_up(STEPS, losses_of(1), slower) == (None, None, None, 0)


def test_the_slower_of_two_is_timed_by_the_score_that_both_come_to():
    slow, fast = (losses_of(speed).mean(-1) for speed in (1, 2))
    assert pace(STEPS, slow, fast).ratio == pytest.approx(2)
    assert pace(STEPS, fast, slow).ratio == pytest.approx(0.5)
    assert pace(STEPS, slow, slow) == (1, 1, 1)
    assert pace(STEPS, slow, 0.1 * slow) is None, "no more than a bound is known"
    of_one = pace(STEPS, slow[:1], fast[:1])
    assert of_one.low == of_one.ratio == of_one.high


def test_between_checkpoints_a_curve_is_a_straight_line():
    assert crossing([10, 20], [4.0, 2.0], 3.5) == 12.5
    assert crossing([10, 20, 30], [4.0, 2.0, 5.0], 2.0) == 20, "the first time counts"
    assert crossing([10, 20], [4.0, 2.0], 9.0) == 10


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Independent seeds of both runs, eight each: of fewer it is too narrow."""
    held = 0
    for trial in range(40):
        baseline, other = (losses_of(v, seeds=8, spread=0.03, seed=2 * trial + v) for v in (1, 2))
        found = speed_up(STEPS, baseline, other)
        held += (found.low or 0) <= 2 <= found.high
    assert 32 <= held <= 40


def test_seeds_that_disagree_leave_it_open():
    """One of two seeds is there in half the time, the other never."""
    both = np.concatenate([losses_of(2, seeds=1), losses_of(0.5, seeds=1)])
    found = speed_up(STEPS, losses_of(1, seeds=2), both)
    assert found.low is None and found.high == pytest.approx(2, rel=0.1)
    assert 0 < found.reached < 1
