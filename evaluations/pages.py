"""Figures and pages for people: matplotlib without a display, HTML that is one file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.files import atomic_write


def figure_of(rows: int, columns: int, size: tuple[float, float] = (5, 3.2)) -> tuple[Any, Any]:
    """A figure and its axes (rows, columns), each of a width and height in inches; drawn without a
    display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.8), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    with atomic_write(path) as file:
        # Without the version of matplotlib, which would make equal pictures unequal files.
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})


def page(title: str, parts: Sequence[str]) -> bytes:
    """A whole page of parts of HTML."""
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n',
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n",
            f"<h1>{html.escape(title)}</h1>\n",
            *parts,
            "</html>\n",
        ]
    ).encode()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"

    return f"<table>\n{line('th', head)}{''.join(line('td', row) for row in rows)}</table>\n"


STYLE = (
    "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .7em;text-align:left}"
    "th{border-bottom:1px solid}img{max-width:100%}pre{white-space:pre-wrap}"
)


def inlined(picture: Path) -> str:
    content = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{content}">\n'
