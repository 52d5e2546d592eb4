"""What lets a daemon cheat in tests is nowhere in what is installed, and nothing of that leads to it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

from channeld.config import Config
from watchtower.rpc.settings import ChainSettings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]


@cache
def sources() -> dict[str, str]:
    """Everything that is installed."""
    paths = [path for package in PACKAGES for path in (ROOT / package.replace(".", "/")).glob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def modules_with(word: str) -> dict[str, ast.Module]:
    """Modules in whose text a word is."""
    return {path: ast.parse(source) for path, source in sources().items() if word in source}


def test_tests_are_not_installed() -> None:
    assert PACKAGES, "named one by one: nothing is found by searching"
    assert not [package for package in PACKAGES if package.split(".")[0] not in ("channeld", "wallet", "watchtower")]
    scripts = PROJECT["project"]["scripts"].values()
    assert not [script for script in scripts if script.split(":")[0].rpartition(".")[0] not in PACKAGES]
    assert "tests" not in str(PROJECT["tool"]["setuptools"].get("package-data"))


def test_nothing_installed_imports_tests() -> None:
    assert len(sources()) > 200
    for path, module in modules_with("tests").items():
        for node in ast.walk(module):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not [name for name in names if name.split(".")[0] == "tests"], path


def test_the_daemon_hands_nobody_its_commits() -> None:
    """The hook that a cheat needs is an argument, and the installed program gives none."""
    found = {}
    for path, module in modules_with("run_daemon").items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run_daemon":
                found[path] = (len(node.args), len(node.keywords))
    assert found == {"channeld/__main__.py": (1, 0)}


def test_no_setting_is_about_it() -> None:
    words = ("cheat", "hold", "keep_states", "go_back", "old_state", "hook")
    fields = [*Config.model_fields, *ChainSettings.model_fields]
    assert not [name for name in fields for word in words if word in name]
    asked = [sys.executable, "-m", "channeld", "--cheat", "1"]
    environment = {**os.environ, "CHANNELD_CHEAT": "1"}
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2
    assert b"cheat" in done.stderr
