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
    encode,
    make_tx,
    shares,
    signatures_of,
)

Mode = Literal["blind", "own"]
DEFAULT_LADDER_PER_KW = (253, 1_000, 2_500, 6_250, 16_000, 40_000)
"""1 to 160 sat/vB: each pays for replacing the one before (BIP 125, rule 4)."""
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
        ladder = ladder[1 - len(ladder) % 2 :: 2] if len(ladder) > 2 else ladder[1:]


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
    # Nobody else can take `to_remote`: there is no hurry, and fewer steps will do.
    ladder = terms.ladder_per_kw[::2] if terms.mode == "own" else terms.ladder_per_kw
    rungs = []
    for feerate in ladder:
        split = shares(penalties, feerate, kit.sweep_script, terms.reward_script, terms.reward_permille)
        if split is None or split.fee_sat > budget_sat:
            break
        tx = make_tx(outpoints, penalties, kit.sweep_script, split.client_sat, terms.reward_script, split.reward_sat)
        signatures = b"".join(signatures_of(tx, penalties, secrets))
        rungs.append(Rung(feerate, split.client_sat, split.reward_sat, signatures))
    return Bundle(places, tuple(rungs))
