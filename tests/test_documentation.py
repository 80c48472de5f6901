"""Every command and every piece of Python in README.md and docs/ is tried, each as a test.

Commands run in this process with the very words of the page: whole where a row of HOW makes them
small, else up to the first file that only its reader has, which they have to ask for.
"""

import argparse
import ast
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

from experiments.publish import FOLDER, load
from experiments.sweep import sweep
from tests.commands import ROOT, call
from tests.evaluations.lab import digits_run
from tests.pipelines import SAVES
from tests.test_wheel import PREPARED

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "experiments/README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PROGRAM = re.compile(r"(?:[A-Z_]+=\S* +)*(\S+)")  # after the variables that are set for it
UNQUOTED = re.compile(r"""(?:[^;"']|"[^"]*"|'[^']*')+""")  # up to a semicolon
NAMED = re.compile(r"python (-m \S+|\S+\.py)")  # a command that is spoken of
SHELLS = ("bash", "sh", "shell", "console")


def lines_of(text: str) -> list[str]:
    """Commands without comments: one a line, several between semicolons."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    bare = [line.split(" #")[0].removeprefix("$ ") for line in lines if not line.startswith("#")]
    return [part.strip() for line in bare for part in UNQUOTED.findall(line) if part.strip()]


def program_of(line: str) -> str:
    return PROGRAM.match(line)[1]


def bare(line: str) -> str:
    """Without the variables that are set for it."""
    return line[PROGRAM.match(line).start(1) :]


def commands_of(page: Path) -> Iterator[str]:
    """Those of blocks, where one line that is a command makes all of them commands, and those
    between backticks in which nothing is left out."""
    text = page.read_text()
    for language, content in BLOCK.findall(text):
        found = lines_of(content)
        if language in SHELLS or (not language and any(program_of(one) in TRY for one in found)):
            yield from found
    for span in SPAN.findall(BLOCK.sub("", text)):
        for line in lines_of(" ".join(span.split())):
            if program_of(line) in TRY and " " in line and "..." not in line:
                yield f"{line} --help" if NAMED.fullmatch(line) else line


# What the reader has: a word of a command -> what is made in its place.


def run_of_digits(path: Path) -> None:
    """A run's folder: a model that nobody trained, and the log of one that somebody did."""
    digits_run(path.parent, lambda model: model, path.name, depth=8)
    log = load(FOLDER / "gate-digits.json").results[0].log
    (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


def checkpoint_of_digits(path: Path) -> None:
    run_of_digits(path.parent / "run")
    (path.parent / "run/checkpoints/0000010.pt").rename(path)


def pictures(path: Path) -> None:
    for number, name in enumerate(("one-class", "another")):
        (path / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (9 * number, 0, 0)).save(path / name / "image.png")


def pictures_in_parts(path: Path) -> None:
    for part in ("train", "val"):
        pictures(path / part)


def music(path: Path) -> None:
    pytest.importorskip("av")
    from tests.domains.music import write_jamendo

    write_jamendo(path)


def pipeline(name: str, path: Path) -> None:
    pytest.importorskip("peft")
    SAVES[name](path, layers=30)  # as deep as the published ones


STAND_INS: dict[str, Callable[[Path], None]] = {
    "RUN": run_of_digits,
    "VANILLA_RUN": run_of_digits,
    "LAYERSYNC_RUN": run_of_digits,
    "LOG": run_of_digits,
    "FILE": checkpoint_of_digits,
    "results/000-SiT-Ti-2-digits": run_of_digits,
    "results/demo/000-SiT-Ti-2-digits": run_of_digits,  # of `make demo`, and in its own words
    "$(ls results/demo/*-SiT-Ti-2-digits/checkpoints/*.pt | tail -n 1)": checkpoint_of_digits,
    "/data/train": pictures,
    "PICTURES": pictures,
    "data/glyphs": pictures_in_parts,
    "data/openclipart": pictures_in_parts,
    "latents/jamendo": music,
    "Wan2.1": partial(pipeline, "Wan2.1"),
    "CogVideoX-2b": partial(pipeline, "CogVideoX"),
}


def with_stand_ins(words: list[str], folder: Path) -> list[str]:
    """The words, once what they name is there: in the current folder."""
    paths = {word: folder / word.strip("/") for word in words if word in STAND_INS}
    for word, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        STAND_INS[word](path)
    return [str(paths[word]) if word in paths and word.startswith("/") else word for word in words]


# How a command of ours is tried: fn(module, words, folder).


def said_by(entry: str, words: list[str]) -> str:
    result = call(entry, *words)
    assert result.code == 0, result.err
    return result.out


def whole(entry: str, words: list[str], folder: Path) -> None:
    said_by(entry, with_stand_ins(words, folder))


def dry(entry: str, words: list[str], folder: Path) -> None:
    """Flags, presets and data are checked, and the model is built."""
    said = said_by(entry, with_stand_ins([*words, "--dry-run"], folder))
    assert re.search(r"^parameters +[\d,]+", said, re.MULTILINE)


def planned(entry: str, words: list[str], folder: Path) -> None:
    """A sweep, whose commands are all checked while it is planned."""
    words = ["--dry-run", *with_stand_ins(words, folder)]
    lines = said_by(entry, words).splitlines()
    assert len(lines) > 4 and all(line.startswith("python ") for line in lines)


def until_it_asks(entry: str, words: list[str], folder: Path) -> None:
    """Everything is accepted but a file that is not here, which a sentence names."""
    result = call(entry, *words)
    asks = re.compile(
        "does not exist|there is no |cannot be (read|opened)|to be had from|is no folder of|"
        "is not in the current folder|holds no (features|run)|is no run"
    )
    assert result.code == 2, result.out or result.err
    assert result.err.startswith("error: ") and asks.search(result.err), result.err


def up_to_its_numbers(entry: str, words: list[str], folder: Path) -> None:
    """A benchmark, which tests/benchmarks runs whole: all flags are read before numbers are."""
    result = call(entry, *words)
    assert result.code == 2 and result.err == "error: --warmup 0: give 1 or more\n", result.err


def elsewhere(test: str) -> Callable[[str, list[str], Path], None]:
    """In a test of its own, which runs it as a person does."""

    def named_there(entry: str, words: list[str], folder: Path) -> None:
        name = re.split(r"[./]", entry.removesuffix(".__main__"))[-1]
        assert name in (ROOT / "tests" / test).read_text()

    return named_there


class How(NamedTuple):
    pattern: str  # of a command without program and .py
    tried: Callable[[str, list[str], Path], None]
    more: str = ""  # flags, after those of the page


# Data of other kinds than the stand-ins for runs are of.
NOT_OF_DIGITS = (
    "imagenet|SiT-XL-2|REF|JAMENDO|HumanML3D|clevrer|SSv2|ssv2|--protocol (wan|cogvideox)"
)
HOW = (
    How(r"examples/terrain .*", elsewhere("examples/test_terrain.py")),
    How(r"examples/.*", elsewhere("examples/test_examples.py")),
    How(r"tests\.faults\..*", elsewhere("faults/test_faults.py")),
    How(r".* --help", whole),
    How(r"train .*--preset wan-ssv2.*", dry, "--pretrained Wan2.1"),
    How(r"train .*--loss-type external.*", until_it_asks),
    How(r"train .*latents/jamendo.*", dry, "--num-classes 127"),
    How(r"train .*", dry),
    How(rf"(sample|export|evaluations).*({NOT_OF_DIGITS}|Wan2\.1).*", until_it_asks),
    How(r"sample .*", whole, "--num-sampling-steps 2 --device cpu"),
    How(r"sample_ddp .*", whole, "--num-sampling-steps 3 --num-fid-samples 4 --device cpu"),
    How(r"export .*", whole),
    How(r"evaluations\.images digits results/demo/.*", whole),  # what `make demo` has just drawn
    How(r"evaluations\.report .*", whole, "--images 40 --epochs 1 --noises 0.5"),
    How(r"evaluations\.classification .*", whole, "--images 40 --epochs 1"),
    How(r"evaluations\.features .*", whole, "--images 20 --blocks 2 4"),
    How(r"evaluations\.maps .*", whole, "--noises 0.5"),
    How(r"evaluations\.drop_blocks .*", whole, "--images 8 --samples 1 --steps 2"),
    How(r"evaluations\.suggest_pairs .*", whole, "--images 200"),
    How(r"experiments\.instruments .*", elsewhere("experiments/test_instruments.py")),
    How(r"experiments\.glyphs .*", elsewhere("experiments/test_glyphs.py")),
    How(r"experiments\.clipart .*", elsewhere("experiments/test_clipart.py")),
    How(r"experiments\.moving .*", whole, "--train 4 --validation 2"),
    How(r"experiments\.motions .*", whole, "--clips 8"),
    How(r"experiments\.compare_run .*", whole),
    How(r"experiments\.results", whole, "--out RESULTS.md"),
    How(r"experiments\.table9", whole, "--batch 2 4 --repeats 1"),
    How(r"benchmarks\..*", up_to_its_numbers, "--warmup 0"),
    How(r"(encode|evaluations|experiments|methods)\b.*", until_it_asks),
)  # fmt: skip


def try_entry(entry: str, words: list[str], folder: Path) -> None:
    """
    Args:
        entry: a script or a module of ours.
    """
    entry = entry.removesuffix(".py")
    spec = find_spec(entry.replace("/", "."))
    assert spec, f"there is no {entry}"
    module = f"{entry}.__main__" if spec.submodule_search_locations else entry
    line = " ".join([entry, *words])
    how = next((how for how in HOW if re.fullmatch(how.pattern, line)), None)
    assert how, f"no row of HOW is for {line!r}"
    tried = planned if "--help" not in words and is_sweep(module) else how.tried
    tried(module, [*words, *([] if tried is planned else how.more.split())], folder)


def is_sweep(module: str) -> bool:
    if not module.startswith("experiments."):
        return False
    main = import_module(module).main
    return isinstance(main, partial) and main.func is sweep


# How a command of any program is tried.


def try_python(words: list[str], folder: Path) -> None:
    first, *rest = words
    if first == "-c":
        return try_imports(rest[0])
    try_entry(*((rest[0], rest[1:]) if first == "-m" else (first, rest)), folder)


def try_imports(code: str) -> None:
    """What takes minutes is tried up to its imports."""
    imports = [part for part in ast.parse(code).body if isinstance(part, ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "<page>", "exec"), {})


def try_torchrun(words: list[str], folder: Path) -> None:
    """Its own parser reads it; what it starts runs as one process."""
    known = get_args_parser().parse_args(words)
    try_entry(known.training_script, known.training_script_args, folder)


def try_make(words: list[str], folder: Path) -> None:
    """Its targets are there; what they would run of ours is tried."""
    done = subprocess.run(["make", "-nB", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in lines_of(done.stdout):
        program, *rest = shlex.split(line)
        if program == ".venv/bin/python" and rest[:2] not in MAKES:
            try_python(rest, folder)


MAKES = [["-m", "pip"], ["-m", "pytest"], ["-m", "ruff"]]


def try_pip(words: list[str], folder: Path) -> None:
    """Its extras are those of pyproject.toml."""
    action, asked = words
    match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", asked)
    assert action == "install" and match, words
    project = (ROOT / "pyproject.toml").read_text()
    for extra in match[1].split(",") if match[1] else ():
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def try_pytest(words: list[str], folder: Path) -> None:
    """The marks and the files that it is asked for are there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", default="gpu")
    parser.add_argument("paths", nargs="*")
    asked = parser.parse_args(words)
    assert f'"{asked.m}: ' in (ROOT / "pyproject.toml").read_text()
    assert all((ROOT / path).exists() for path in asked.paths)


def try_sbatch(words: list[str], folder: Path) -> None:
    """The script is there; what it trains is tried."""
    script = next(word for word in words if not word.startswith("-"))
    assert "train.py --results-dir" in (ROOT / script).read_text()
    try_entry("train.py", words[words.index(script) + 1 :], folder)


def leave(words: list[str], folder: Path) -> None:
    """Another's; nothing of ours is to be tried."""


TRY = {
    "python": try_python, "torchrun": try_torchrun, "make": try_make, "pip": try_pip,
    "pytest": try_pytest, "sbatch": try_sbatch, "apt-get": leave, "git": leave, "cd": leave,
}  # fmt: skip
COMMANDS = list(dict.fromkeys(bare(line) for page in PAGES for line in commands_of(page)))


@pytest.mark.parametrize("command", COMMANDS, ids=COMMANDS)
def test_a_command_of_the_documentation_works(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command)
    assert program in TRY, f"no row of TRY is for {program}"
    TRY[program](words, tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        "conda install layersync", "python nothing.py", "python -m runtime.presets",
        "python train.py --preset digits --no-such-flag 3", "python train.py --preset digit",
        "torchrun --no-such-flag=8 train.py", "python -m experiments.table1 --preset digits --seed",
        "python sample.py ODE --ckpt RUN --sampling-methods heun2", "make damo",
        "pip install '.[trian]'", "python export.py --ckpt RUN --to difusers",
    ],
)  # fmt: skip
def test_a_command_that_does_not_work_is_noticed(command, tmp_path, monkeypatch):
    with pytest.raises((AssertionError, SystemExit)):
        test_a_command_of_the_documentation_works(command, tmp_path, monkeypatch)


WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=[page.name for page in WITH_PYTHON])
def test_the_python_of_a_page_runs(page):
    names: dict = {}
    exec(PREPARED, names)
    for language, content in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(content, names)
