"""The scripts of tests/faults about files and flags of strangers, with small budgets."""

import pytest

from tests.faults import command_lines, malicious_checkpoints


def test_no_checkpoint_runs_anything_or_ends_in_more_than_a_sentence():
    counts = malicious_checkpoints.check(cuts=10, flips=20, commands=1)
    assert counts["made to harm: refused in one sentence"] > 60


def test_no_command_line_ends_in_a_traceback_or_leaves_a_file():
    counts, failures = command_lines.check(lines=150, real=3)
    assert not failures, failures[0]
    assert counts["train: exit 0"] > 10, "some of them have to be right"


@pytest.mark.slow
def test_no_checkpoint_of_the_whole_collection_runs_anything():
    malicious_checkpoints.check()


@pytest.mark.slow
def test_none_of_two_thousand_command_lines_ends_in_a_traceback():
    assert not command_lines.check()[1]
