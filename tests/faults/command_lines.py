"""Random command lines, most of them wrong: none may end in a traceback, or leave a file behind.

python -m tests.faults.command_lines
"""

import dataclasses
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from runtime import config
from tests.commands import ROOT, succeed
from tests.faults.harness import arguments
from tests.faults.malicious_checkpoints import TINY, limited_memory

SMALL = {
    "model": "SiT-Ti/2", "dataset_name": "digits", "depth": "2", "hidden_size": "16",
    "num_heads": "2",
}  # fmt: skip
# What a flag of text means something by; of the rest any text will do.
TEXTS = {
    "dataset_name": (
        "digits", "synthetic", "latents", "folder", "fashion-mnist", "imagenet-1k", "clevrer",
        "moving", "humanml3d", "ssv2", "mtg-jamendo", "lightningdit", "instruments",
        "glyphs", "openclipart",
    ),
    "model": ("SiT-Ti/2", "SiT-S/4", "SiT-XL/2", "SiT-B/1x2x2", "MDM"),
    "preset": ("digits", "fashion-mnist-s", "moving"),
    "vae": ("none", "ema", "mse"), "text_encoder": ("none",),
    "multi_blocks_match": ("[]", "[(1,2)]", "[(2,1)]", "[[1],2]", "(" * 300, "[(1,2)]*9", "{}"),
    "targets": ("[]", "[(1,'nowhere',1.0)]", "[1]", "[(1,2,3,4)]"),
    "protocol": ("paper-ode", "paper-sde", "mdm"), "sampling_method": ("euler", "dopri5"),
    "score_extractor": ("inception", "classifier:nowhere", "timm:nothing", "i3d:nowhere"),
}  # fmt: skip
# Of these more than a few would only take long.
NUMBERS = {
    "depth": (1, 2, 3), "hidden_size": (8, 12, 16), "num_heads": (1, 2, 3, 4),
    "image_size": (8, 16, 32, 196), "max_steps": (1, 2), "num_workers": (0, 1),
    "global_batch_size": (1, 4, 8, 64), "num_classes": (0, 10, 1000), "lora_rank": (0, 4),
    "num_sampling_steps": (2, 3), "num_fid_samples": (1, 3), "per_proc_batch_size": (1, 2),
}  # fmt: skip
HOSTILE = (
    "", " ", "-1", "0", "-0", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 20, "1_0",
    "0x10", "²", "None", "True", "[]", "'", '"', "%s", "{0}", "../..", "/", ".", "/dev/null",
    "/nowhere/at/all", "~", "~root", "é", "\u202egnp", "\udcff", "\x1b[31m", "a\nb", "a\tb", "ﬃ",
    "x" * 5000, "/".join("y" * 300 for _ in range(20)), "--", "-", "--help", "=", "a,b", "1.5",
    "9223372036854775808", "4611686018427387904", "1000000", "2147483648", "hub/name", "file://x",
)  # fmt: skip
OTHERS: dict[str, tuple[type, ...]] = {  # command -> its flags
    "sample": (config.GridODE, config.GridSDE, config.GridDDPM),
    "sample_ddp": (config.NpzODE, config.NpzSDE, config.NpzDDPM),
    "encode": (config.EncodeConfig,),
    "export": (config.ExportConfig,),
}
# Flags that they are given unless drawn otherwise; "" stands for a checkpoint.
FIXED = {
    "sample": {"ckpt": "", "num_sampling_steps": "2", "device": "cpu"},
    "sample_ddp": {
        "ckpt": "", "num_sampling_steps": "2", "num_fid_samples": "2", "device": "cpu",
    },
    "encode": {"dataset_name": "folder", "out": "latents", "device": "cpu"},
    "export": {"ckpt": ""},
}  # fmt: skip
ROOM = 2**32  # bytes that lines may take, for a network of any size may be drawn
WHOLE = 2**33  # of a process of its own, its libraries included
LONG = {"num_sampling_steps", "num_fid_samples", "per_proc_batch_size", "depth"}
# Commands of the lab: what they need first, then words of anything.
LAB = {
    "evaluations.images.__main__": ("score", "make-reference", "train-classifier", "compare"),
    "evaluations.report": (), "evaluations.similarity": (), "evaluations.maps": (),
    "evaluations.drop_blocks": (), "evaluations.suggest_pairs": (), "evaluations.heldout": (),
    "evaluations.motion.__main__": (), "evaluations.segmentation.__main__": (),
    "experiments.table": (),
}  # fmt: skip
OF_THE_LAB = ("--ckpt", "--data", "--seed", "--batch-size", "--out", "--extractor", "--blocks")


class Line(NamedTuple):
    command: str
    words: list[str]


class Draw:
    """Command lines as a function of a seed."""

    def __init__(self, seed: int, ckpt: Path) -> None:
        self.random, self.ckpt = random.Random(seed), str(ckpt)
        self.hostility = 0.0  # share of values that are none of the flag's domain

    def value(self, holder: type, name: str) -> str | None:
        """Of a flag: of its domain, more often than not; None: a flag without value."""
        hint = typing.get_type_hints(holder)[name]
        if self.random.random() < self.hostility:
            return self.random.choice(HOSTILE if name not in LONG else ("-1", "0", "nan", ""))
        if name in NUMBERS:
            return str(self.random.choice(NUMBERS[name]))
        if name in TEXTS:
            return self.random.choice(TEXTS[name])
        kinds = typing.get_args(hint) or (hint,)
        choices = [c for k in kinds if typing.get_origin(k) is Literal for c in typing.get_args(k)]
        choices = choices or (kinds if typing.get_origin(hint) is Literal else [])
        if choices:
            return str(self.random.choice(choices))
        if bool in kinds:
            return None
        if int in kinds:
            return str(self.random.choice((0, 1, 2, 3, 7, 100, -3)))
        if float in kinds:
            return str(self.random.choice((0, 0.04, 0.5, 1, 3.5, 1e-8, 1e30, -2)))
        return self.random.choice(HOSTILE)

    def flags(self, holder: type, most: int, fixed: dict[str, str]) -> list[str]:
        # Lines that are wrong in one place get further than those that are wrong in many.
        self.hostility = self.random.choice((0.0, 0.05, 0.3))
        names = [field.name for field in dataclasses.fields(holder)]
        words = []
        for name in self.random.sample(names, self.random.randint(1, min(most, len(names)))):
            fixed = {key: value for key, value in fixed.items() if key != name}
            dashed = name.replace("_", self.random.choice("-_"))
            value = self.value(holder, name)
            if value is None:
                words.append(f"--{self.random.choice(('', 'no-'))}{dashed}")
            else:
                words += self.random.choice(([f"--{dashed}", value], [f"--{dashed}={value}"]))
        return [*(word for key, value in fixed.items() for word in (f"--{key}", value)), *words]

    def noise(self, words: list[str]) -> list[str]:
        """Now and then a word is lost, doubled or out of place."""
        words = list(words)
        if words and self.random.random() < 0.1:
            place = self.random.randrange(len(words))
            words[place : place + 1] = self.random.choice(
                ([], [words[place]] * 2, [self.random.choice(HOSTILE)])
            )
        return words

    def training(self) -> Line:
        fixed = SMALL if self.random.random() < 0.9 else SMALL | {"preset": "digits"}
        words = self.noise(self.flags(config.TrainConfig, 6, fixed))
        return Line("train", [*words, "--device", "cpu", "--dry-run"])

    def other(self) -> Line:
        command = self.random.choice(list(OTHERS))
        holder = self.random.choice(OTHERS[command])
        mode = [word for word in ("ODE", "SDE", "DDPM") if word in holder.__name__]
        fixed = {name: value or self.ckpt for name, value in FIXED[command].items()}
        return Line(command, mode + self.noise(self.flags(holder, 5, fixed)))

    def lab(self) -> Line:
        command = self.random.choice(list(LAB))
        first = [self.random.choice(LAB[command])] if LAB[command] else []
        words = [
            word
            for _ in range(self.random.randint(0, 3))
            for word in (self.random.choice(OF_THE_LAB), self.random.choice(HOSTILE))
        ]
        ckpt = [self.ckpt] if self.random.random() < 0.3 else []
        return Line(command, first + ckpt + self.noise(words))

    def real(self) -> Line:
        """A run of two steps, some of whose flags may be wrong."""
        small = {
            "preset": "digits", "depth": "2", "hidden_size": "16", "num_heads": "2",
            "encoder_depth": "1", "gt_encoder_depth": "2", "sample_every": "0",
            "global_batch_size": "8", "num_workers": "0",
        }  # fmt: skip
        kept = {"results_dir", "cache_dir", "max_steps", "device", "wandb", "dry_run"}
        words = self.flags(without(config.TrainConfig, kept), 3, small)
        return Line("train", [*words, "--max-steps", "2", "--device", "cpu", "--no-wandb"])


def without(holder: type, names: set[str]) -> type:
    """The flags of a command but some."""
    hints = typing.get_type_hints(holder)
    left = [(name, hint) for name, hint in hints.items() if name not in names]
    return dataclasses.make_dataclass("Left", left)


class Ended(NamedTuple):
    code: Any
    err: str
    crash: str | None = None  # a traceback


def called(line: Line) -> Ended:
    """A command in this process; its output is as strict about letters as a terminal."""
    from runtime.entry import run

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    err.reconfigure(errors="backslashreplace")  # as Python's own
    argv, sys.argv = sys.argv, [f"{line.command}.py", *line.words]
    code, crash = 0, None
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run(import_module(line.command).main)
            out.flush()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:  # what a person would see as a traceback
        crash = traceback.format_exc()
    finally:
        sys.argv = argv
    err.flush()
    return Ended(code, err.buffer.getvalue().decode(), crash)


def started(line: Line, folder: Path) -> Ended:
    """A command in a process of its own, whose working folder is `folder`."""
    limited = ["sh", "-c", f'ulimit -v {WHOLE // 1024} && exec "$@"', "sh"]
    words = [*limited, sys.executable, str(ROOT / f"{line.command}.py"), *line.words]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=600)
    crash = done.stderr if "Traceback" in done.stderr else None
    return Ended(done.returncode, done.stderr, crash)


def judged(line: Line, ended: Ended) -> str:
    """What became of a line.

    Raises:
        AssertionError: none of what may.
    """
    said = [one for one in ended.err.strip().splitlines() if not one.startswith("warning: ")]
    shown = f"{line.command} {json.dumps(line.words)[:1500]}"
    assert ended.crash is None, f"{shown}\n{ended.crash}"
    assert ended.code in (0, 2), (shown, ended)
    assert "Traceback" not in ended.err, (shown, ended)
    if ended.code == 0:
        return "exit 0"
    if said and said[0].startswith("error: "):
        assert len(said) == 1, (shown, said)
        return "exit 2, one sentence"
    assert "─" in ended.err or "usage" in ended.err.lower(), (shown, ended)
    return "exit 2, tyro's box"


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check_lines(lines: Sequence[Line]) -> tuple[Counter, list[str]]:
    """Each in this process, in an empty folder that has to stay so."""
    counts: Counter = Counter()
    failures = []
    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            for line in lines:
                try:
                    counts[f"{line.command}: {judged(line, called(line))}"] += 1
                    left = tree(Path(name))
                    assert not left or line.command != "train", (line, left)
                except AssertionError as error:
                    failures.append(str(error))
        finally:
            os.chdir(before)
    return counts, failures


def check_real(lines: Sequence[Line]) -> tuple[Counter, list[str]]:
    """Each in a process, in an empty folder that has `results` at most afterwards."""
    counts: Counter = Counter()
    failures = []
    for line in lines:
        with tempfile.TemporaryDirectory() as name:
            try:
                found = judged(line, started(line, Path(name)))
                counts[f"real: {found}"] += 1
                left = {path.split("/")[0] for path in tree(Path(name))}
                assert left <= ({"results"} if found == "exit 0" else set()), (line, left)
            except AssertionError as error:
                failures.append(str(error))
    return counts, failures


def check(lines: int = 2000, real: int = 50, seed: int = 0) -> tuple[Counter, list[str]]:
    """
    Args:
        lines: of train.py --dry-run; a quarter as many of the other commands besides.

    Returns:
        How many ended how, and the lines that ended otherwise.
    """
    with tempfile.TemporaryDirectory() as name:
        succeed("train", *TINY, "--results-dir", name)
        (ckpt,) = Path(name).glob("*/checkpoints/*.pt")
        draw = Draw(seed, ckpt)
        some = [draw.training() for _ in range(lines)]
        some += [draw.other() for _ in range(lines // 8)] + [draw.lab() for _ in range(lines // 8)]
        with limited_memory(ROOM):
            counts, failures = check_lines(some)
        more, worse = check_real([draw.real() for _ in range(real)])
    return counts + more, failures + worse


def main() -> None:
    begin = time.perf_counter()
    flags = arguments(2000, real=50)
    counts, failures = check(flags.count, flags.real, flags.seed)
    for row, count in sorted(counts.items()):
        print(f"{count:5}  {row}")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{len(failures):5}  failures; {time.perf_counter() - begin:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
