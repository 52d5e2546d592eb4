"""What is shipped beside the code says what the code says: metrics, events, programs, versions."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from channeld.config import Config
from channeld.node.event_kinds import CANNOT_MAKE, EVENT_KINDS, EventKind
from watchtower.tower.config import Config as TowerConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCUMENT = ROOT / "docs" / "node.md"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for package in ("channeld", "watchtower", "wallet")
    for path in (ROOT / package).rglob("*.py")
}
OF_THE_PROCESS = {"channeld_process_start_time_seconds", "channeld_process_resident_memory_bytes"}


def is_a_metric(name: str) -> bool:
    """Whether the code makes it: under its whole name, or without the program's and what stands for a counter."""
    bare = name.removeprefix("channeld_").removeprefix("watchtower_")
    written = {f'"{each}"' for each in (name, bare, name.removesuffix("_total"), bare.removesuffix("_total"))}
    return any(each in source for each in written for source in SOURCES.values())


@pytest.mark.parametrize("path", ["prometheus/alerts.yaml", "grafana/channeld.json"])
def test_metrics_that_are_watched_exist(path: str) -> None:
    text = (DEPLOY / path).read_text()
    names = set(re.findall(r"\b(?:channeld|watchtower)_[a-z_]+", text)) - OF_THE_PROCESS
    assert len(names) > 7
    assert [name for name in sorted(names) if not is_a_metric(name)] == []


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_events_alert_by_their_severity(severity: str) -> None:
    watched: list[str] = []
    for alert in (DEPLOY / "prometheus/alerts.yaml").read_text().split("- alert:"):
        if f"severity: {severity}" in alert:
            patterns = [text.replace(r"\\", "\\") for text in re.findall(r'kind=~?"([^"]+)"', alert)]
            watched += [kind for kind in EVENT_KINDS for pattern in patterns if re.fullmatch(pattern, kind)]
    assert sorted(watched) == sorted(kind for kind, about in EVENT_KINDS.items() if about.severity == severity)


def test_all_kinds_of_events_are_described_and_documented() -> None:
    assert sorted(EVENT_KINDS) == sorted(get_args(EventKind)) == sorted(set(get_args(EventKind)))
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+) \| (info|warning|critical) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [(kind, *about) for kind, about in EVENT_KINDS.items()]


@pytest.mark.parametrize("kind", sorted(get_args(EventKind)))
def test_all_kinds_of_events_are_told(kind: str) -> None:
    others = "\n".join(source for path, source in SOURCES.items() if path != "channeld/node/event_kinds.py")
    assert f'"{kind}"' in others or kind in CANNOT_MAKE.values()


def test_the_dashboard_can_be_read() -> None:
    board = json.loads((DEPLOY / "grafana/channeld.json").read_text())
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(board["panels"]) + 1))
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])


def test_the_image_has_versions_that_the_project_allows() -> None:
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *extras["regtest"], *extras["postgres"]):
        wanted = Requirement(text)
        assert Version(pinned[wanted.name.lower()]) in wanted.specifier, text


def test_the_image_and_the_units_name_programs_and_settings_that_exist() -> None:
    files = [ROOT / "Dockerfile", ROOT / "compose.yaml", *(DEPLOY / "systemd").glob("*.service")]
    text = "\n".join(path.read_text() for path in files)
    programs = {*re.findall(r"\[(?:CMD, )?([a-z-]+)[,\]]", text), *re.findall(r"/bin/([a-z]+)\n", text)} - {
        "multi-user"
    }
    assert {"channeld", "watchtowerd", "regtestd", "channelctl", "watchtowerctl"} <= programs
    assert programs & {"channeld", "watchtowerd", "regtestd", "channelctl", "watchtowerctl", "regtest-cli"} <= {
        *PROJECT["scripts"]
    }
    for prefix, settings in (("CHANNELD_", Config), ("WATCHTOWERD_", TowerConfig)):
        names = set(re.findall(rf"\b{prefix}([A-Z_]+)", text))
        assert "DATADIR" in names
        assert {name.lower() for name in names} <= set(settings.model_fields)
    assert "USER channeld" in text
    assert not re.search(r"image: \S+:latest", text)
