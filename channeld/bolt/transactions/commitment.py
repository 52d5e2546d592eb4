"""Commitment transactions and the signature hashes of their HTLC transactions (BOLT 3): the channel's hot path.

Everything that depends only on the channel, and everything that depends only on a `per_commitment_point`, is put
together once and kept; a commitment then costs a few hashes, and every HTLC a few more. No `Tx` is built until one
is asked for.

`local` and `remote` mean this node and its peer, as everywhere. A commitment transaction belongs to its *owner*,
though, and BOLT 3 names outputs from there: `to_local` is the owner's delayed output, whoever that is, and
`to_remote` the other's.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from struct import Struct

from channeld.bolt.keys import CommitmentKeys, derive_commitment_keys
from channeld.bolt.transactions import fees
from channeld.bolt.transactions.htlc import HtlcContext, HtlcOutput
from channeld.bolt.transactions.scripts import (
    HtlcScripts,
    anchor_script,
    to_local_script,
    to_remote_script,
)
from channeld.bolt.transactions.spec import CommitmentParams, CommitmentSpec, Htlc, Side, trim_limit_sat
from wallet.bitcoin.encoding import compact_size, sha256d
from wallet.bitcoin.script import p2wpkh, p2wsh
from wallet.bitcoin.sighash import SIGHASH_ALL, SIGHASH_ANYONECANPAY, SIGHASH_SINGLE
from wallet.bitcoin.tx import Tx

HTLC_SIGHASH_ANCHORS = SIGHASH_SINGLE | SIGHASH_ANYONECANPAY
MAX_OBSCURED = (1 << 48) - 1

_VERSION = b"\x02\x00\x00\x00"
_P2WSH = b"\x22\x00\x20"  # a P2WSH output's script, behind its length
_ZERO64 = bytes(64)
_U32 = Struct("<I")
_I64 = Struct("<q")
_AMOUNT_SEQUENCE = Struct("<qI")
_LOCKTIME_TYPE = Struct("<II")
_SINGLE_BYTE = tuple(bytes((n,)) for n in range(256))

# What an entry of the sorted outputs is, in place of an HTLC's id.
_TO_LOCAL, _TO_REMOTE, _TO_LOCAL_ANCHOR, _TO_REMOTE_ANCHOR = -1, -2, -3, -4


class BuiltCommitment:
    """An unsigned commitment transaction and all that is to be signed or verified for it.

    `htlcs` are in output order, which is the order of `htlc_signatures` in `commitment_signed`; `trimmed` have no
    output. Indices are None where the output does not exist. `sighash` is what the funding keys sign (SIGHASH_ALL),
    32 bytes.
    """

    __slots__ = (
        "_frame",
        "_keyed",
        "_raw",
        "_tx",
        "commitment_number",
        "fee_sat",
        "htlcs",
        "sighash",
        "to_local_anchor_index",
        "to_local_index",
        "to_remote_anchor_index",
        "to_remote_index",
        "trimmed",
        "txid",
    )

    commitment_number: int
    fee_sat: int
    htlcs: tuple[HtlcOutput, ...]
    sighash: bytes
    to_local_anchor_index: int | None
    to_local_index: int | None
    to_remote_anchor_index: int | None
    to_remote_index: int | None
    trimmed: tuple[Htlc, ...]
    txid: bytes
    _frame: _Frame
    _keyed: _Keyed
    _raw: bytes
    _tx: Tx | None

    @property
    def params(self) -> CommitmentParams:
        """The channel's."""
        return self._frame.params

    @property
    def side(self) -> Side:
        """Whose commitment this is."""
        return self._frame.side

    @property
    def keys(self) -> CommitmentKeys:
        """The public keys inside."""
        return self._keyed.keys

    @property
    def to_local_script(self) -> bytes:
        """Witness script of the owner's output and of its HTLC transactions' outputs."""
        return self._keyed.to_local_script

    @property
    def tx(self) -> Tx:
        """The transaction, without witness."""
        if self._tx is None:
            self._tx = Tx.parse(self._raw)
        return self._tx

    @property
    def htlc_sighashes(self) -> list[bytes]:
        """What the other side's HTLC signatures sign, 32 bytes each, in output order."""
        return [output.htlc_tx_sighash for output in self.htlcs]


class _Frame:
    """What all commitments of one side of a channel share, as the bytes that go into the transaction and its
    sighash."""

    __slots__ = (
        "dust_limit_sat",
        "obscuring_factor",
        "params",
        "side",
        "sighash_head",
        "sighash_middle",
        "to_local_anchor",
        "to_remote",
        "to_remote_anchor",
        "tx_head",
    )

    def __init__(self, params: CommitmentParams, side: Side) -> None:
        owner, other = params.owner_and_other(side)
        outpoint = params.funding_outpoint.serialize()
        script = params.funding_script()
        to_remote = (
            p2wsh(to_remote_script(other.payment_basepoint)) if params.anchors else p2wpkh(other.payment_basepoint)
        )
        self.params = params
        self.side = side
        self.dust_limit_sat = params.dust_limit_sat(side)
        self.obscuring_factor = params.obscuring_factor()
        self.tx_head = _VERSION + b"\x01" + outpoint + b"\x00"
        self.sighash_head = _VERSION + sha256d(outpoint)
        self.sighash_middle = outpoint + compact_size(len(script)) + script + _I64.pack(params.funding_sat)
        self.to_remote = compact_size(len(to_remote)) + to_remote
        self.to_local_anchor = b"\x22" + p2wsh(anchor_script(owner.funding_pubkey))
        self.to_remote_anchor = b"\x22" + p2wsh(anchor_script(other.funding_pubkey))


class _Keyed:
    """What depends on a commitment's keys."""

    __slots__ = ("htlc_scripts", "keys", "to_local", "to_local_script")

    def __init__(self, params: CommitmentParams, side: Side, per_commitment_point: bytes) -> None:
        keys = derive_commitment_keys(*params.owner_and_other(side), per_commitment_point)
        self.keys = keys
        self.to_local_script = to_local_script(
            keys.revocation_pubkey, params.to_self_delay(side), keys.owner_delayed_pubkey
        )
        self.to_local = _P2WSH + sha256(self.to_local_script).digest()
        self.htlc_scripts = HtlcScripts(keys, params.anchors)


_frame = lru_cache(maxsize=4_096)(_Frame)
_keyed = lru_cache(maxsize=4_096)(_Keyed)

_Entry = tuple[int, bytes, int, int, bool, bytes, Htlc | None]
"""An output to be sorted: satoshi, script behind its length, expiry, HTLC id or a code, offered by the owner,
script."""


def prepare_commitment(params: CommitmentParams, side: Side, per_commitment_point: bytes) -> None:
    """Derives and keeps the keys of a coming commitment, most of what building it costs (170 us of elliptic curve).

    The next point is known long before it is used, and these calls release the interpreter's lock: another thread
    may do this meanwhile. Raises InvalidKey for a bad point.
    """
    _keyed(params, side, per_commitment_point)


def build_commitment(
    params: CommitmentParams, spec: CommitmentSpec, side: Side, index: int, per_commitment_point: bytes
) -> BuiltCommitment:
    """The commitment transaction number `index` of `side` (BOLT 3, "Commitment Transaction Construction").

    The opener's output disappears if it cannot pay the fee; whether that is allowed is the channel's to decide. Raises
    ValueError if the outputs exceed what the channel holds (`spec` pays too much, or the opener cannot even pay for the
    anchors) or `index` has more than 48 bits, InvalidKey for a bad point.
    """
    frame = _frame(params, side)
    keyed = _keyed(params, side, per_commitment_point)
    if not 0 <= index <= MAX_OBSCURED:
        raise ValueError(f"{index} is not a commitment number")
    built = BuiltCommitment()
    built._frame = frame
    built._keyed = keyed
    built._tx = None
    built.commitment_number = index
    entries, built.trimmed = _htlc_entries(frame, keyed, spec)
    _add_main_outputs(entries, frame, keyed, spec)
    entries.sort()
    built.fee_sat = params.funding_sat - sum([entry[0] for entry in entries])
    if built.fee_sat < 0:
        raise ValueError(f"the outputs exceed the channel's {params.funding_sat} sat by {-built.fee_sat}")
    _serialize(built, entries)
    _place_outputs(built, entries, spec.feerate_per_kw)
    return built


def _htlc_entries(frame: _Frame, keyed: _Keyed, spec: CommitmentSpec) -> tuple[list[_Entry], tuple[Htlc, ...]]:
    """(outputs of untrimmed HTLCs, trimmed HTLCs)."""
    offered_limit = trim_limit_sat(frame.params, spec.feerate_per_kw, frame.side, True)
    received_limit = trim_limit_sat(frame.params, spec.feerate_per_kw, frame.side, False)
    offered_script, received_script = keyed.htlc_scripts.offered, keyed.htlc_scripts.received
    owner_is_local = frame.side == "local"
    entries: list[_Entry] = []
    trimmed: list[Htlc] = []
    for htlc in spec.htlcs:
        amount_sat = htlc.amount_msat // 1000
        offered = htlc.offered == owner_is_local
        expiry = htlc.cltv_expiry
        if amount_sat < (offered_limit if offered else received_limit):
            trimmed.append(htlc)
            continue
        script = offered_script(htlc.payment_hash) if offered else received_script(htlc.payment_hash, expiry)
        entries.append((amount_sat, _P2WSH + sha256(script).digest(), expiry, htlc.id, offered, script, htlc))
    return entries, tuple(trimmed)


def _add_main_outputs(entries: list[_Entry], frame: _Frame, keyed: _Keyed, spec: CommitmentSpec) -> None:
    """Adds `to_local`, `to_remote` and the anchors, as far as they exist. The opener pays the fee."""
    params = frame.params
    owner_is_local = frame.side == "local"
    cost_sat = fees.funder_cost_sat(spec.feerate_per_kw, len(entries), params.anchors)
    local_sat, remote_sat = spec.to_local_msat // 1000, spec.to_remote_msat // 1000
    if params.local_is_opener:
        local_sat = max(0, local_sat - cost_sat)
    else:
        remote_sat = max(0, remote_sat - cost_sat)
    owner_sat, other_sat = (local_sat, remote_sat) if owner_is_local else (remote_sat, local_sat)
    has_htlcs = bool(entries)
    has_to_local, has_to_remote = owner_sat >= frame.dust_limit_sat, other_sat >= frame.dust_limit_sat
    if has_to_local:
        entries.append((owner_sat, keyed.to_local, 0, _TO_LOCAL, False, b"", None))
    if has_to_remote:
        entries.append((other_sat, frame.to_remote, 0, _TO_REMOTE, False, b"", None))
    if params.anchors:
        if has_to_local or has_htlcs:
            entries.append((fees.ANCHOR_SAT, frame.to_local_anchor, 0, _TO_LOCAL_ANCHOR, False, b"", None))
        if has_to_remote or has_htlcs:
            entries.append((fees.ANCHOR_SAT, frame.to_remote_anchor, 0, _TO_REMOTE_ANCHOR, False, b"", None))


def _serialize(built: BuiltCommitment, entries: list[_Entry]) -> None:
    """The transaction's bytes, id and sighash."""
    frame = built._frame
    obscured = frame.obscuring_factor ^ built.commitment_number
    sequence = _U32.pack(0x8000_0000 | obscured >> 24)
    locktime = _U32.pack(0x2000_0000 | obscured & 0xFF_FFFF)
    pack = _I64.pack
    outputs = b"".join([pack(entry[0]) + entry[1] for entry in entries])
    raw = b"".join((frame.tx_head, sequence, compact_size(len(entries)), outputs, locktime))
    built._raw = raw
    built.txid = sha256(sha256(raw).digest()).digest()
    built.sighash = sha256d(
        b"".join(
            (
                frame.sighash_head,
                sha256d(sequence),
                frame.sighash_middle,
                sequence,
                sha256d(outputs),
                locktime,
                _U32.pack(SIGHASH_ALL),
            )
        )
    )


def _place_outputs(built: BuiltCommitment, entries: list[_Entry], feerate_per_kw: int) -> None:
    """Finds every output's index, and hashes every HTLC transaction (BIP 143) without building it."""
    anchors = built._frame.params.anchors
    places: dict[int, int] = {}
    htlcs: list[HtlcOutput] = []
    to_local = built._keyed.to_local
    txid = built.txid
    sequence = 1 if anchors else 0
    context = HtlcContext(txid, to_local[1:], sequence, HTLC_SIGHASH_ANCHORS if anchors else SIGHASH_ALL)
    timeout_fee_sat = fees.htlc_timeout_fee_sat(feerate_per_kw, anchors)
    success_fee_sat = fees.htlc_success_fee_sat(feerate_per_kw, anchors)
    head = _VERSION + _ZERO64 + txid
    hash_sequence = sha256d(_U32.pack(sequence))
    for position, (amount_sat, _, expiry, code, offered, script, htlc) in enumerate(entries):
        if htlc is None:
            places[code] = position
            continue
        vout = _U32.pack(position)
        if not anchors:
            head = b"".join((_VERSION, sha256d(txid + vout), hash_sequence, txid))
        paid_sat = amount_sat - (timeout_fee_sat if offered else success_fee_sat)
        preimage = b"".join(
            (
                head,
                vout,
                _SINGLE_BYTE[len(script)],
                script,
                _AMOUNT_SEQUENCE.pack(amount_sat, sequence),
                sha256(sha256(_I64.pack(paid_sat) + to_local).digest()).digest(),
                _LOCKTIME_TYPE.pack(expiry if offered else 0, context.sighash_type),
            )
        )
        sighash = sha256(sha256(preimage).digest()).digest()
        htlcs.append(HtlcOutput(htlc, offered, position, amount_sat, paid_sat, script, sighash, context))
    built.htlcs = tuple(htlcs)
    built.to_local_index = places.get(_TO_LOCAL)
    built.to_remote_index = places.get(_TO_REMOTE)
    built.to_local_anchor_index = places.get(_TO_LOCAL_ANCHOR)
    built.to_remote_anchor_index = places.get(_TO_REMOTE_ANCHOR)
