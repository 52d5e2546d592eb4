"""The whole view as columns of numbers, for a graph that starts: one read of the file instead of one a channel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from channeld.gossip.view import NetworkView

_MAX_MSAT = 1 << 62
_POLICY_AT = 111
_POLICY = np.dtype(
    [
        ("flags", "u1"),
        ("cltv_expiry_delta", ">u2"),
        ("htlc_minimum_msat", ">u8"),
        ("fee_base_msat", ">u4"),
        ("fee_proportional_millionths", ">u4"),
        ("htlc_maximum_msat", ">u8"),
    ]
)
"""The end of a `channel_update` (wire form with type), from `channel_flags` on."""

Array = npt.NDArray[Any]


class NetworkColumns(NamedTuple):
    """All routable channels. `ends` are rows of `node_ids` (33 bytes each); the arrays by direction have shape
    (channels, 2), direction 0 by `node_id_1`. Amounts in msat or sat, deltas in blocks."""

    node_ids: Array
    short_channel_id: Array
    ends: Array
    capacity_sat: Array
    known: Array
    usable: Array
    htlc_minimum_msat: Array
    htlc_maximum_msat: Array
    fee_base_msat: Array
    fee_proportional_millionths: Array
    cltv_expiry_delta: Array


def columns(view: NetworkView) -> NetworkColumns:
    """The view as it is now. Channels that must not be routed through are left out."""
    topology = view.topology
    rows = np.array([row for scid, row in topology.rows.items() if view.is_routable(scid)], dtype=np.int64)
    capacity = _column(topology.capacity_sat, np.uint64)[rows].astype(np.int64)
    ends = np.stack([_column(column, np.uint32)[rows] for column in topology.nodes], axis=1).astype(np.int64)
    used, renumbered = np.unique(ends, return_inverse=True)
    ids = b"".join([topology.node_ids[index] for index in used.tolist()])
    data = np.frombuffer(view.store.content(), dtype=np.uint8)
    sides = [_policies(data, _column(column, np.uint64)[rows]) for column in topology.update]
    known = np.stack([_column(column, np.uint64)[rows] != 0 for column in topology.update], axis=1)
    fields = {
        name: np.minimum(np.stack([side[name] for side in sides], axis=1).astype(np.uint64), _MAX_MSAT).astype(np.int64)
        for name in _POLICY.names or ()
    }
    minimum, maximum = fields["htlc_minimum_msat"], fields["htlc_maximum_msat"]
    usable = known & (fields["flags"] & 2 == 0) & (minimum <= maximum) & (maximum <= 1000 * capacity[:, None])
    return NetworkColumns(
        np.frombuffer(ids, dtype=np.uint8).reshape(-1, 33),
        _column(topology.scid, np.uint64)[rows].astype(np.int64),
        renumbered.reshape(-1, 2).astype(np.int32),
        capacity,
        known,
        usable,
        minimum,
        maximum,
        fields["fee_base_msat"],
        fields["fee_proportional_millionths"],
        fields["cltv_expiry_delta"],
    )


def _policies(data: Array, locations: Array) -> Array:
    """The policy part of the message at each location; that at 0, where there is none, is rubbish."""
    offsets = (locations >> np.uint64(16)).astype(np.int64)
    if not len(offsets) or len(data) < _POLICY_AT + _POLICY.itemsize:
        return np.zeros(len(offsets), dtype=_POLICY)
    place = np.where(offsets > 0, offsets + _POLICY_AT, 0)[:, None] + np.arange(_POLICY.itemsize)
    return np.ascontiguousarray(data[np.minimum(place, len(data) - 1)]).view(_POLICY)[:, 0]


def _column(column: Any, dtype: type[np.generic]) -> Array:
    """A copy, so that the array may grow again."""
    return np.array(column, dtype=dtype)
