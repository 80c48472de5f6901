"""What --help says of every flag of every command: tyro takes it from the comments of the flags'
dataclass, and from only some of the places where a comment may stand."""

import re

import pytest

from tests.commands import ROOT, succeed

ROOMS = ("evaluations", "experiments")
SCRIPTS = sorted(path for path in ROOT.glob("*.py"))
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# Words that choose other flags of a command; without them it has those that its help shows.
MODES = {
    "sample": ("ODE", "SDE", "DDPM"),
    "sample_ddp": ("ODE", "SDE", "DDPM"),
    "evaluations.images.__main__": ("make-reference", "train-classifier", "--compare"),
    "experiments.instruments.__main__": ("render", "vae"),
}
COMMANDS = [
    (entry, *mode)
    for path in [*SCRIPTS, *MODULES]
    if '__name__ == "__main__"' in path.read_text()
    for entry in [".".join(path.relative_to(ROOT).with_suffix("").parts)]
    for mode in [(), *((word,) for word in MODES.get(entry, ()))]
]
# A flag or a positional, and what is said of it, behind it or under it.
FLAG = re.compile(r"^  ([-[A-Z].*?)(?: {2,}| *\n {5,})(\S.*?) *$", re.MULTILINE)
DEFAULT = re.compile(r" ?\((default: .*|required|repeatable|sets: .*)\)$")
EXAMPLE = re.compile(r"\b(?:python|torchrun) (?=-|\S+\.py)")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_every_flag_and_keeps_examples_apart(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # a line for what is said of a flag
    entry, *mode = command
    said = succeed(entry, *mode, "--help").out
    found = {flag: DEFAULT.sub("", text) for flag, text in FLAG.findall(said)}
    assert "-h, --help" in found
    assert not {flag for flag, text in found.items() if text.endswith((",", ":", ";"))}, "cut off"
    # None, or one word: the head of a section, or what says little more than the flag's name.
    assert not {flag: text for flag, text in found.items() if " " not in text}
    assert not [line for line in said.splitlines() if len(EXAMPLE.findall(line)) > 1]


def test_the_help_of_sampling_names_what_is_required():
    """Neither a mode nor a protocol is."""
    for program in ("sample", "sample_ddp"):
        said = succeed(program, "--help").out
        assert "(required)" not in said
        assert f"$ python {program}.py --ckpt RUN" in said and "--protocol" in said
