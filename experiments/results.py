"""RESULTS.md, from docs/results/sweeps: every figure with its spread, command and machine.

python -m experiments.results
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write

from .publish import FOLDER, Published, load
from .runs import ROOT
from .table import cells

PAGE = ROOT / "RESULTS.md"
HEAD = """# Results

What sweeps have measured with this code; `python -m experiments.results` makes this page of the
files in docs/results/sweeps. Cells are mean ± standard deviation over seeds (n); differences are
paired by seed, with 95 % intervals. "paper" is the paper's number where the row is its full-size
run: small runs are no reproduction of it. Speed is in [docs/speed.md](docs/speed.md).
"""


@dataclass(frozen=True)
class Flags:
    """Write RESULTS.md anew."""

    results: Path = FOLDER  # files of experiments.publish
    out: Path = PAGE


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    files = sorted(flags.results.glob("*.json"))
    if not files:
        raise InputError(f"--results {flags.results} holds no results (*.json)")
    sections = [section(path.stem, load(path)) for path in files]
    with atomic_write(flags.out) as file:
        file.write("\n".join([HEAD, *sections]).encode())
    print(f"{flags.out}: {len(files)} results")


def section(name: str, found: Published) -> str:
    head, rows = cells(found.results)
    lines = [head, ["---"] * len(head), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    title = found.results[0].record["reproduces"]
    picture = f"docs/results/sweeps/{name}.png"  # the page lies in the root
    shown = f"\n![{title}]({picture})\n" if (ROOT / picture).exists() else ""
    return (
        f"## {title}: {name}\n\n{found.note}\n\n{table}{shown}\n"
        f"```\n{found.command}\n```\n\nCommit {found.commit}, {found.machine}. "
        f"The commands of every run: docs/results/sweeps/{name}.json\n"
    )


if __name__ == "__main__":
    run(main)
