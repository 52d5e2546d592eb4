"""What a blob holds, and the transactions that come of it. Nothing here is about Lightning: outputs with witness
scripts, keys that sign for them, and where the money goes.

Blind: every transaction is signed beforehand, once per fee rate. Own: the revocation key is there, so that any set of
outputs can be spent at any fee rate, among them those of the cheater's own transactions on top of the breach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from wallet.bitcoin.encoding import compact_size, hash160
from wallet.bitcoin.script import p2wpkh, p2wpkh_script_code, p2wsh
from wallet.bitcoin.secp import InvalidKey, compact_to_der, is_valid_secret, pubkey_of, sign, verify_once
from wallet.bitcoin.sighash import SIGHASH_ALL, SegwitV0Inputs, SighashCache, segwit_v0_sighash
from wallet.bitcoin.tx import SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut
from wallet.fees import dust_threshold_sat, fee_for_tx

VERSION = 1
SIGNATURE_BYTES = 72
"""Of a DER signature with low S and its sighash byte, at most."""
MAX_REWARD_PERMILLE = 500
ELSEWHERE_PERMILLE = 100
"""Client and towers leave each other's transactions alone, if at most this share of what is taken goes to other scripts
than the client's: a tower's reward. More looks like a thief with a copy of the key."""
NEAR_BLOCKS = 6
"""They do not rely on each other so few blocks before the cheater may take an output for good."""

MAX_OUTPUTS: Final = 2 * 483 + 2
"""Of a commitment that are worth taking (BOLT 2, `max_accepted_htlcs`): HTLCs of both sides, and both balances."""
MAX_BUNDLES: Final = MAX_OUTPUTS + 2
MAX_RUNGS: Final = 16
"""More than any ladder has."""
MAX_SCRIPT_BYTES: Final = 520
"""More than any of BOLT 3's scripts has."""
MAX_ITEM_BYTES: Final = 80
"""Of a witness, for relay."""

OutputKind = Literal["to_local", "to_remote", "htlc", "htlc_tx"]


class InvalidJustice(ValueError):
    """A blob's content that does not fit the breach transaction, or no other."""


class Penalty(msgspec.Struct, frozen=True, array_like=True):
    """An output of the breach transaction that can be taken. `script` is its witness script, empty for P2WPKH (whose
    key is then all of `tail`); `tail` is what follows the signature in the witness, before the script. `sequence` is
    the input's nSequence."""

    kind: OutputKind
    vout: int
    amount_sat: int
    script: Annotated[bytes, Meta(max_length=MAX_SCRIPT_BYTES)]
    tail: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_ITEM_BYTES)], ...], Meta(max_length=2)]
    sequence: int = SEQUENCE_RBF

    @property
    def script_pubkey(self) -> bytes:
        """What the output pays to."""
        return p2wsh(self.script) if self.script else p2wpkh(self.tail[0])

    @property
    def input_weight(self) -> int:
        """Of the input with its witness, the signature at its largest."""
        items = [SIGNATURE_BYTES, *map(len, self.tail), *([len(self.script)] if self.script else [])]
        return 4 * 41 + 1 + sum(len(compact_size(size)) + size for size in items)

    def sighash(self, tx: Tx, index: int, cache: SighashCache) -> bytes:
        """What input `index` of `tx` signs."""
        return segwit_v0_sighash(tx, index, self.script_code, self.amount_sat, SIGHASH_ALL, cache)

    @property
    def script_code(self) -> bytes:
        """What BIP 143 calls so."""
        return self.script or p2wpkh_script_code(hash160(self.tail[0]))

    def witness(self, signature: bytes) -> tuple[bytes, ...]:
        """With a 64-byte compact signature."""
        script = (self.script,) if self.script else ()
        return (compact_to_der(signature) + bytes((SIGHASH_ALL,)), *self.tail, *script)

    def is_taken_by(self, witness: Sequence[bytes]) -> bool:
        """Whether a witness takes the output as this penalty does."""
        return tuple(witness[1:]) == (*self.tail, *((self.script,) if self.script else ()))


class Rung(msgspec.Struct, frozen=True, array_like=True):
    """A transaction of the ladder: what it pays to client and tower (0: nothing), and 64 bytes of signature for each
    input."""

    feerate_per_kw: int
    client_sat: int
    reward_sat: int
    signatures: bytes


class Bundle(msgspec.Struct, frozen=True, array_like=True):
    """Outputs (by their place in `Justice.outputs`) that one pre-signed transaction takes, at rising fee rates."""

    places: Annotated[tuple[int, ...], Meta(max_length=MAX_OUTPUTS)]
    rungs: Annotated[tuple[Rung, ...], Meta(max_length=MAX_RUNGS)]


class Justice(msgspec.Struct, frozen=True, array_like=True):
    """The content of a blob, which anybody may have made: there is a limit to what a tower has to go through for it, in
    every block that the breach is open. `revocation_secret` and `second_stage_script` (the witness script of outputs
    of the cheater's HTLC transactions) are empty in blind mode."""

    version: int
    sweep_script: bytes
    reward_script: bytes
    reward_permille: int
    to_self_delay_blocks: int
    outputs: Annotated[tuple[Penalty, ...], Meta(max_length=MAX_OUTPUTS)]
    bundles: Annotated[tuple[Bundle, ...], Meta(max_length=MAX_BUNDLES)]
    revocation_secret: bytes = b""
    second_stage_script: bytes = b""

    @property
    def is_own(self) -> bool:
        """Whether the tower can sign by itself."""
        return bool(self.revocation_secret)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Justice)


def encode(justice: Justice) -> bytes:
    """MessagePack."""
    return _encoder.encode(justice)


def decode(content: bytes) -> Justice:
    """From `encode`. Raises InvalidJustice."""
    try:
        justice = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJustice(f"the blob's content is not readable: {error}") from error
    if justice.version != VERSION:
        raise InvalidJustice(f"the blob has version {justice.version}, this tower knows {VERSION}")
    return justice


def check(justice: Justice, breach: Tx) -> None:
    """Whether everything fits the breach transaction, and something can be taken. Raises InvalidJustice."""
    if not justice.outputs:
        raise InvalidJustice("the blob names no output")
    places = [penalty.vout for penalty in justice.outputs]
    if len(set(places)) != len(places):
        raise InvalidJustice("the blob names an output twice")
    for penalty in justice.outputs:
        _check_penalty(penalty, breach)
    if not 0 <= justice.to_self_delay_blocks <= 0xFFFF:
        raise InvalidJustice("the cheater's delay is none")
    if justice.revocation_secret and not is_valid_secret(justice.revocation_secret):
        raise InvalidJustice("the revocation key is none")
    if not 0 <= justice.reward_permille <= MAX_REWARD_PERMILLE:
        raise InvalidJustice("the reward is out of bounds")
    if not 1 <= len(justice.sweep_script) <= 42 or len(justice.reward_script) > 42:
        raise InvalidJustice("the blob pays to no known kind of script")
    if sum(len(bundle.places) for bundle in justice.bundles) > 2 * len(justice.outputs):
        raise InvalidJustice("the blob's transactions take the same outputs again and again")
    for bundle in justice.bundles:
        _check_bundle(justice, bundle)
    if not _takes_anything(justice, breach.txid()):
        raise InvalidJustice("nothing in the blob is signed with the keys that the outputs ask for")


def _check_penalty(penalty: Penalty, breach: Tx) -> None:
    if not 0 <= penalty.vout < len(breach.outputs):
        raise InvalidJustice(f"the breach transaction has no output {penalty.vout}")
    if not penalty.script and (len(penalty.tail) != 1 or len(penalty.tail[0]) != 33):
        raise InvalidJustice(f"output {penalty.vout} has neither script nor key")
    if breach.outputs[penalty.vout] != TxOut(penalty.amount_sat, penalty.script_pubkey):
        raise InvalidJustice(f"output {penalty.vout} of the breach transaction is another one")
    if not 0 <= penalty.sequence <= 0xFFFF_FFFF:
        raise InvalidJustice(f"output {penalty.vout} is to be spent with a sequence that is none")


def _check_bundle(justice: Justice, bundle: Bundle) -> None:
    if not bundle.places or any(not 0 <= place < len(justice.outputs) for place in bundle.places):
        raise InvalidJustice("a transaction of the blob takes an output that the blob does not name")
    if len(set(bundle.places)) != len(bundle.places):
        raise InvalidJustice("a transaction of the blob takes an output twice")
    total_sat = sum(justice.outputs[place].amount_sat for place in bundle.places)
    for rung in bundle.rungs:
        if len(rung.signatures) != 64 * len(bundle.places):
            raise InvalidJustice("a transaction of the blob lacks signatures")
        if rung.client_sat <= 0 or rung.reward_sat < 0 or rung.client_sat + rung.reward_sat > total_sat:
            raise InvalidJustice("a transaction of the blob pays more than it takes, or nothing")


def _takes_anything(justice: Justice, breach_txid: bytes) -> bool:
    """Of each transaction that is signed beforehand, the dearest stands for all."""
    if justice.is_own and any(is_taken_with_key(justice, each) for each in justice.outputs if each.kind != "to_remote"):
        return True
    return any(
        is_signed_rung(justice, breach_txid, bundle, bundle.rungs[-1]) for bundle in justice.bundles if bundle.rungs
    )


def is_taken_with_key(justice: Justice, penalty: Penalty) -> bool:
    """Whether the revocation key that the blob tells is the one that the output asks for."""
    return pubkey_of(justice.revocation_secret) == _signer_of(penalty)


def is_signed_rung(justice: Justice, breach_txid: bytes, bundle: Bundle, rung: Rung) -> bool:
    """Whether all signatures of a pre-signed transaction are right."""
    penalties, tx, signatures = _rung_parts(justice, breach_txid, bundle, rung)
    return all(_signs(each, tx, i, s) for i, (each, s) in enumerate(zip(penalties, signatures, strict=True)))


def _signs(penalty: Penalty, tx: Tx, index: int, signature: bytes) -> bool:
    signer = _signer_of(penalty)
    try:
        return signer is not None and verify_once(signer, penalty.sighash(tx, index, SighashCache(tx)), signature)
    except InvalidKey:
        return False


def _signer_of(penalty: Penalty) -> bytes | None:
    """The key whose signature the penalty needs (BOLT 3's scripts), or None for a script of another form."""
    script, tail = penalty.script, penalty.tail
    if penalty.kind == "to_local":
        return script[2:35] if script[:2] == b"\x63\x21" and tail == (b"\x01",) else None
    if penalty.kind == "to_remote":
        return script[1:34] if script else tail[0]
    if penalty.kind == "htlc" and len(tail) == 1 and script[:3] == b"\x76\xa9\x14":
        return tail[0] if hash160(tail[0]) == script[3:23] else None
    return None


# --- transactions -------------------------------------------------------------------------------------------------


def weight_of(penalties: Sequence[Penalty], out_scripts: Sequence[bytes]) -> int:
    """Expected weight of a transaction from `penalties` to `out_scripts`."""
    outputs = sum(8 + 1 + len(script) for script in out_scripts)
    frame = 4 + len(compact_size(len(penalties))) + len(compact_size(len(out_scripts))) + outputs + 4
    return 4 * frame + 2 + sum(penalty.input_weight for penalty in penalties)


class Shares(msgspec.Struct, frozen=True):
    """Who gets what of a justice transaction."""

    client_sat: int
    reward_sat: int
    fee_sat: int
    weight: int


def shares(
    penalties: Sequence[Penalty],
    feerate_per_kw: int,
    sweep_script: bytes,
    reward_script: bytes = b"",
    reward_permille: int = 0,
    min_fee_sat: int = 0,
) -> Shares | None:
    """At a fee rate, and at least `min_fee_sat`; None if nothing above dust would be left for the client. The reward is
    a share of what is taken; where it would be dust there is none."""
    (split,) = all_shares(penalties, (feerate_per_kw,), sweep_script, reward_script, reward_permille, min_fee_sat)
    return split


def all_shares(
    penalties: Sequence[Penalty],
    feerates_per_kw: Sequence[int],
    sweep_script: bytes,
    reward_script: bytes = b"",
    reward_permille: int = 0,
    min_fee_sat: int = 0,
) -> list[Shares | None]:
    """`shares` at each of several fee rates."""
    total_sat = sum(penalty.amount_sat for penalty in penalties)
    reward_sat = total_sat * reward_permille // 1000 if reward_script else 0
    if reward_sat < dust_threshold_sat(reward_script or sweep_script):
        reward_sat = 0
    scripts = (sweep_script, reward_script) if reward_sat else (sweep_script,)
    weight = weight_of(penalties, scripts)
    dust_sat = dust_threshold_sat(sweep_script)
    found: list[Shares | None] = []
    for feerate_per_kw in feerates_per_kw:
        fee_sat = max(fee_for_tx(feerate_per_kw, weight), min_fee_sat)
        client_sat = total_sat - reward_sat - fee_sat
        found.append(Shares(client_sat, reward_sat, fee_sat, weight) if client_sat >= dust_sat else None)
    return found


def outputs_of(sweep_script: bytes, client_sat: int, reward_script: bytes, reward_sat: int) -> tuple[TxOut, ...]:
    """Of a justice transaction."""
    return (TxOut(client_sat, sweep_script), *((TxOut(reward_sat, reward_script),) if reward_sat else ()))


def make_tx(
    outpoints: Sequence[OutPoint],
    penalties: Sequence[Penalty],
    sweep_script: bytes,
    client_sat: int,
    reward_script: bytes,
    reward_sat: int,
) -> Tx:
    """Without witnesses."""
    inputs = tuple(
        TxIn(outpoint, b"", penalty.sequence) for outpoint, penalty in zip(outpoints, penalties, strict=True)
    )
    return Tx(2, inputs, outputs_of(sweep_script, client_sat, reward_script, reward_sat), 0)


def signatures_of(
    tx: Tx, penalties: Sequence[Penalty], secrets: Sequence[bytes], variants: Sequence[Sequence[TxOut]] = ()
) -> list[list[bytes]]:
    """For each of the `variants` of the outputs (none given: those that `tx` has) 64 bytes compact for each input."""
    inputs = SegwitV0Inputs(tx, [(penalty.script_code, penalty.amount_sat) for penalty in penalties])
    return [
        [sign(secret, digest) for secret, digest in zip(secrets, inputs.sighashes(outputs), strict=True)]
        for outputs in variants or (tx.outputs,)
    ]


def with_witnesses(tx: Tx, penalties: Sequence[Penalty], signatures: Sequence[bytes]) -> Tx:
    """The complete transaction."""
    return tx.replace(
        inputs=tuple(
            txin._replace(witness=penalty.witness(signature))
            for txin, penalty, signature in zip(tx.inputs, penalties, signatures, strict=True)
        )
    )


def _rung_parts(
    justice: Justice, breach_txid: bytes, bundle: Bundle, rung: Rung
) -> tuple[list[Penalty], Tx, list[bytes]]:
    """What it takes, the transaction without witnesses, and a signature for each input."""
    penalties = [justice.outputs[place] for place in bundle.places]
    outpoints = [OutPoint(breach_txid, penalty.vout) for penalty in penalties]
    tx = make_tx(outpoints, penalties, justice.sweep_script, rung.client_sat, justice.reward_script, rung.reward_sat)
    signatures = [rung.signatures[at : at + 64] for at in range(0, len(rung.signatures), 64)]
    return penalties, tx, signatures


def rung_tx(justice: Justice, breach_txid: bytes, bundle: Bundle, rung: Rung) -> Tx:
    """A pre-signed transaction, complete. Raises InvalidJustice if a signature is none."""
    penalties, tx, signatures = _rung_parts(justice, breach_txid, bundle, rung)
    try:
        return with_witnesses(tx, penalties, signatures)
    except ValueError as error:
        raise InvalidJustice("a signature in the blob is none") from error


def own_tx(
    justice: Justice,
    outpoints: Sequence[OutPoint],
    penalties: Sequence[Penalty],
    feerate_per_kw: int,
    min_fee_sat: int = 0,
) -> tuple[Tx, Shares] | None:
    """Takes any outputs with the revocation key; None if it would leave the client nothing."""
    split = shares(
        penalties,
        feerate_per_kw,
        justice.sweep_script,
        justice.reward_script,
        justice.reward_permille,
        min_fee_sat,
    )
    if split is None:
        return None
    tx = make_tx(outpoints, penalties, justice.sweep_script, split.client_sat, justice.reward_script, split.reward_sat)
    secrets = [justice.revocation_secret] * len(penalties)
    (signatures,) = signatures_of(tx, penalties, secrets)
    return with_witnesses(tx, penalties, signatures), split
