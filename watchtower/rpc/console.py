"""What the user sees: results on stdout (people's or JSON), everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

_PIPE_WIDTH = 1000
SHORT_HEX = 8
_FOLD_WIDTH = 12
"""A column that may fold is never narrower, unless its text is."""


class Column(NamedTuple):
    """A column of a table. `fold`: its text may go on in the next line where the terminal is narrow."""

    title: str
    right: bool = False
    fold: bool = False


class Id(NamedTuple):
    """A cell with an id in hex: whole if the table has room for that, else its beginning."""

    hex: str
    suffix: str = ""

    def shown(self, whole: bool) -> str:
        return f"{self.hex if whole else f'{self.hex[:SHORT_HEX]}…'}{self.suffix}"


class Output:
    """`as_json`: results are JSON, one document a command (one a line where there are many), and so are errors."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    # Results

    def show(self, message: Message, render: Callable[[], None]) -> None:
        """A result: the message as JSON, or what `render` prints."""
        if self.as_json:
            from watchtower.rpc.jsonable import to_jsonable

            print(json.dumps(to_jsonable(message), indent=2))
        else:
            render()

    def json_line(self, value: dict[str, Any]) -> None:
        """One of many results, on a line of its own, at once."""
        print(json.dumps(value), flush=True)

    def line(self, text: str = "", style: str = "") -> None:
        """One line as it is, however long it is."""
        self._stdout.print(printable(text), style=style, soft_wrap=True, markup=False, highlight=False)

    def fields(self, pairs: Iterable[tuple[str, str | Sequence[str]]]) -> None:
        """Names and values below each other; a value may have several lines, and if it is empty it is left out."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in pairs:
            if value:
                lines = [value] if isinstance(value, str) else value
                grid.add_row(name, Text("\n".join(map(printable, lines))))
        self._print(grid)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str | Id]], empty: str) -> None:
        """A table, or the sentence `empty` if it has no rows."""
        lines = list(rows)
        if not lines:
            self.line(empty)
            return
        table = _table(columns, lines, whole_ids=True)
        if self._measure(table).maximum > self._stdout.width:
            table = _table(columns, lines, whole_ids=False)
        if self._measure(table).minimum > self._stdout.width:
            self._print_one_by_one(columns, lines)
        else:
            self._print(table)

    def _measure(self, table: Table) -> Measurement:
        return self._stdout.measure(table, options=self._stdout.options.update(max_width=_PIPE_WIDTH))

    def _print_one_by_one(self, columns: Sequence[Column], rows: Iterable[Sequence[str | Id]]) -> None:
        """Rows below each other, each as names and values: where the terminal is too narrow for columns."""
        for number, row in enumerate(rows):
            if number:
                self.line()
            cells = (cell.shown(whole=True) if isinstance(cell, Id) else cell for cell in row)
            self.fields((column.title, cell) for column, cell in zip(columns, cells, strict=True))

    def _print(self, table: Table) -> None:
        if self._stdout.is_terminal:
            self._stdout.print(table)
            return
        with self._stdout.capture() as capture:
            self._stdout.print(table)
        for line in capture.get().splitlines():
            print(line.rstrip())

    # What goes on beside

    def note(self, text: str, style: str = "yellow") -> None:
        """One line on stderr."""
        self._stderr.print(printable(text), style=style, soft_wrap=True, markup=False, highlight=False)

    def error(self, sentence: str, hint: str, status: int) -> None:
        """What went wrong, what to do next, and the exit status that follows. As JSON, one object on one line."""
        if self.as_json:
            print(json.dumps({"error": sentence, "hint": hint, "exit_status": status}), file=sys.stderr, flush=True)
            return
        self.note(sentence, "red")
        if hint:
            self.note(hint, "")

    @contextmanager
    def status(self, text: str, log: bool = False) -> Iterator[Callable[[str], None]]:
        """Shows `text` while something goes on; what it yields changes the text.

        Where nobody watches it says nothing, or with `log` a line for every text.
        """
        if self._stderr.is_terminal:
            from rich.text import Text

            with self._stderr.status(Text(printable(text))) as status:
                yield lambda changed: status.update(Text(printable(changed)))
            return
        last = ""

        def print_once(changed: str) -> None:
            nonlocal last
            if log and changed != last:
                last = changed
                self.note(changed, "")

        print_once(text)
        yield print_once

    @property
    def is_watched(self) -> bool:
        """Whether somebody sits there who can be asked."""
        return sys.stdin.isatty() and self._stderr.is_terminal

    def confirm(self, question: str) -> bool:
        """Asks yes or no on stderr; no is what Enter means."""
        import typer

        return typer.confirm(question, default=False, err=True)

    @cached_property
    def _stdout(self) -> Console:
        from rich.console import Console

        console = Console(highlight=False)
        return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)

    @cached_property
    def _stderr(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False)


def _table(columns: Sequence[Column], rows: Iterable[Sequence[str | Id]], whole_ids: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = [[Text(printable(cell.shown(whole_ids) if isinstance(cell, Id) else cell)) for cell in row] for row in rows]
    table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        width = max([len(column.title), *(row[place].cell_len for row in shown)])
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(
            column.title,
            justify=justify,
            no_wrap=not column.fold,
            overflow="fold",
            min_width=min(width, _FOLD_WIDTH) if column.fold else width,
        )
    for cells in shown:
        table.add_row(*cells)
    return table


def printable(text: str) -> str:
    """`text` without what would steer the terminal or reorder the line: descriptions and errors are others' words."""
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    )
