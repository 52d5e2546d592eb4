"""The committed stubs are those that proto/ makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_making_the_stubs_again_changes_nothing() -> None:
    pytest.importorskip("grpc_tools", reason="the protobuf compiler is not installed (extra: dev)")
    check = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gen_proto.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert check.returncode == 0, check.stderr


def test_everything_in_the_contract_has_a_comment() -> None:
    """Each rpc, message field and enum value: the .proto files are the API's documentation."""
    missing = []
    for path in sorted((ROOT / "proto" / "channeld").rglob("*.proto")):
        previous = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            text = line.strip()
            if text.endswith(";") and line.startswith("  ") and not previous.startswith("//"):
                missing.append(f"{path.name}:{number}: {text}")
            previous = text
    assert missing == []
