"""Which blocks, and how much of the term when."""

import math
import pickle
import warnings

import pytest

from layersync import (
    SCHEDULES,
    LayerSync,
    admissible_pairs,
    check_pairs,
    constant,
    cosine_decay,
    default_pair,
    default_weight,
    linear_decay,
    sra_decay,
    stop_at,
)

# depth: pairs that the paper uses (images, Table 8, audio, motion, video fine-tuning).
PUBLISHED = {
    12: [(4, 7), (2, 8)],
    24: [(8, 18)],
    28: [(8, 16), (7, 16), (8, 21)],
    8: [(3, 6)],
    30: [(4, 24)],
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_every_published_pair_obeys_the_rule(depth):
    assert set(PUBLISHED[depth]) <= set(admissible_pairs(depth))


def test_the_rule_excludes_deep_teachers_and_close_pairs():
    pairs = admissible_pairs(28)
    assert max(teacher for _, teacher in pairs) == 22
    assert min(teacher - student for student, teacher in pairs) == 8
    assert min(teacher - student for student, teacher in admissible_pairs(12)) == 3


def test_default_pairs_are_the_published_ones():
    assert [default_pair(depth) for depth in (12, 24, 28)] == [(4, 7), (8, 18), (8, 16)]
    assert [default_weight(depth) for depth in (12, 24, 28, 6)] == [0.3, 0.2, 0.2, 0.2]
    assert default_pair(6) == (2, 4)


@pytest.mark.parametrize("depth", range(5, 64))
def test_every_default_pair_obeys_the_rule(depth):
    assert default_pair(depth) in admissible_pairs(depth)


def test_default_pair_of_tiny_models_is_valid():
    assert default_pair(2) == (1, 2)
    with pytest.raises(ValueError, match="at least 2 blocks"):
        default_pair(1)


def test_a_pair_beyond_the_model_is_refused_with_its_depth():
    with pytest.raises(ValueError, match="8:16 does not fit this model of 12 blocks"):
        check_pairs([(8, 16)], 12)


def test_a_pair_outside_the_rule_is_warned_of():
    with pytest.warns(UserWarning, match="8:28 is outside the rule.*section 3.4"):
        check_pairs([(8, 28)], 28)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pairs([(8, 16)], 28)


def test_schedules_start_full_and_end_where_they_say():
    for build in SCHEDULES.values():
        assert build(100)(0) == 1.0
    assert linear_decay(100)(50) == 0.5 and linear_decay(100)(100) == linear_decay(100)(500) == 0
    assert math.isclose(cosine_decay(100)(50), 0.5) and cosine_decay(100)(100) == 0
    assert stop_at(100)(99) == 1.0 and stop_at(100)(100) == 0
    assert constant(10**9) == 1.0


def test_weight_follows_the_schedule():
    sync = LayerSync([(1, 2)], weight=0.4, schedule=linear_decay(10))
    assert [sync.weight(step) for step in (0, 5, 10)] == [0.4, 0.2, 0.0]


@pytest.mark.parametrize("build", [*SCHEDULES.values(), sra_decay])
def test_a_schedule_can_be_sent_to_another_process(build):
    sync = LayerSync([(1, 2)], weight=0.4, schedule=build(10))
    sent = pickle.loads(pickle.dumps(sync))
    assert all(sent.weight(step) == sync.weight(step) for step in range(12))


def test_a_decay_over_no_steps_is_refused():
    for build in (linear_decay, cosine_decay):
        with pytest.raises(ValueError, match="at least 1"):
            build(0)
