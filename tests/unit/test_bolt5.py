"""Every requirement of BOLT 5 has a test that names it."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.bolt5 import REQUIREMENTS

TESTS = Path(__file__).parents[1]


def marks() -> dict[str, list[str]]:
    """Requirements that tests name, and which tests do."""
    found: dict[str, list[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        source = path.read_text()
        if "mark.bolt5(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.bolt5":
                    for name in decorator.args:
                        assert isinstance(name, ast.Constant)
                        found.setdefault(str(name.value), []).append(f"{path.name}::{node.name}")
    return found


def test_every_requirement_has_a_test_and_every_mark_a_requirement() -> None:
    named = marks()
    known = [name for section in REQUIREMENTS.values() for name in section]
    assert len(known) == len(set(known)) == 52
    assert not set(known) - named.keys()
    assert not named.keys() - set(known)
    assert all(name.startswith("test_") for tests in named.values() for test in tests for name in [test.split("::")[1]])


def test_the_list_is_of_what_must_or_should_be_done() -> None:
    texts = [text for section in REQUIREMENTS.values() for text in section.values()]
    assert all("MUST" in text or "SHOULD" in text for text in texts)
