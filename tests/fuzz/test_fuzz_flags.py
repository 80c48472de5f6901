"""Any words behind train.py and sample.py: flags, or one sentence and exit code 2."""

import dataclasses
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config import GridODE, NpzSDE, TrainConfig, parse, parse_sampling
from runtime.errors import InputError, one_line
from runtime.presets import PRESETS
from tests.fuzz.readers import refused

flags = st.sampled_from([f"--{field.name}" for field in dataclasses.fields(TrainConfig)])
values = st.one_of(st.text(max_size=8), st.floats().map(str), st.integers().map(str))
others = st.sampled_from(["--preset", "digits", "--"])
words = st.lists(st.one_of(flags, values, others), max_size=6)
fewer = settings(max_examples=settings.default.max_examples // 6)  # tyro takes a tenth of a second


@fewer
@given(words)
def test_words_become_flags_or_are_refused(words):
    def read():
        try:
            parse(TrainConfig, PRESETS, words)
        except SystemExit as stop:  # tyro has said it
            assert stop.code in (0, 2)

    refused(read, InputError, counted=False)


@fewer
@given(st.sampled_from([[], ["ODE"], ["SDE"]]), words)
def test_words_of_sampling_become_flags_or_are_refused(mode, words):
    before, sys.argv = sys.argv, ["sample.py", *mode, *words]

    def read():
        try:
            parse_sampling({"ODE": GridODE, "SDE": NpzSDE}, {})
        except SystemExit as stop:
            assert stop.code in (0, 2)

    try:
        refused(read, InputError, counted=False)
    finally:
        sys.argv = before


@given(st.text())
def test_a_sentence_is_one_line_that_a_terminal_shows(text):
    said = one_line(text)
    assert said.isprintable() and len(said.splitlines()) <= 1
