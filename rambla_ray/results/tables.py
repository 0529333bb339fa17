"""Tables and lines of plain text, for a terminal and in Markdown, whatever characters are in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rambla_ray.display import in_markdown, one_line

LONGEST_LINE = 1000  # A printed line is cut at so many characters.
PLAIN_WIDTH = 150  # Characters: the width of tables where the output is no terminal.
LEFT = (
    "run",
    "model",
    "models",
    "role",
    "task",
    "tasks",
    "against",
    "compared with",
    "outcomes",
    "state",
)  # To the left.


def console_on(stream: TextIO) -> Console:
    """A console as wide as the terminal; where there is none, of plain text, whatever FORCE_COLOR says."""
    is_terminal = stream.isatty()
    return Console(
        file=stream, force_terminal=None if is_terminal else False, width=None if is_terminal else PLAIN_WIDTH
    )


def print_line(console: Console, line: str, *, whole: bool = False) -> None:
    """Print a line as plain text, whatever characters are in it; `whole` does not break it at the console's width."""
    console.print(Text(one_line(line, LONGEST_LINE)), soft_wrap=whole)


def plain_table(columns: Sequence[str], *, title: str = "", caption: str = "", style: str = "") -> Table:
    """An empty table, whose title and caption are plain text."""
    table = Table(
        title=Text(one_line(title, LONGEST_LINE), style) if title else None,
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    return table


def add_row(table: Table, cells: Sequence[str]) -> None:
    """Add a row of plain text."""
    table.add_row(*(Text(one_line(cell)) for cell in cells))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return [*head, *("| " + " | ".join(map(markdown, row)) + " |" for row in rows)]


def markdown(line: str) -> str:
    """A line as plain text in Markdown."""
    return in_markdown(one_line(line, LONGEST_LINE))
