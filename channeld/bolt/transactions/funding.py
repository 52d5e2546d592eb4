"""The funding output: its script and witness (BOLT 3, "Funding Transaction Output"), and what each side of an
interactively built funding transaction pays for (BOLT 3, "Calculating Fees for Collaborative Transactions" and
appendix A)."""

from __future__ import annotations

from collections.abc import Sequence

from channeld.bolt.transactions.scripts import funding_script
from wallet.bitcoin.encoding import compact_size
from wallet.bitcoin.script import p2wsh
from wallet.bitcoin.secp import compact_to_der
from wallet.bitcoin.sighash import SIGHASH_ALL, segwit_v0_sighash
from wallet.bitcoin.tx import Tx

MIN_WITNESS_WEIGHT = 107
"""What an input's witness is taken to weigh at least: that of P2WPKH, without the count of inputs."""
_COMMON_WEIGHT = (4 + 1 + 1 + 4) * 4 + 2  # version, counts, locktime; segwit marker and flag
_TXIN_BYTES = 41
_FUNDING_TXOUT_BYTES = 43


def funding_script_pubkey(pubkey_a: bytes, pubkey_b: bytes) -> bytes:
    """The P2WSH script of the funding output for two funding keys, in either order."""
    return p2wsh(funding_script(pubkey_a, pubkey_b))


def funding_sighash(tx: Tx, index: int, witness_script: bytes, funding_sat: int) -> bytes:
    """What both funding keys sign for input `index` of `tx`, 32 bytes (SIGHASH_ALL)."""
    return segwit_v0_sighash(tx, index, witness_script, funding_sat, SIGHASH_ALL)


def funding_witness(
    local_funding_pubkey: bytes, local_signature: bytes, remote_funding_pubkey: bytes, remote_signature: bytes
) -> tuple[bytes, ...]:
    """`0 <sig1> <sig2> <script>`, in the order of the keys, from 64-byte compact signatures."""
    signatures = (local_signature, remote_signature)
    if local_funding_pubkey > remote_funding_pubkey:
        signatures = (remote_signature, local_signature)
    first, second = (compact_to_der(signature) + bytes((SIGHASH_ALL,)) for signature in signatures)
    return b"", first, second, funding_script(local_funding_pubkey, remote_funding_pubkey)


def contribution_weight(
    script_sigs: Sequence[bytes], witness_weights: Sequence[int], output_scripts: Sequence[bytes], *, initiator: bool
) -> int:
    """Expected weight of what one side adds to a funding transaction.

    `script_sigs` and `witness_weights` are those of its inputs, `output_scripts` of its outputs other than the funding
    output; the initiator also pays for the common fields and the funding output.
    """
    inputs = sum(_TXIN_BYTES + len(compact_size(len(script))) - 1 + len(script) for script in script_sigs)
    outputs = sum(8 + len(compact_size(len(script))) + len(script) for script in output_scripts)
    weight = 4 * (inputs + outputs) + max(MIN_WITNESS_WEIGHT * len(script_sigs), sum(witness_weights))
    return weight + (_COMMON_WEIGHT + 4 * _FUNDING_TXOUT_BYTES if initiator else 0)


def contribution_fee_sat(weight: int, feerate_per_kw: int) -> int:
    """What a side pays for `weight`, rounded up, satoshi: rounding down would fall short of the agreed fee rate."""
    return -(-weight * feerate_per_kw // 1000)
