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
from .rows import layer_sync, vanilla
from .runs import ROOT, Run
from .table import (
    Result,
    cells,
    compared,
    difference,
    markdown,
    over_baseline,
    spread,
    values_of,
)

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
    found = {path.stem: load(path) for path in files}
    parts = [HEAD, summary(found), *(section(name, one) for name, one in found.items())]
    with atomic_write(flags.out) as file:
        file.write("\n".join(parts).encode())
    print(f"{flags.out}: {len(files)} results")


def summary(found: dict[str, Published]) -> str:
    """A row for every sweep that has both: LayerSync's loss on held-out data beside vanilla's."""
    rows = []
    for name, one in found.items():
        ours, base = (runs_of(one, row) for row in (layer_sync(), vanilla()))
        if not ours or not base:
            continue
        of = compared(base)
        values = [spread(values_of(runs, of)) for runs in (base, ours)]
        gap = difference(ours, base, of)
        rows.append([f"[{name}](#{name})", of, *values, gap, decided(ours, base, of)])
    head = ["", "compared by", "vanilla", "LayerSync", "difference, 95 % interval", "LayerSync"]
    return "## At a glance\n\n" + markdown(head, rows)


def runs_of(found: Published, row: Run) -> list[Result]:
    return [
        one for one in found.results
        if one.record["name"] == f"{one.record['preset']}-{row.name}"
    ]  # fmt: skip


def decided(ours: list[Result], base: list[Result], of: str) -> str:
    """What the interval over seeds allows to say of a loss."""
    found = over_baseline(ours, base, of)
    if found is None or found.low is None or found.low <= 0 <= found.high:
        return "not to be told apart"
    return "is better" if found.high < 0 else "is worse"


def section(name: str, found: Published) -> str:
    """Scores, and below them the tables of the sweep's own verdict."""
    made = (preset["table"] for preset in found.verdict.values() if "table" in preset)
    heads_and_rows = [cells(found.results), *((one["head"], one["rows"]) for one in made)]
    tables = "\n".join(markdown(*one) for one in heads_and_rows)
    title = found.results[0].record["reproduces"]
    picture = f"docs/results/sweeps/{name}.png"  # the page lies in the root
    shown = f"\n![{title}]({picture})\n" if (ROOT / picture).exists() else ""
    return (
        f"## {name}\n\n**{title}.** {found.note}\n\n{tables}{shown}\n"
        f"```\n{found.command}\n```\n\nCommit {found.commit}, {found.machine}. "
        f"The commands of every run: docs/results/sweeps/{name}.json\n"
    )


if __name__ == "__main__":
    run(main)
