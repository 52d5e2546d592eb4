"""What a user sees: tables on narrow terminals, where nothing may be cut, least of all an amount."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from watchtower.rpc.console import Column, Id, Output

COLUMNS = [Column("Channel"), Column("State"), Column("Capacity", right=True), Column("What for", fold=True)]
ROWS = [
    (Id("ab" * 32), "awaiting funding", "1,000,000 sat", "the first one"),
    (Id("cd" * 32, ":1"), "active", "20,999,999.123 sat", "word " * 30),
]


Printed = Callable[..., list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def print_table(width: int, columns: Sequence[Column] = COLUMNS) -> list[str]:
        out = Output(as_json=False)
        out.__dict__["_stdout"] = Console(width=width, highlight=False)
        out.table(columns, [row[: len(columns)] for row in ROWS], "none")
        return capsys.readouterr().out.splitlines()

    return print_table


@pytest.mark.parametrize("width", [250, 120, 80, 70, 60, 40, 29])
def test_nothing_is_cut(printed: Printed, width: int) -> None:
    lines = printed(width)
    assert max(len(line) for line in lines) <= width
    text = " ".join(" ".join(lines).split())
    for cell in ("awaiting funding", "1,000,000 sat", "20,999,999.123 sat"):
        assert cell in text
    assert text.count("word") == 30


def test_ids_are_whole_where_there_is_room(printed: Printed) -> None:
    assert "ab" * 32 in printed(120, COLUMNS[:3])[2]
    assert printed(80)[2].startswith("abababab…  ")
    assert printed(80)[3].startswith("cdcdcdcd…:1")


def test_rows_stand_below_each_other_where_columns_have_no_room(printed: Printed) -> None:
    lines = printed(40, COLUMNS[:3])
    assert lines[:5] == [
        f"Channel   {'ab' * 15}",
        f"          {'ab' * 15}",
        f"          {'ab' * 2}",
        "State     awaiting funding",
        "Capacity  1,000,000 sat",
    ]
    assert lines[5:7] == ["", f"Channel   {'cd' * 15}"]
