"""`channelctl graph`, `route` and `score` against a daemon's API, over the node's real graph verbs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channeld.cli import graph_plot, score_commands
from channeld.routing.values import EdgeKey
from tests.cli_support import Channelctl, Daemon, started_daemon
from tests.fake_graph import BOB, BOB_DAVE, CAROL, DAVE, ERIN, OWN_BOB, PRIVATE, FakeGraph
from tests.gossip_support import NOW, node_id_of

ERIN_HEX = node_id_of(ERIN).hex()
PRIVATE_TEXT, OWN_BOB_TEXT, BOB_DAVE_TEXT = "16000000x1x0", "100x1x0", "101x1x0"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with started_daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon
        daemon.do(lambda: daemon.node.graph).network.close()


@pytest.fixture
def graph(daemon: Daemon) -> FakeGraph:
    graph = daemon.do(lambda: daemon.node.graph)
    daemon.do(graph.ways.scorer.reset)
    return graph


def test_the_whole_graph_as_text_and_json(channelctl: Channelctl) -> None:
    for name in (("graph", "describe"), ("describegraph",)):
        found = channelctl.json(*name)
        assert sorted(node["alias"] for node in found["nodes"]) == ["bob", "carol", "dave", "erin", "us"]
        assert [channel["short_channel_id"] for channel in found["channels"]][:2] == [OWN_BOB_TEXT, BOB_DAVE_TEXT]
        assert found["channels"][1]["policy_1"]["fee_proportional_millionths"] == 300
        assert found["channels"][1]["spent_height"] is None
    text = channelctl("graph", "describe")
    assert text.out.count("\n") == 9
    assert "dave" in text.out
    assert "5 nodes and 4 channels" in text.err
    assert PRIVATE_TEXT not in text.out
    assert channelctl.json("graph", "describe", "--nodes")["channels"] == []
    assert channelctl.json("graph", "describe", "--channels")["nodes"] == []


def test_one_node_one_channel_and_all_in_numbers(channelctl: Channelctl, graph: FakeGraph, daemon: Daemon) -> None:
    shown = channelctl("graph", "node", node_id_of(DAVE).hex()).out
    assert "dave" in shown
    assert BOB_DAVE_TEXT in shown
    assert len(channelctl.json("graph", "node", node_id_of(DAVE).hex())["channels"]) == 3
    assert channelctl.json("getnodeinfo", node_id_of(DAVE).hex())["channels"] == []
    daemon.do(lambda: graph.ways.scorer.stuck(graph.network.graph, EdgeKey(BOB_DAVE, 0), 250_000_001, float(NOW)))
    assert "0 sat to 250,000 sat" in channelctl("graph", "channel", BOB_DAVE_TEXT).out
    assert channelctl.json("getchaninfo", str(BOB_DAVE))["known_1"] == {"lower_msat": 0, "upper_msat": 250_000_000}
    assert "4,000,000 sat in all" in channelctl("graph", "info").out
    assert channelctl.json("getnetworkinfo")["num_channels"] == 4
    for missing in (("node", node_id_of(9).hex()), ("channel", PRIVATE_TEXT)):
        ran = channelctl("graph", *missing)
        assert ran.status == 3
        assert "graph info" in ran.err
    assert channelctl("graph", "channel", "nonsense").status == 2


def test_a_route_is_explained(channelctl: Channelctl) -> None:
    ran = channelctl("route", "find", ERIN_HEX, "100000")
    assert ran.status == 0, ran
    lines = ran.out.splitlines()
    assert lines[0].startswith("Route: 100,000 sat over 3 channels for 17 sat of fees (170 ppm), 202 blocks at most")
    assert f"{PRIVATE_TEXT} (private)" in lines[3]
    assert "carol" in lines[3]
    assert "100 %" in lines[3]
    assert "The next best:" in lines
    assert "saves" in ran.out
    found = channelctl.json("queryroutes", ERIN_HEX, "100000")
    (route,) = found["routes"]
    assert route["hops"][0]["short_channel_id"] == PRIVATE_TEXT
    assert route["total_fee_msat"] == 17_000
    assert {node["alias"] for node in found["nodes"]} >= {"carol", "dave", "erin"}


def _first_hop(found: Any) -> str:
    return str(found["routes"][0]["hops"][0]["short_channel_id"])


def test_limits_of_a_route(channelctl: Channelctl) -> None:
    find = ("route", "find", ERIN_HEX, "100000sat")
    for limit in (
        ("--via", OWN_BOB_TEXT),
        ("--via", node_id_of(BOB).hex()),
        ("--avoid", node_id_of(CAROL).hex()),
        ("--avoid", PRIVATE_TEXT),
        ("--max-cltv", "150"),
    ):
        assert _first_hop(channelctl.json(*find, *limit)) == OWN_BOB_TEXT, limit
    split = channelctl("route", "find", ERIN_HEX, "500000", "--parts", "4")
    assert split.status == 0
    assert "Part 2 of 2" in split.out
    assert "As one part it does not go" in split.out
    foreign = channelctl.json(*find, "--from", node_id_of(BOB).hex())
    assert _first_hop(foreign) == BOB_DAVE_TEXT


def test_no_way_is_told_with_what_stands_against_it(channelctl: Channelctl) -> None:
    ran = channelctl("route", "find", ERIN_HEX, "100000", "--max-fee", "1sat")
    assert ran.status == 3
    assert "There is no way: the cheapest way costs at least" in ran.err
    assert "the limit is 1,000 msat" in ran.out
    for wrong in (
        ("route", "find"),
        ("route", "find", ERIN_HEX),
        ("route", "find", ERIN_HEX, "1", "--invoice", "x"),
        ("route", "find", ERIN_HEX, "1", "--via", "nowhere"),
        ("route", "find", ERIN_HEX, "1", "--parts", "17"),
    ):
        assert channelctl(*wrong).status == 2, wrong


def test_scores_go_out_and_come_in_again(
    channelctl: Channelctl, graph: FakeGraph, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_commands, "PAGE", 1)

    def learn() -> None:
        scorer, known = graph.ways.scorer, graph.network.graph
        for scid in (OWN_BOB, BOB_DAVE, PRIVATE):
            scorer.stuck(known, EdgeKey(scid, 0), 1_000_000, float(NOW))
        scorer.node_failed(node_id_of(DAVE), float(NOW))

    daemon.do(learn)
    file = tmp_path / "scores.json"
    assert "2 channels and 1 node" in channelctl("score", "export", str(file)).out
    document = json.loads(file.read_text())
    assert document["format"] == "channeld-scores"
    assert [entry["short_channel_id"] for entry in document["channels"]] == [OWN_BOB_TEXT, BOB_DAVE_TEXT]
    assert document["nodes"] == [{"node_id": node_id_of(DAVE).hex(), "nats": 3.0, "learnt_seconds": float(NOW)}]
    assert len(json.loads(channelctl("score", "export", "--private").out)["channels"]) == 3
    refused = channelctl("score", "reset")
    assert refused.status == 2
    assert "--yes" in refused.err
    assert channelctl.json("score", "reset", "--yes") == {"forgotten": {"num_channels": 3, "num_nodes": 1}}
    assert channelctl.json("score", "import", str(file)) == {"imported": {"num_channels": 2, "num_nodes": 1}}
    assert "2 were older" not in channelctl("score", "import", str(file), "--replace").out
    again = channelctl("score", "import", str(file))
    assert "3 were older than what is known here" in again.out
    assert len(daemon.do(graph.ways.scorer.knowledge)[0]) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nonsense", "not JSON"),
        ("[]", "format"),
        ('{"format": "channeld-scores", "version": 2}', "version"),
        ('{"format": "channeld-scores", "version": 1, "channels": [{}], "nodes": []}', "cannot be read"),
        (
            '{"format": "channeld-scores", "version": 1, "nodes": [], "channels": [{"short_channel_id": "1x1x1", '
            '"lower_msat": 5, "upper_msat": 4, "capacity_msat": 9, "learnt_seconds": 1}]}',
            "contradict themselves; nothing was imported",
        ),
        (
            '{"format": "channeld-scores", "version": 1, "channels": [], "nodes": '
            '[{"node_id": "00", "nats": 1, "learnt_seconds": 1}]}',
            "node id",
        ),
    ],
)
def test_what_is_no_export_is_refused(channelctl: Channelctl, tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "scores.json"
    file.write_text(text)
    ran = channelctl("score", "import", str(file))
    assert ran.status == 2
    assert match in ran.err


@pytest.mark.parametrize(("name", "magic"), [("net.png", b"\x89PNG"), ("net.svg", b"<?xml")])
def test_the_network_is_drawn(channelctl: Channelctl, tmp_path: Path, name: str, magic: bytes) -> None:
    file = tmp_path / name
    assert "5 nodes and 4 channels drawn" in channelctl("graph", "plot", str(file), "--size", "600").out
    first = file.read_bytes()
    assert first.startswith(magic)
    assert channelctl.json("graph", "plot", str(file), "--size", "600")["nodes"] == 5
    assert file.read_bytes() == first  # the same network, the same picture


def test_what_cannot_be_drawn(channelctl: Channelctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert channelctl("graph", "plot", str(tmp_path / "net.gif")).status == 2
    assert channelctl("graph", "plot", str(tmp_path / "nowhere" / "net.png")).status == 2
    monkeypatch.setattr(graph_plot, "find_spec", lambda name: None)
    ran = channelctl("graph", "plot", str(tmp_path / "net.png"))
    assert ran.status == 1
    assert "pip install 'channeld[plot]'" in ran.err


def test_a_large_network_is_a_density_with_islands(tmp_path: Path) -> None:
    """More nodes than have names; some connected to nobody else; names that no font has."""
    names = ["us", "$\\frac{a}$", "\U0001f980" * 3, "a" * 60]
    nodes = [graph_plot.Node(names[at] if at < len(names) else f"n{at}", 10**6, at == 0) for at in range(90)]
    channels = [graph_plot.Channel(at, at * 7 % 80, 10**5 * (at + 1), at % 9 > 0) for at in range(1, 80)]
    channels += [graph_plot.Channel(at, at + 1, 10**6, True) for at in range(80, 90, 2)]
    network = graph_plot.Network(nodes, channels)
    places = graph_plot.arrange(network, seed=1)
    assert abs(places).max() <= 1.2
    assert (graph_plot.arrange(network, seed=1) == places).all()
    graph_plot.draw(network, tmp_path / "net.png", size=500)
    assert (tmp_path / "net.png").stat().st_size > 5_000


def test_prices_as_lncli_users_write_them(channelctl: Channelctl, daemon: Daemon) -> None:
    daemon.usable_channel(200_000)
    (policy,) = channelctl.json("updatechanpolicy", "1500", "0.000250", "40")["policies"]
    assert (policy["fee_base_msat"], policy["fee_proportional_millionths"]) == (1500, 250)
    assert policy["cltv_expiry_delta_blocks"] == 40
    (policy,) = channelctl.json("updatechanpolicy", "--fee_rate_ppm", "7", "--base_fee_msat", "0")["policies"]
    assert (policy["fee_base_msat"], policy["fee_proportional_millionths"]) == (0, 7)
    for wrong in (("1", "0.0000001"), ("1", "nan"), ("1", "-1"), ("1", "0.1", "--fee_rate_ppm", "1")):
        assert channelctl("updatechanpolicy", *wrong).status == 2, wrong
    report = channelctl.json("feereport")
    assert len(report["policies"]) == 1
    assert report["day_fee_sum_msat"] <= report["month_fee_sum_msat"]
    assert "Earned:" in channelctl("feereport").out
