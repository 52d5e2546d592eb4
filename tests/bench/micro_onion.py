"""Onions and invoices, one operation at a time: `cases` for the table of `make bench`."""

from __future__ import annotations

from collections.abc import Callable

from channeld.bolt.invoice import Invoice, decode_invoice, encode_invoice
from channeld.bolt.onion.attribution import add_attribution
from channeld.bolt.onion.blinding import EncryptedData, create_blinded_path
from channeld.bolt.onion.failures import IncorrectOrUnknownPaymentDetails, encode_failure
from channeld.bolt.onion.messages import OnionMessagePayload, build_message_onion, read_message_onion
from channeld.bolt.onion.payment import (
    PaymentPayload,
    build_payment_onion,
    final_payload,
    forward_payload,
    read_payment_onion,
)
from channeld.bolt.onion.returns import create_failure, read_failure, relay_failure
from channeld.bolt.onion.sphinx import peel_onion
from wallet.bitcoin.address import REGTEST
from wallet.bitcoin.secp import pubkey_of

_SESSION_KEY = b"\x31" * 32
_PAYMENT_HASH = b"\x42" * 32
_SECRETS = [bytes([number]) * 32 for number in range(1, 21)]
_NODE_IDS = [pubkey_of(secret) for secret in _SECRETS]
_HTLC = (1_000_000, 800_200)


def _hops(count: int) -> list[tuple[bytes, PaymentPayload]]:
    hops = [(node_id, forward_payload(*_HTLC, 800_000 << 40)) for node_id in _NODE_IDS[: count - 1]]
    return [*hops, (_NODE_IDS[count - 1], final_payload(*_HTLC, b"\x07" * 32, _HTLC[0]))]


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Names and operations; each costs microseconds, at most a few milliseconds."""
    one, twenty = _hops(1), _hops(20)
    direct = build_payment_onion(one, _SESSION_KEY, _PAYMENT_HASH)
    routed = build_payment_onion(twenty, _SESSION_KEY, _PAYMENT_HASH)
    message = encode_failure(IncorrectOrUnknownPaymentDetails(_HTLC[0], 800_000))
    failure = create_failure(routed.shared_secrets[19], message, 1)
    for secret in reversed(routed.shared_secrets[:19]):
        failure = relay_failure(secret, failure, 1)
    plain = create_failure(direct.shared_secrets[0], message)
    invoice = Invoice(
        network=REGTEST,
        payment_hash=_PAYMENT_HASH,
        payment_secret=b"\x07" * 32,
        payee=_NODE_IDS[0],
        timestamp=1_700_000_000,
        amount_msat=_HTLC[0],
        description="1 cup coffee",
    )
    text = encode_invoice(invoice, _SECRETS[0])
    path = [(node_id, EncryptedData(short_channel_id=1)) for node_id in _NODE_IDS[:3]]
    created = create_blinded_path(path, _SESSION_KEY).path
    content = OnionMessagePayload(invoice_request=bytes(200))
    packet = build_message_onion(created, content, _SESSION_KEY)
    return [
        ("onion build, 1 hop", lambda: build_payment_onion(one, _SESSION_KEY, _PAYMENT_HASH)),
        ("onion build, 20 hops", lambda: build_payment_onion(twenty, _SESSION_KEY, _PAYMENT_HASH)),
        ("onion peel, final hop", lambda: peel_onion(direct.packet, _SECRETS[0], _PAYMENT_HASH)),
        ("onion peel, 1st of 20 hops", lambda: peel_onion(routed.packet, _SECRETS[0], _PAYMENT_HASH)),
        (
            "onion read, final hop",
            lambda: read_payment_onion(direct.packet, _PAYMENT_HASH, *_HTLC, _SECRETS[0]),
        ),
        (
            "onion read, 1st of 20 hops",
            lambda: read_payment_onion(routed.packet, _PAYMENT_HASH, *_HTLC, _SECRETS[0]),
        ),
        ("failure create", lambda: create_failure(direct.shared_secrets[0], message)),
        ("failure relay", lambda: relay_failure(direct.shared_secrets[0], plain)),
        ("failure relay, attributed", lambda: relay_failure(direct.shared_secrets[0], failure, 1)),
        ("failure read, 1 hop", lambda: read_failure(direct.shared_secrets, plain)),
        ("failure read, 20 hops, attributed", lambda: read_failure(routed.shared_secrets, failure)),
        ("fulfil attribution", lambda: add_attribution(direct.shared_secrets[0], None, 1)),
        ("blinded path create, 3 hops", lambda: create_blinded_path(path, _SESSION_KEY)),
        ("onion message build, 3 hops", lambda: build_message_onion(created, content, _SESSION_KEY)),
        (
            "onion message read, to pass it on",
            lambda: read_message_onion(packet, created.first_path_key, _SECRETS[0]),
        ),
        ("invoice encode and sign", lambda: encode_invoice(invoice, _SECRETS[0])),
        ("invoice decode and recover", lambda: decode_invoice(text)),
    ]
