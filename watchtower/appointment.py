"""From what a client knows of a revoked commitment to what its tower stores: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import Struct, structs

from wallet.bitcoin.tx import OutPoint
from watchtower.blob import locator_of, seal
from watchtower.justice import (
    VERSION,
    Bundle,
    Justice,
    Penalty,
    Rung,
    all_shares,
    encode,
    make_tx,
    outputs_of,
    signatures_of,
)

Mode = Literal["blind", "own"]
DEFAULT_LADDER_PER_KW = (253, 1_000, 2_500, 6_250, 16_000, 40_000)
"""1 to 160 sat/vB: each pays for replacing the one before (BIP 125, rule 4)."""
MANY_OUTPUTS = 8
"""A transaction that takes more is signed at every other fee rate: signatures are what a blob costs."""
MAX_FEE_PERMILLE = 900
"""At most this share of what a transaction takes goes to miners."""


class JusticeKit(Struct, frozen=True):
    """All that it takes to punish one revoked commitment, which has the id `txid` (32 bytes, internal order).

    `outputs` are those worth taking: the cheater's `to_local` and all HTLC outputs, which `revocation_secret` signs
    for, and `to_remote`, which `payment_secret` signs for (empty if there is none). `second_stage_script` is the
    witness script of the outputs of the cheater's HTLC transactions. `sweep_script` is where the client wants the
    money.
    """

    txid: bytes
    outputs: tuple[Penalty, ...]
    revocation_secret: bytes
    payment_secret: bytes
    second_stage_script: bytes
    to_self_delay_blocks: int
    sweep_script: bytes


class Terms(Struct, frozen=True):
    """What was agreed with the tower: part of what a blob is made from."""

    mode: Mode
    reward_permille: int = 0
    reward_script: bytes = b""
    ladder_per_kw: tuple[int, ...] = DEFAULT_LADDER_PER_KW


class Appointment(NamedTuple):
    """What the tower stores: 16 bytes, and the encrypted `Justice`."""

    locator: bytes
    blob: bytes


def make_appointment(kit: JusticeKit, terms: Terms) -> Appointment:
    """The same bytes for the same arguments.

    Own mode: the revocation key, and `to_remote` signed beforehand, because its key is that of all the channel's
    commitments. Blind mode: one transaction for everything, and for when some HTLC was taken first one for `to_local`
    and `to_remote` and one for each HTLC.
    """
    return Appointment(locator_of(kit.txid), seal(kit.txid, encode(make_justice(kit, terms))))


def fit_appointment(kit: JusticeKit, terms: Terms, max_blob_bytes: int) -> Appointment:
    """Like `make_appointment`, with fewer fee rates where the blob would be too large: first every other one, at last
    the highest alone. Raises ValueError if that does not help."""
    ladder = terms.ladder_per_kw
    while True:
        made = make_appointment(kit, structs.replace(terms, ladder_per_kw=ladder))
        if len(made.blob) <= max_blob_bytes:
            return made
        if len(ladder) < 2 or terms.mode == "own":
            raise ValueError(f"a blob of {len(made.blob)} bytes is more than the {max_blob_bytes} that the tower takes")
        ladder = every_other(ladder)


def make_justice(kit: JusticeKit, terms: Terms) -> Justice:
    """The content of the blob."""
    own = terms.mode == "own"
    return Justice(
        VERSION,
        kit.sweep_script,
        terms.reward_script if terms.reward_permille else b"",
        terms.reward_permille,
        kit.to_self_delay_blocks,
        kit.outputs,
        tuple(_bundle(kit, terms, places) for places in _sets(kit.outputs, own) if places),
        kit.revocation_secret if own else b"",
        kit.second_stage_script if own else b"",
    )


def _sets(outputs: Sequence[Penalty], own: bool) -> list[tuple[int, ...]]:
    """Which outputs are taken together by pre-signed transactions: larger sets first."""
    places = range(len(outputs))
    if own:
        return [tuple(place for place in places if outputs[place].kind == "to_remote")]
    htlcs = [place for place in places if outputs[place].kind == "htlc"]
    core = tuple(place for place in places if outputs[place].kind != "htlc")
    if not htlcs:
        return [core]
    singles: list[tuple[int, ...]] = [(place,) for place in htlcs]
    return [tuple(places), core, *singles] if len(places) > 1 else singles


def _bundle(kit: JusticeKit, terms: Terms, places: tuple[int, ...]) -> Bundle:
    penalties = [kit.outputs[place] for place in places]
    outpoints = [OutPoint(kit.txid, penalty.vout) for penalty in penalties]
    secrets = [kit.payment_secret if p.kind == "to_remote" else kit.revocation_secret for p in penalties]
    budget_sat = sum(penalty.amount_sat for penalty in penalties) * MAX_FEE_PERMILLE // 1000
    ladder = _ladder(terms, penalties)
    script, reward = kit.sweep_script, terms.reward_script
    steps = []
    for feerate, split in zip(
        ladder, all_shares(penalties, ladder, script, reward, terms.reward_permille), strict=True
    ):
        if split is None or split.fee_sat > budget_sat:
            break
        steps.append((feerate, split.client_sat, split.reward_sat))
    if not steps:
        return Bundle(places, ())
    variants = [outputs_of(script, client_sat, reward, reward_sat) for _, client_sat, reward_sat in steps]
    tx = make_tx(outpoints, penalties, script, 0, reward, 0)
    signatures = signatures_of(tx, penalties, secrets, variants)
    return Bundle(places, tuple(Rung(*step, b"".join(each)) for step, each in zip(steps, signatures, strict=True)))


def _ladder(terms: Terms, penalties: Sequence[Penalty]) -> tuple[int, ...]:
    """The fee rates at which a set of outputs is signed for.

    In own mode it is `to_remote` alone, which nobody else can take: there is no hurry, and fewer steps will do. Each
    HTLC alone is the second try, when the cheater was faster with another one, and there may be hundreds of them.
    """
    if terms.mode == "own":
        return terms.ladder_per_kw[::2]
    if len(penalties) > MANY_OUTPUTS or all(penalty.kind == "htlc" for penalty in penalties):
        return every_other(terms.ladder_per_kw)
    return terms.ladder_per_kw


def every_other(ladder_per_kw: tuple[int, ...]) -> tuple[int, ...]:
    """Half of the fee rates, the highest among them."""
    return ladder_per_kw[1 - len(ladder_per_kw) % 2 :: 2]
