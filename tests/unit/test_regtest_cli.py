"""`regtest-cli`: parameters, options, output, and a real call."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from wallet.regtest.cli import UsageError, config, parse, show
from wallet.regtest.server import RegtestServer


def test_parameters_are_json_where_they_are_json() -> None:
    options, method, parameters = parse(
        ["-datadir=/x", "-rpcport", "7", "m", "true", "6", "0.5", '["a"]', "bcrt1q", "1" * 64]
    )
    assert options == {"datadir": "/x", "rpcport": "7"}
    assert (method, parameters) == ("m", [True, 6, 0.5, ["a"], "bcrt1q", "1" * 64])


@pytest.mark.parametrize("arguments", [["-nonsense=1", "help"], ["-rpcport"], []])
def test_a_wrong_command_line_is_told(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(arguments)


def test_the_port_that_regtestd_wrote_is_used(tmp_path: Path) -> None:
    assert config({"datadir": str(tmp_path)}).url == "http://127.0.0.1:18443"
    (tmp_path / "regtest").mkdir()
    (tmp_path / "regtest" / "rpcport").write_text("4711\n")
    assert config({"datadir": str(tmp_path)}).url == "http://127.0.0.1:4711"


def test_output_is_as_bitcoin_cli_prints() -> None:
    assert show("text") == "text"
    assert show(None) == ""
    assert show({"amount": Decimal("0.50000000")}) == '{\n  "amount": 0.50000000\n}'


async def test_a_call_and_an_error(tmp_path: Path) -> None:
    async with RegtestServer(tmp_path):

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "wallet.regtest.cli", f"-datadir={tmp_path}", *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        good = await asyncio.to_thread(run, "getblockcount")
        assert (good.returncode, good.stdout) == (0, "0\n")
        bad = await asyncio.to_thread(run, "getblockhash", "7")
        assert bad.returncode == 8
        assert bad.stderr.startswith("error code: -8\nerror message:\n")
