"""Transactions without inputs, whose serialisation looks like one with witnesses (BIP 144)."""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from

from wallet.bitcoin import SerializationError, Tx, TxOut
from wallet.bitcoin.encoding import read_compact_size, read_var_bytes


def parse_without_inputs(raw: bytes) -> Tx | None:
    """The transaction if `raw` is one without inputs and without witnesses, else None."""
    try:
        (version,) = unpack_from("<i", raw, 0)
        count, pos = read_compact_size(raw, 4)
        if count:
            return None
        count, pos = read_compact_size(raw, pos)
        outputs = []
        for _ in range(count):
            (value_sat,) = unpack_from("<q", raw, pos)
            script, pos = read_var_bytes(raw, pos + 8)
            outputs.append(TxOut(value_sat, script))
        (locktime,) = unpack_from("<I", raw, pos)
    except (SerializationError, StructError):
        return None
    return Tx(version, (), tuple(outputs), locktime) if pos + 4 == len(raw) else None
