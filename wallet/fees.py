"""Fee arithmetic: rates in satoshi per 1,000 weight units (sat/kw) inside, other units at the edges only.

Fees round up, so that a transaction never falls short of the rate that was asked for.
"""

from __future__ import annotations

from typing import Final

FEERATE_FLOOR_SAT_PER_KW: Final = 253
"""The least rate that Bitcoin Core's default minimum of 1 sat/vB lets through: 250 would round below it for
transactions whose weight is no multiple of four (BOLT 3, "Fees")."""
CREDIBLE_FEERATE_SAT_PER_KW: Final = 1_000_000
"""4,000 sat/vB: more than any block of Bitcoin's history asked for. An estimate above it is a mistake."""
INCREMENTAL_RELAY_SAT_PER_KVB: Final = 1_000
"""Bitcoin Core's default -incrementalrelayfee: a replacement pays this for its own size on top (BIP 125, rule 4)."""
DUST_RELAY_SAT_PER_KVB: Final = 3_000
"""Bitcoin Core's default -dustrelayfee."""
_SAT_PER_BTC: Final = 100_000_000


def weight_to_vsize(weight: int) -> int:
    """Virtual bytes of a weight, rounded up (BIP 141)."""
    return (weight + 3) // 4


def fee_for_weight(feerate_sat_per_kw: int, weight: int) -> int:
    """Fee in satoshi, rounded up."""
    return -(-feerate_sat_per_kw * weight // 1000)


def fee_for_tx(feerate_sat_per_kw: int, weight: int) -> int:
    """Fee in satoshi of a whole transaction: by whole virtual bytes, as Bitcoin Core compares it with its minimum."""
    return fee_for_weight(feerate_sat_per_kw, 4 * weight_to_vsize(weight))


def feerate_of(fee_sat: int, weight: int) -> int:
    """The rate (sat/kw, rounded down) that a fee pays for a weight."""
    return fee_sat * 1000 // weight


def sat_per_kw_from_vbyte(sat_per_vbyte: float) -> int:
    """sat/kw of sat/vB, rounded up: 1 sat/vB is 250 sat/kw."""
    return -int(-sat_per_vbyte * 250 // 1)


def sat_per_vbyte(feerate_sat_per_kw: int) -> float:
    """sat/vB of sat/kw, for people to read."""
    return feerate_sat_per_kw / 250


def sat_per_kw_from_kvb(sat_per_kvb: int) -> int:
    """sat/kw of sat/kvB (what bitcoind speaks, times 10^8), rounded up."""
    return -(-sat_per_kvb // 4)


def replacement_fee_sat(replaced_fees_sat: int, vsize: int, incremental_sat_per_kvb: int) -> int:
    """The least fee of a replacement of `vsize` virtual bytes (BIP 125, rules 3 and 4)."""
    return replaced_fees_sat + -(-incremental_sat_per_kvb * vsize // 1000)


def dust_threshold_sat(script_pubkey: bytes, dust_relay_sat_per_kvb: int = DUST_RELAY_SAT_PER_KVB) -> int:
    """The least value (sat) of an output that Bitcoin Core relays: what creating and spending it costs.

    As GetDustThreshold in Bitcoin Core: the output's size, and 67 virtual bytes to spend a witness output or 148 any
    other. 294 for P2WPKH, 330 for P2TR and P2WSH, 540 for P2SH, 546 for P2PKH (BOLT 3, "Dust Limits").
    """
    if script_pubkey[:1] == b"\x6a" or len(script_pubkey) > 10_000:
        return 0
    n = len(script_pubkey)
    size = 8 + (1 if n < 0xFD else 3) + n
    is_witness = (
        4 <= n <= 42 and script_pubkey[1] == n - 2 and (script_pubkey[0] == 0 or 0x51 <= script_pubkey[0] <= 0x60)
    )
    size += 32 + 4 + 1 + (107 // 4 if is_witness else 107) + 4
    return dust_relay_sat_per_kvb * size // 1000
