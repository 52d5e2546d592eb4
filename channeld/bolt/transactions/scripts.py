"""The scripts of funding, commitment and HTLC outputs (BOLT 3). All are witness scripts, to be put behind P2WSH.

"Owner" is who may broadcast the commitment, "other" the side that could punish it (see `channeld.bolt.keys`).
"""

from __future__ import annotations

from functools import lru_cache

from channeld.bolt.keys import CommitmentKeys
from wallet.bitcoin.encoding import hash160, ripemd160
from wallet.bitcoin.script import script_num

_PUSH33 = b"\x21"


def funding_script(pubkey_a: bytes, pubkey_b: bytes) -> bytes:
    """`2 <pubkey1> <pubkey2> 2 OP_CHECKMULTISIG`, the lesser key first (BOLT 3, "Funding Transaction Output")."""
    pubkey1, pubkey2 = sorted((pubkey_a, pubkey_b))
    return b"\x52\x21" + pubkey1 + _PUSH33 + pubkey2 + b"\x52\xae"


def to_local_script(revocation_pubkey: bytes, to_self_delay_blocks: int, owner_delayed_pubkey: bytes) -> bytes:
    """The owner's own output, and that of its HTLC transactions: delayed, or at once with the revocation key."""
    return b"".join(
        (
            b"\x63\x21",
            revocation_pubkey,
            b"\x67",
            script_num(to_self_delay_blocks),
            b"\xb2\x75\x21",
            owner_delayed_pubkey,
            b"\x68\xac",
        )
    )


def to_remote_script(payment_basepoint: bytes) -> bytes:
    """The other side's output if `option_anchors` applies: one block after confirmation."""
    return _PUSH33 + payment_basepoint + b"\xad\x51\xb2"


def anchor_script(funding_pubkey: bytes) -> bytes:
    """An anchor: its owner's at once, anyone's after 16 blocks."""
    return _PUSH33 + funding_pubkey + b"\xac\x73\x64\x60\xb2\x68"


@lru_cache(maxsize=16_384)
def payment_hash160(payment_hash: bytes) -> bytes:
    """RIPEMD160(payment_hash), 20 bytes: the same HTLC is in many commitments."""
    return ripemd160(payment_hash)


@lru_cache(maxsize=4_096)
def _expiry_push(cltv_expiry: int) -> bytes:
    return script_num(cltv_expiry)


class HtlcScripts:
    """The HTLC scripts of one commitment: all that does not depend on the HTLC is put together once."""

    __slots__ = ("_offered_head", "_offered_tail", "_received_head", "_received_mid", "_received_tail")

    def __init__(self, keys: CommitmentKeys, anchors: bool) -> None:
        csv = b"\x51\xb2\x75\x68" if anchors else b"\x68"
        head = b"".join(
            (
                b"\x76\xa9\x14",
                hash160(keys.revocation_pubkey),
                b"\x87\x63\xac\x67\x21",
                keys.other_htlc_pubkey,
                b"\x7c\x82\x01\x20\x87",
            )
        )
        self._offered_head = head + b"\x64\x75\x52\x7c\x21" + keys.owner_htlc_pubkey + b"\x52\xae\x67\xa9\x14"
        self._offered_tail = b"\x88\xac\x68" + csv
        self._received_head = head + b"\x63\xa9\x14"
        self._received_mid = b"\x88\x52\x7c\x21" + keys.owner_htlc_pubkey + b"\x52\xae\x67\x75"
        self._received_tail = b"\xb1\x75\xac\x68" + csv

    def offered(self, payment_hash: bytes) -> bytes:
        """Script of an HTLC that the commitment's owner offered (BOLT 3, "Offered HTLC Outputs")."""
        return self._offered_head + payment_hash160(payment_hash) + self._offered_tail

    def received(self, payment_hash: bytes, cltv_expiry: int) -> bytes:
        """Script of an HTLC that the commitment's owner received (BOLT 3, "Received HTLC Outputs")."""
        return b"".join(
            (
                self._received_head,
                payment_hash160(payment_hash),
                self._received_mid,
                _expiry_push(cltv_expiry),
                self._received_tail,
            )
        )
