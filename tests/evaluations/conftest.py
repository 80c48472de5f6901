"""The classifier of the digits, and what the tests of the score share."""

import sys
import warnings

import pytest

import domains
from evaluations.extractors import classifier as classifiers
from runtime.entry import run


@pytest.fixture
def sentence_of(monkeypatch, capsys):
    """What a command prints before it ends with exit code 2, called with its main and flags."""

    def end(main, *flags):
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            run(main)
        printed = capsys.readouterr()
        assert stop.value.code == 2 and printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
        return printed.err

    return end


@pytest.fixture(scope="session")
def digits():
    return domains.build("digits")


@pytest.fixture(scope="session")
def classifier(digits_classifier):
    return classifiers.load(digits_classifier)


@pytest.fixture(scope="session")
def held_out(digits):
    return classifiers.images_of(digits, digits.held_out_set())
