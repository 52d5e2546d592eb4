"""From what is to be paid to an unsigned transaction: pure, but for the random order of inputs and outputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from wallet.bitcoin import SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import Network, address_of
from wallet.bitcoin.script import is_unspendable
from wallet.bitcoin.tx import MAX_MONEY_SAT
from wallet.coins import Coin
from wallet.errors import DustOutput, InsufficientFunds, InvalidAmount, InvalidFeeRate, TransactionTooLarge, WalletError
from wallet.fees import FEERATE_FLOOR_SAT_PER_KW, dust_threshold_sat, sat_per_vbyte
from wallet.keys import AddressKind
from wallet.selection import (
    MAX_STANDARD_WEIGHT,
    Candidate,
    Selection,
    Shortfall,
    Target,
    effective_value,
    select,
)

FEERATE_CEILING_SAT_PER_KW: Final = 2_500_000
"""10,000 sat/vB: more than was ever paid for a whole block, so a mistake of units."""


@dataclass(frozen=True, slots=True)
class ForeignInput:
    """An input that somebody else completes. `input_weight` is its whole weight with the witness it will have."""

    outpoint: OutPoint
    txout: TxOut
    input_weight: int
    sequence: int = SEQUENCE_RBF


@dataclass(frozen=True, slots=True)
class Request:
    """What a transaction is to be.

    `drain_to` gets all that is left instead of change. `required` coins are spent in any case, `foreign` inputs come
    first in the transaction. `extra_fee_sat` is paid beyond the transaction's own weight (for an ancestor),
    `min_fee_sat` in all. `keep_back_sat` must be left to the wallet.
    """

    outputs: tuple[TxOut, ...]
    feerate_sat_per_kw: int
    drain_to: bytes | None = None
    required: tuple[Coin, ...] = ()
    foreign: tuple[ForeignInput, ...] = ()
    extra_fee_sat: int = 0
    min_fee_sat: int = 0
    keep_back_sat: int = 0
    version: int = 2
    locktime: int = 0
    max_weight: int = MAX_STANDARD_WEIGHT
    change_kind: AddressKind = AddressKind.P2TR


@dataclass(frozen=True, slots=True)
class Draft:
    """An unsigned transaction. `coins[i]` is the wallet's coin that input i spends, or None for a foreign input;
    `spent` are the outputs that all inputs spend. `elastic_vout`: change, or the output that drains the wallet."""

    tx: Tx
    coins: tuple[Coin | None, ...]
    spent: tuple[TxOut, ...]
    fee_sat: int
    change_vout: int | None
    elastic_vout: int | None


def check_request(request: Request, network: Network) -> None:
    """Raises InvalidFeeRate, InvalidAmount or DustOutput with a sentence about what cannot be."""
    rate = request.feerate_sat_per_kw
    if rate < FEERATE_FLOOR_SAT_PER_KW:
        raise InvalidFeeRate(
            f"a fee rate of {sat_per_vbyte(rate):g} sat/vB ({rate} sat/kw) is not relayed: "
            f"give at least {sat_per_vbyte(FEERATE_FLOOR_SAT_PER_KW):g} sat/vB"
        )
    if rate > FEERATE_CEILING_SAT_PER_KW:
        raise InvalidFeeRate(
            f"a fee rate of {sat_per_vbyte(rate):,.0f} sat/vB can only be a mistake: "
            f"at most {sat_per_vbyte(FEERATE_CEILING_SAT_PER_KW):,.0f} sat/vB are paid"
        )
    for txout in request.outputs:
        where = address_of(txout.script_pubkey, network) or f"script {txout.script_pubkey.hex()}"
        if txout.value_sat < 0 or (txout.value_sat == 0 and not is_unspendable(txout.script_pubkey)):
            raise InvalidAmount(f"{txout.value_sat} sat cannot be paid to {where}: the amount must be positive")
        if txout.value_sat > MAX_MONEY_SAT:
            raise InvalidAmount(f"{txout.value_sat} sat are more than there will ever be")
        threshold = dust_threshold_sat(txout.script_pubkey)
        if txout.value_sat < threshold:
            raise DustOutput(txout.value_sat, threshold, where)


def build(coins: Sequence[Coin], request: Request, new_change_script: Callable[[], bytes], rng: random.Random) -> Draft:
    """Choose coins and lay out the transaction. Raises InsufficientFunds, TransactionTooLarge, DustOutput."""
    required = set(request.required)
    candidates = [
        Candidate(coin, coin.value_sat, coin.path.kind.input_weight) for coin in coins if coin not in required
    ]
    if request.drain_to is not None:
        return _drain(candidates, request, request.drain_to, new_change_script, rng)
    least_change = 0 if request.outputs else 1  # a transaction has at least one output
    target = _target(request, request.outputs, min_change_sat=least_change)
    selection = _choose(candidates, request, target, rng)
    chosen = [*request.required, *_coins_of(selection)]
    if not chosen and not request.foreign:
        raise InvalidAmount("there is nothing to pay")
    outputs = list(request.outputs)
    change_vout = None
    if selection.change_sat:
        change_vout = rng.randrange(len(outputs) + 1)
        outputs.insert(change_vout, TxOut(selection.change_sat, new_change_script()))
    return _lay_out(chosen, request, outputs, selection.fee_sat, change_vout, change_vout, rng)


def spendable_sat(coins: Sequence[Coin], request: Request, script_length: int) -> int:
    """The most (sat) that one more output, with a script of so many bytes, could get."""
    candidates = [Candidate(coin, coin.value_sat, coin.path.kind.input_weight) for coin in coins]
    target = _target(request, [*request.outputs, TxOut(0, bytes(script_length))])
    return max(0, _drained(candidates, request, target)[1])


def _target(request: Request, outputs: Sequence[TxOut], **changes: int) -> Target:
    given = [coin.value_sat for coin in request.required] + [item.txout.value_sat for item in request.foreign]
    weights = [coin.path.kind.input_weight for coin in request.required] + [i.input_weight for i in request.foreign]
    kind = request.change_kind
    return Target(
        outputs_sat=sum(txout.value_sat for txout in outputs) - sum(given),
        outputs_weight=4 * sum(len(txout.serialize()) for txout in outputs),
        output_count=len(outputs),
        feerate_sat_per_kw=request.feerate_sat_per_kw,
        change_weight=kind.output_weight,
        change_spend_weight=kind.input_weight,
        change_dust_sat=_CHANGE_DUST_SAT[kind],
        required_weight=sum(weights),
        required_inputs=len(weights),
        extra_fee_sat=request.extra_fee_sat,
        min_fee_sat=request.min_fee_sat,
        max_weight=request.max_weight,
        **changes,
    )


_CHANGE_DUST_SAT: Final = {
    AddressKind.P2TR: dust_threshold_sat(b"\x51\x20" + bytes(32)),
    AddressKind.P2WPKH: dust_threshold_sat(b"\x00\x14" + bytes(20)),
}


def _choose(candidates: list[Candidate], request: Request, target: Target, rng: random.Random) -> Selection:
    """A selection that leaves what is kept back: in other coins, or failing that, in the change."""
    total = sum(candidate.value_sat for candidate in candidates)
    answer = select(candidates, target, rng)
    keep_back = request.keep_back_sat
    if isinstance(answer, Selection) and keep_back:
        left = total - sum(candidate.value_sat for candidate in answer.chosen) + answer.change_sat
        if left < keep_back:
            answer = select(candidates, _target(request, request.outputs, min_change_sat=keep_back), rng)
    if isinstance(answer, Selection):
        return answer
    raise _refusal(answer, request, target)


def _refusal(missing: Shortfall, request: Request, target: Target) -> WalletError:
    own = sum(coin.value_sat for coin in request.required)
    if missing.too_heavy:
        return TransactionTooLarge(
            f"the coins needed would make a transaction heavier than {request.max_weight} weight units: "
            "send less, or gather small coins first by sending them to yourself"
        )
    return InsufficientFunds(missing.have_sat + own, target.outputs_sat + own, missing.fee_sat, request.keep_back_sat)


def _drained(candidates: Sequence[Candidate], request: Request, target: Target) -> tuple[list[Candidate], int, int]:
    """(coins worth spending, what one more output would get of them, fee)."""
    rate = request.feerate_sat_per_kw
    worth = [candidate for candidate in candidates if effective_value(candidate, rate) > 0]
    worth.sort(key=lambda candidate: -candidate.value_sat)
    kept = request.keep_back_sat > 0
    while True:
        weight = sum(candidate.input_weight for candidate in worth)
        if not worth or target.weight(weight, len(worth), kept) <= request.max_weight:
            break
        worth.pop()
    fee = target.fee(weight, len(worth), kept)
    total = sum(candidate.value_sat for candidate in worth)
    return worth, total - target.outputs_sat - fee - request.keep_back_sat, fee


def _drain(
    candidates: Sequence[Candidate],
    request: Request,
    script_pubkey: bytes,
    new_change_script: Callable[[], bytes],
    rng: random.Random,
) -> Draft:
    target = _target(request, [*request.outputs, TxOut(0, script_pubkey)])
    worth, amount, fee = _drained(candidates, request, target)
    threshold = dust_threshold_sat(script_pubkey)
    if amount < threshold:
        have = sum(candidate.value_sat for candidate in worth) + sum(coin.value_sat for coin in request.required)
        need = sum(txout.value_sat for txout in request.outputs) + threshold
        raise InsufficientFunds(have, need, fee, request.keep_back_sat)
    outputs = [*request.outputs, TxOut(amount, script_pubkey)]
    elastic, change_vout = len(outputs) - 1, None
    if request.keep_back_sat:
        elastic = change_vout = len(outputs)
        outputs.append(TxOut(request.keep_back_sat, new_change_script()))
    coins = [*request.required, *_coins(worth)]
    return _lay_out(coins, request, outputs, fee, change_vout, elastic, rng)


def replacement(
    original: Tx,
    coins: Sequence[Coin],
    elastic_vout: int,
    target_fee_sat: int,
) -> Draft | None:
    """The same inputs and outputs, with the elastic output paying a higher fee; None if it would become dust."""
    spent = tuple(coin.txout for coin in coins)
    elastic = original.outputs[elastic_vout]
    others = sum(txout.value_sat for txout in original.outputs) - elastic.value_sat
    value = sum(txout.value_sat for txout in spent) - others - target_fee_sat
    if value < dust_threshold_sat(elastic.script_pubkey):
        return None
    outputs = list(original.outputs)
    outputs[elastic_vout] = elastic._replace(value_sat=value)
    inputs = tuple(txin._replace(witness=()) for txin in original.inputs)
    tx = original.replace(inputs=inputs, outputs=tuple(outputs))
    return Draft(tx, tuple(coins), spent, target_fee_sat, elastic_vout, elastic_vout)


def _coins(candidates: Sequence[Candidate]) -> list[Coin]:
    coins = [candidate.key for candidate in candidates]
    return [coin for coin in coins if isinstance(coin, Coin)]


def _coins_of(selection: Selection) -> list[Coin]:
    return _coins(selection.chosen)


def _lay_out(
    coins: list[Coin],
    request: Request,
    outputs: Sequence[TxOut],
    fee_sat: int,
    change_vout: int | None,
    elastic_vout: int | None,
    rng: random.Random,
) -> Draft:
    rng.shuffle(coins)
    inputs = [TxIn(item.outpoint, sequence=item.sequence) for item in request.foreign]
    inputs += [TxIn(coin.outpoint, sequence=SEQUENCE_RBF) for coin in coins]
    spent = (*(item.txout for item in request.foreign), *(coin.txout for coin in coins))
    tx = Tx(request.version, tuple(inputs), tuple(outputs), request.locktime)
    nobody: tuple[Coin | None, ...] = (None,) * len(request.foreign)
    return Draft(tx, (*nobody, *coins), spent, fee_sat, change_vout, elastic_vout)
