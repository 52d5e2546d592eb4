"""The public network of one day, as a graph: 50,808 channels between 17,324 nodes.

The file has numbers for nodes and no scids: node ids and scids are made up from the positions, the rest is real.
"""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path

import numpy as np

from channeld.routing.graph import Columns, Graph

CSV = Path(__file__).parent / "data" / "mainnet-2026-02-03.csv.xz"
FIRST_SCID = 700_000 << 40


def node_id(number: int) -> bytes:
    """The made-up id of a node; in the order of the numbers."""
    return b"\x02" + number.to_bytes(32, "big")


def load_csv(path: Path = CSV) -> Graph:
    """Reads the file into a new graph."""
    with lzma.open(path, "rt") as lines:
        table = np.loadtxt(lines, np.int64, delimiter=",", skiprows=1)
    nodes = int(table[:, :2].max()) + 1
    ids = np.zeros((nodes, 33), np.uint8)
    ids[:, 0] = 2
    ids[:, 29:] = np.arange(nodes, dtype=">u4").view(np.uint8).reshape(-1, 4)

    def directions(first: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return table[:, [first, first + 6]]

    graph = Graph()
    graph.add_columns(
        Columns(
            node_ids=ids,
            short_channel_id=FIRST_SCID + (np.arange(len(table)) << 16),
            ends=table[:, :2].astype(np.int32),
            capacity_sat=table[:, 2],
            known=np.ones((len(table), 2), np.bool_),
            enabled=directions(3).astype(np.bool_),
            htlc_minimum_msat=directions(4),
            htlc_maximum_msat=directions(5),
            fee_base_msat=directions(6),
            fee_proportional_millionths=directions(7),
            cltv_expiry_delta=directions(8),
        )
    )
    return graph


@cache
def mainnet() -> Graph:
    """One graph for all tests of a process; they must not change it."""
    return load_csv()
