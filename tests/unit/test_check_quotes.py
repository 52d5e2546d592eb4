"""The check of the rules that code quotes, against a BOLT of three sentences."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_quotes.py"
spec = importlib.util.spec_from_file_location("check_quotes", SCRIPT)
assert spec is not None
assert spec.loader is not None
check_quotes = importlib.util.module_from_spec(spec)
sys.modules["check_quotes"] = check_quotes
spec.loader.exec_module(check_quotes)

NUMBER = 2  # not in the quotations below, which would be looked for in the real one
BOLT = """# BOLT #2: Peers

A node:
  - if the `fee` is [too low](#fees) for timely
    processing<sup>[1](#note)</sup>:
    - MUST fail the channel.
  - SHOULD NOT sign, unless it *must*.
"""


@pytest.mark.parametrize(
    ("quoted", "stands"),
    [
        ("MUST fail the channel", True),
        ("if the `fee` is too low for timely processing: MUST fail the channel.", True),
        ("if the `fee` is [...] for timely processing", True),
        ("SHOULD NOT sign [a commitment], unless it must", True),
        ("MUST NOT sign", False),
        ("if the `fee` is too high: MUST fail the channel", False),
    ],
)
def test_what_stands_in_a_bolt(quoted: str, stands: bool) -> None:
    assert check_quotes.stands_in(quoted, check_quotes.normal(BOLT)) is stands


def test_quotations_are_found_over_lines_and_one_after_the_other() -> None:
    source = f'''
    x = 1  # BOLT {NUMBER}, "if the `fee` is too low
    # for timely processing", and "MUST fail the channel".
    """Keeps a rule (BOLT {NUMBER}, "SHOULD NOT sign") of many."""
    # nobody's "words"
    '''
    found = [quotation.text for quotation in check_quotes.quotations(Path("x.py"), source)]
    assert found == ["if the `fee` is too low for timely processing", "MUST fail the channel", "SHOULD NOT sign"]


def test_what_is_not_found_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "02-peers.md").write_text(BOLT)
    (tmp_path / "channeld").mkdir()
    code = tmp_path / "channeld" / "rules.py"
    monkeypatch.setattr(check_quotes, "ROOT", tmp_path)
    code.write_text(f'# BOLT {NUMBER}, "MUST fail the channel"\n')
    assert check_quotes.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 quotations, 0 of them not found\n"
    code.write_text(f'# BOLT {NUMBER}, "MUST keep the channel"\n')
    assert check_quotes.main([str(tmp_path)]) == 1
    assert "channeld/rules.py: BOLT 2 does not say: MUST keep the channel" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check_quotes.main([str(tmp_path / "channeld")])
