"""Figures beside what they have to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.table import Table

from tests.bench.floor import Floor


class Bar(NamedTuple):
    """One figure, and what it has to be. `sense` is "<=" or ">="."""

    name: str
    value: float
    sense: str
    bar: float
    unit: str
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is good enough."""
        return self.value <= self.bar if self.sense == "<=" else self.value >= self.bar


class Section(NamedTuple):
    """A part of `make bench`. `measure(floor, payments)`: the figures; `payments` is how many to make under load."""

    name: str
    title: str
    measure: Callable[[Floor, int], list[Bar]]


def bar_table(title: str, rows: list[Bar]) -> Table:
    """For a terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "measured", "bar", "", "ratio"):
        table.add_column(column, justify="right" if column in ("measured", "bar") else "left")
    for row in rows:
        verdict = "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(
            row.name, f"{row.value:,.2f} {row.unit}", f"{row.sense} {row.bar:g} {row.unit}", verdict, row.note
        )
    return table
