"""What a client can make a tower read: blobs that decrypt, and hold anything."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import msgspec

from tests.fuzz.target import Reader, target
from tests.tower_support import Revoked, revoked
from wallet.bitcoin import OutPoint
from watchtower.appointment import Terms, make_justice
from watchtower.blob import Undecipherable, seal, unseal
from watchtower.justice import InvalidJustice, check, decode, encode, own_tx, rung_tx

PLAIN = msgspec.msgpack.Decoder(object)


@cache
def _breach() -> Revoked:
    return revoked("fuzz", OutPoint(b"\x07" * 32, 0), 500_000)


def _justice_seeds() -> Iterator[bytes]:
    for mode in ("own", "blind"):
        terms = Terms(mode, 10, b"\x00\x14" + bytes(20))
        yield encode(make_justice(_breach().kit, terms))


@target("blob_content", _justice_seeds, 8000)
def blob_content(data: bytes) -> None:
    """A blob's content that decrypts: refused with a reason, or good for transactions that only take what is there."""
    breach = _breach().tx
    try:
        justice = decode(data)
        check(justice, breach)
    except InvalidJustice as error:
        assert str(error)
        return
    for bundle in justice.bundles:
        for rung in bundle.rungs:
            tx = rung_tx(justice, breach.txid(), bundle, rung)
            taken = sum(justice.outputs[place].amount_sat for place in bundle.places)
            assert 0 < sum(output.value_sat for output in tx.outputs) <= taken
    if justice.is_own:
        outpoints = [OutPoint(breach.txid(), penalty.vout) for penalty in justice.outputs]
        made = own_tx(justice, outpoints, justice.outputs, 1_000)
        assert made is None or made[0].outputs


@target("blob", lambda: [seal(b"\x01" * 32, b"content"), bytes(400)], 2000)
def blob(data: bytes) -> None:
    """Blobs as they are stored, and any content under a right key."""
    txid = b"\x01" * 32
    try:
        unseal(txid, data)
    except Undecipherable:
        pass
    assert unseal(txid, seal(txid, data)) == data
    reader = Reader(data)
    damaged = bytearray(seal(txid, b"content"))
    damaged[reader.below(len(damaged))] ^= reader.number() or 1
    try:
        unseal(txid, bytes(damaged))
    except Undecipherable:
        return
    raise AssertionError("a damaged blob was opened")
