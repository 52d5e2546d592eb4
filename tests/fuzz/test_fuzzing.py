"""How runs are counted, and what becomes of a finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import child, record
from tests.fuzz.child import Clock, Done
from tests.fuzz.record import Sum
from tests.fuzz.target import Target, all_targets


def test_runs_add_up(tmp_path: Path) -> None:
    file = tmp_path / "RECORD.md"
    for name, run in (("b", Sum(1.5, 1_000_000, 0)), ("a", Sum(2.0, 7, 1)), ("b", Sum(0.5, 234, 1))):
        record.add(name, run, file)
    assert record.read(file) == {"a": Sum(2.0, 7, 1), "b": Sum(2.0, 1_000_234, 1)}
    assert file.read_text().endswith("| b | 2.0 | 1,000,234 | 1 |\n| **all** | 4.0 | 1,000,241 | 2 |\n")


def test_the_record_is_of_targets_that_exist() -> None:
    known = record.read()
    assert known.keys() <= all_targets().keys()
    assert all(entry.inputs > 0 for entry in known.values())


def test_what_a_run_says_at_its_end() -> None:
    done = Done(12, 3.25, 0.125)
    assert Done.parse(str(done)) == done


def test_a_finding_is_kept_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child, "WORK", tmp_path)

    def run(data: bytes) -> None:
        assert data != b"bad"

    clock = Clock(Target("toy", run, lambda: [b""], 10), 1.0)
    clock.run(b"good")
    assert not list(tmp_path.iterdir())
    with pytest.raises(AssertionError):
        clock.run(b"bad")
    assert [file.read_bytes() for file in tmp_path.glob("toy-crash-*")] == [b"bad"]
    assert Done.parse(capsys.readouterr().out.splitlines()[0]).inputs == 1


def test_slow_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "WORK", tmp_path)
    monkeypatch.setattr(child, "LIMIT_SECONDS", 0.0)
    with pytest.raises(AssertionError, match="seconds"):
        Clock(Target("toy", lambda data: None, lambda: [b""], 10), 1.0).run(b"slow")
    assert len(list(tmp_path.glob("toy-crash-*"))) == 1
