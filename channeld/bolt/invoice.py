"""BOLT 11 invoices: from text to a typed value and back.

Inside, text is a `bytes` of bech32 symbols (0..31). The checksum and the alphabet are embit's, whose loop over every
bit is unrolled into a table here; the stdlib's base 32 converts between symbols and bytes.

Where BOLT 11 contradicts itself: a field of fixed length (`p`, `s`, `h`, `n`) with another length "MUST fail the
payment", but the example "including fields which must be ignored" has such fields. Here they are ignored, and the
invoice is refused if no good field of a required type is left.

Source: BOLT 11, all of it. Amounts in msat, times in seconds.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

from embit import bech32

from channeld.bolt import features as feature_bits
from channeld.bolt.codec import Structure, structure
from channeld.bolt.features import FEATURES, Context, Feature, FeatureBits
from channeld.bolt.primitives import U16, U32, DecodeError, Point, ShortChannelId
from wallet.bitcoin import secp
from wallet.bitcoin.address import BY_NAME, Network, address_of
from wallet.bitcoin.script import OP_0, OP_1, is_p2pkh, is_p2sh, p2pkh, p2sh, push, witness_program

DEFAULT_EXPIRY_SECONDS = 3600
DEFAULT_MIN_FINAL_CLTV_EXPIRY_DELTA = 18
MAX_INVOICE_LENGTH = 7089
"""Characters; what fits the largest QR code, and what other nodes accept at most."""

DEFAULT_FEATURES = feature_bits.required(Feature.var_onion_optin, Feature.payment_secret)
SUPPORTED_FEATURES = frozenset(
    bit for feature, info in FEATURES.items() if Context.INVOICE in info.contexts for bit in (feature, feature | 1)
)
"""The bits of `9` that a payer built on this module understands."""

Signer = Callable[[bytes], bytes]
"""Signs a 32-byte digest: r (32 bytes) || s (32 bytes, low) || recovery id (1 byte)."""

_P, _S, _D, _M, _N, _H, _X, _C, _F, _R, _9 = 1, 16, 13, 27, 19, 23, 6, 24, 9, 3, 5
_FIXED_LENGTHS = {_P: 52, _S: 52, _H: 52, _N: 53}
_SINGLE = frozenset((_P, _S, _D, _M, _N, _H, _X, _C, _9))
_FIELD_NAMES = {_X: "x (expiry)", _C: "c (min_final_cltv_expiry_delta)", _9: "9 (features)"}
_TIMESTAMP_SYMBOLS = 7
_SIGNATURE_SYMBOLS = 104
_CHECKSUM_SYMBOLS = 6
_MAX_FIELD_SYMBOLS = 1023
_MAX_NUMBER = 0xFFFF_FFFF
_MAX_FIELD_BYTES = 639
_FALLBACK_P2PKH, _FALLBACK_P2SH = 17, 18
_ROUTE_HOP_SIZE = 51
_MAX_MSAT = 21_000_000 * 100_000_000_000
_MULTIPLIERS = {"": 100_000_000_000, "m": 100_000_000, "u": 100_000, "n": 100}

_ALPHABET = bech32.CHARSET.encode()
_BASE32 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_SYMBOLS = bytes(range(32))
_TEXT_TO_SYMBOLS = bytes(_ALPHABET.find(char) & 0xFF for char in range(256))
_SYMBOLS_TO_TEXT = bytes.maketrans(_SYMBOLS, _ALPHABET)
_SYMBOLS_TO_DIGITS = bytes.maketrans(_SYMBOLS, b"0123456789abcdefghijklmnopqrstuv")
_BASE32_TO_SYMBOLS = bytes.maketrans(_BASE32, _SYMBOLS)


class InvoiceError(ValueError):
    """An invoice that cannot be read, must not be paid, or cannot be made; the message is a sentence for the user."""


@structure
class RoutingHop(Structure):
    """One channel of a routing hint: `pubkey` is the node at its start."""

    pubkey: Point
    short_channel_id: ShortChannelId
    fee_base_msat: U32
    fee_proportional_millionths: U32
    cltv_expiry_delta: U16


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """What an invoice says. `payee` is the node id that signs or signed it.

    Exactly one of `description` and `description_hash` is set. `fallback_scripts` are output scripts, `routing_hints`
    lead from a public node to the payee. `payee_is_explicit`: the `n` field is there. `unknown_fields` are pairs
    (type, symbols 0..31) of what is not understood, in order; they are written again.
    """

    network: Network
    payment_hash: bytes
    payment_secret: bytes
    payee: bytes
    timestamp: int
    amount_msat: int | None = None
    description: str | None = None
    description_hash: bytes | None = None
    payment_metadata: bytes | None = None
    expiry_seconds: int = DEFAULT_EXPIRY_SECONDS
    min_final_cltv_expiry_delta: int = DEFAULT_MIN_FINAL_CLTV_EXPIRY_DELTA
    features: FeatureBits = DEFAULT_FEATURES
    fallback_scripts: tuple[bytes, ...] = ()
    routing_hints: tuple[tuple[RoutingHop, ...], ...] = ()
    payee_is_explicit: bool = False
    unknown_fields: tuple[tuple[int, bytes], ...] = ()

    @property
    def expires_at(self) -> int:
        """Unix time in seconds after which no payment should be tried."""
        return self.timestamp + self.expiry_seconds

    def is_expired(self, now: float) -> bool:
        """Whether the invoice is too old at `now` (unix time in seconds)."""
        return now > self.expires_at

    def has(self, feature: Feature) -> bool:
        """Whether the payee offers or requires a feature."""
        return feature_bits.has(self.features, feature)

    @property
    def fallback_addresses(self) -> tuple[str, ...]:
        """On-chain addresses of `fallback_scripts`, most preferred first."""
        addresses = (address_of(script, self.network) for script in self.fallback_scripts)
        return tuple(address for address in addresses if address is not None)


# --- symbols ------------------------------------------------------------------------------------------------------


def _to_int(symbols: bytes) -> int:
    return int(symbols.translate(_SYMBOLS_TO_DIGITS), 32) if symbols else 0


def _to_bytes(symbols: bytes) -> bytes:
    """Whole bytes of the symbols; bits left over are padding."""
    bits = 5 * len(symbols)
    return (_to_int(symbols) >> bits % 8).to_bytes(bits // 8, "big")


def _from_bytes(data: bytes) -> bytes:
    return base64.b32encode(data).rstrip(b"=").translate(_BASE32_TO_SYMBOLS)


def _from_int(value: int) -> bytes:
    """The fewest symbols for a number; none for 0."""
    symbols = bytearray()
    while value:
        symbols.append(value & 31)
        value >>= 5
    return bytes(reversed(symbols))


def _checksum_state(hrp: str, symbols: bytes) -> int:
    """`bech32.bech32_polymod` of both parts, eight times as fast: an invoice is long, and read with every payment."""
    state = 1
    for value in (*bech32.bech32_hrp_expand(hrp), *symbols):
        state = (state & 0x1FF_FFFF) << 5 ^ value ^ _CARRIES[state >> 25]
    return state


_CARRIES = [bech32.bech32_polymod([top, *bytes(6)]) ^ bech32.bech32_polymod(bytes(7)) for top in range(32)]
"""What each symbol that leaves the checksum's state by its upper end adds to it."""


def _digest(hrp: str, symbols: bytes) -> bytes:
    """What is signed: SHA256 of the human-readable part and the data, padded with zero bits to whole bytes."""
    bits = 5 * len(symbols)
    padding = -bits % 8
    data = (_to_int(symbols) << padding).to_bytes((bits + padding) // 8, "big")
    return sha256(hrp.encode() + data).digest()


# --- decoding -----------------------------------------------------------------------------------------------------


def decode_invoice(text: str, network: Network | None = None) -> Invoice:
    """Read and check an invoice, with or without `lightning:` before it.

    With a `network`, an invoice for another one is refused. Expiry is not looked at: there is no clock here.
    Raises InvoiceError. Costs about 105 us, half of it public key recovery.
    """
    hrp, symbols = _split(text)
    invoice_network, amount_msat = _read_hrp(hrp)
    if network is not None and invoice_network.name != network.name:
        raise InvoiceError(f"this invoice is for {invoice_network.name}, this node runs on {network.name}")
    if len(symbols) < _TIMESTAMP_SYMBOLS + _SIGNATURE_SYMBOLS:
        raise InvoiceError("the invoice is too short: part of it is missing")
    signed, signature = symbols[:-_SIGNATURE_SYMBOLS], _to_bytes(symbols[-_SIGNATURE_SYMBOLS:])
    fields = _read_fields(signed[_TIMESTAMP_SYMBOLS:])
    payee, payee_is_explicit = _read_payee(fields, _digest(hrp, signed), signature)
    single = fields.single
    if _P not in single:
        raise InvoiceError("the invoice has no valid payment hash")
    if _S not in single:
        raise InvoiceError("the invoice has no valid payment secret; it cannot be paid safely")
    if (_D in single) == (_H in single):
        raise InvoiceError("the invoice must have either a description or the hash of one, and not both")
    return Invoice(
        network=invoice_network,
        payment_hash=_to_bytes(single[_P]),
        payment_secret=_to_bytes(single[_S]),
        payee=payee,
        timestamp=_to_int(signed[:_TIMESTAMP_SYMBOLS]),
        amount_msat=amount_msat,
        description=_read_description(single[_D]) if _D in single else None,
        description_hash=_to_bytes(single[_H]) if _H in single else None,
        payment_metadata=_to_bytes(single[_M]) if _M in single else None,
        expiry_seconds=_read_number(single, _X, DEFAULT_EXPIRY_SECONDS),
        min_final_cltv_expiry_delta=_read_number(single, _C, DEFAULT_MIN_FINAL_CLTV_EXPIRY_DELTA),
        features=_read_features(single.get(_9, b"")),
        fallback_scripts=tuple(fields.fallback_scripts),
        routing_hints=tuple(fields.routing_hints),
        payee_is_explicit=payee_is_explicit,
        unknown_fields=tuple(fields.unknown),
    )


def _split(text: str) -> tuple[str, bytes]:
    """Human-readable part and symbols without the checksum, which was checked. BIP 173 without the length limit."""
    text = text.strip()
    if text[:10].lower() == "lightning:":
        text = text[10:]
    if len(text) > MAX_INVOICE_LENGTH:
        raise InvoiceError(f"an invoice has at most {MAX_INVOICE_LENGTH} characters, not {len(text)}")
    if text != text.lower() and text != text.upper():
        raise InvoiceError("an invoice is written all in lower case or all in upper case, not mixed")
    text = text.lower()
    if text.startswith(("lno1", "lni1", "lnr1")):
        raise InvoiceError(
            "this belongs to BOLT 12 (offers); a BOLT 11 invoice begins with lnbc, lntb, lntbs or lnbcrt"
        )
    hrp, separator, data = text.rpartition("1")
    if not separator or not hrp.startswith("ln") or not text.isascii():
        raise InvoiceError("this is not a Lightning invoice: those begin with lnbc, lntb, lntbs or lnbcrt")
    symbols = data.encode().translate(_TEXT_TO_SYMBOLS)
    if b"\xff" in symbols:
        raise InvoiceError("the invoice has a character that does not belong there")
    if _checksum_state(hrp, symbols) != bech32.BECH32_CONST:
        raise InvoiceError("the invoice's checksum is wrong: a character was changed or is missing")
    return hrp, symbols[:-_CHECKSUM_SYMBOLS]


_BY_PREFIX = {network.invoice_prefix: network for network in BY_NAME.values()}


def _read_hrp(hrp: str) -> tuple[Network, int | None]:
    """Network and amount of `ln<prefix><amount>`."""
    rest = hrp[2:]
    prefix = rest[: next((index for index, char in enumerate(rest) if char.isdigit()), len(rest))]
    network = _BY_PREFIX.get(prefix)
    if network is None:
        raise InvoiceError(f"the invoice is for a currency this node does not know: {prefix!r}")
    amount = rest[len(prefix) :]
    return network, _read_amount(amount) if amount else None


def _read_amount(amount: str) -> int:
    """msat of `<digits>[munp]`."""
    multiplier = "" if amount[-1].isdigit() else amount[-1]
    digits = amount[: len(amount) - len(multiplier)]
    if not digits.isdigit() or (multiplier != "p" and multiplier not in _MULTIPLIERS):
        raise InvoiceError(f"the invoice's amount {amount!r} is not a number with one of the multipliers m, u, n, p")
    if digits[0] == "0":
        raise InvoiceError(f"the invoice's amount {amount!r} is zero or begins with a zero")
    if len(digits) > 20:
        raise InvoiceError("the invoice asks for more bitcoin than there are")
    if multiplier == "p":
        if digits[-1] != "0":
            raise InvoiceError(f"the invoice's amount {amount!r} is no whole number of millisatoshi")
        msat = int(digits) // 10
    else:
        msat = int(digits) * _MULTIPLIERS[multiplier]
    if msat > _MAX_MSAT:
        raise InvoiceError("the invoice asks for more bitcoin than there are")
    return msat


@dataclass(slots=True)
class _Fields:
    """The tagged fields of one invoice, sorted by what becomes of them."""

    single: dict[int, bytes] = field(default_factory=dict)
    fallback_scripts: list[bytes] = field(default_factory=list)
    routing_hints: list[tuple[RoutingHop, ...]] = field(default_factory=list)
    unknown: list[tuple[int, bytes]] = field(default_factory=list)

    def add(self, type_: int, symbols: bytes) -> None:
        """File one field: of those that stand once, the first (and most preferred) counts."""
        if _FIXED_LENGTHS.get(type_, len(symbols)) != len(symbols):
            self.unknown.append((type_, symbols))
        elif type_ in _SINGLE and type_ not in self.single:
            self.single[type_] = symbols
        elif type_ == _R:
            self.routing_hints.append(_read_routing_hint(_to_bytes(symbols)))
        elif type_ == _F and (script := _read_fallback(symbols)) is not None:
            self.fallback_scripts.append(script)
        else:
            self.unknown.append((type_, symbols))


def _read_fields(symbols: bytes) -> _Fields:
    fields = _Fields()
    position, end = 0, len(symbols)
    while position < end:
        start = position + 3
        if start > end:
            raise InvoiceError("the invoice is damaged: a field is cut off")
        stop = start + symbols[position + 1] * 32 + symbols[position + 2]
        if stop > end:
            raise InvoiceError("the invoice is damaged: a field is longer than the rest of the invoice")
        fields.add(symbols[position], symbols[start:stop])
        position = stop
    return fields


def _read_payee(fields: _Fields, digest: bytes, signature: bytes) -> tuple[bytes, bool]:
    """Node id of the payee, and whether an `n` field named it; the signature is checked."""
    named = fields.single.get(_N)
    if named is not None:
        payee = _to_bytes(named)
        if secp.is_valid_pubkey(payee):
            if not secp.verify(payee, digest, signature[:64]):
                raise InvoiceError("the invoice's signature is not by the node it names, or not in its standard form")
            return payee, True
        fields.unknown.append((_N, named))
    recovered = secp.recover(digest, signature)
    if recovered is None:
        raise InvoiceError("the invoice's signature is not valid")
    return recovered, False


def _read_description(symbols: bytes) -> str:
    try:
        return _to_bytes(symbols).decode()
    except UnicodeDecodeError:
        raise InvoiceError("the invoice's description is not UTF-8 text") from None


def _read_number(single: dict[int, bytes], type_: int, default: int) -> int:
    symbols = single.get(type_)
    if symbols is None:
        return default
    if symbols[:1] == b"\x00":
        raise InvoiceError(f"the invoice's field {_FIELD_NAMES[type_]} begins with a zero")
    value = _to_int(symbols)
    if value > _MAX_NUMBER and type_ == _X:
        return _MAX_NUMBER  # 136 years: BOLT 11 has no limit, and nobody will wait longer
    if value > _MAX_NUMBER:
        raise InvoiceError(f"the invoice's field {_FIELD_NAMES[type_]} is absurdly large")
    return value


@lru_cache(maxsize=256)
def _read_features(symbols: bytes) -> FeatureBits:
    if symbols[:1] == b"\x00":
        raise InvoiceError(f"the invoice's field {_FIELD_NAMES[_9]} begins with a zero")
    value = _to_int(symbols)
    bits = feature_bits.decode_features(value.to_bytes((value.bit_length() + 7) // 8, "big"))
    _check_features(bits)
    return bits


def _check_features(bits: FeatureBits) -> None:
    """BOLT 11, "Feature Bits": unknown even bits and missing dependencies make an invoice unpayable."""
    unknown = sorted(bit for bit in bits if not bit & 1 and bit not in SUPPORTED_FEATURES)
    if unknown:
        listed = ", ".join(map(str, unknown))
        raise InvoiceError(f"the invoice requires a feature that this node does not know (bit {listed})")
    for feature, needed in feature_bits.missing_dependencies(bits):
        raise InvoiceError(f"the invoice sets the feature {feature.name} without {needed.name}, which that needs")


def _read_fallback(symbols: bytes) -> bytes | None:
    """Output script of an `f` field; None for a version or a length that means nothing."""
    if not symbols:
        return None
    version, program = symbols[0], _to_bytes(symbols[1:])
    if version == _FALLBACK_P2PKH and len(program) == 20:
        return p2pkh(program)
    if version == _FALLBACK_P2SH and len(program) == 20:
        return p2sh(program)
    if version == 0 and len(program) in (20, 32):
        return bytes((OP_0,)) + push(program)
    if 1 <= version <= 16 and 2 <= len(program) <= 40 and (version != 1 or len(program) == 32):
        return bytes((OP_1 + version - 1,)) + push(program)
    return None


def _read_routing_hint(data: bytes) -> tuple[RoutingHop, ...]:
    if not data or len(data) % _ROUTE_HOP_SIZE:
        raise InvoiceError("the invoice is damaged: a routing hint has the wrong length")
    try:
        hops = tuple(
            RoutingHop.from_bytes(data[start : start + _ROUTE_HOP_SIZE])
            for start in range(0, len(data), _ROUTE_HOP_SIZE)
        )
    except DecodeError:
        raise InvoiceError("the invoice is damaged: a routing hint has no valid public key") from None
    if not all(secp.is_valid_pubkey(hop.pubkey) for hop in hops):
        raise InvoiceError("the invoice is damaged: a routing hint has no valid public key")
    return hops


# --- encoding -----------------------------------------------------------------------------------------------------


def encode_invoice(invoice: Invoice, signer: bytes | Signer) -> str:
    """The signed text, in lower case. `signer` is the payee's 32-byte secret, or signs for it.

    Raises InvoiceError for values an invoice cannot hold. Costs about 250 us, most of it the checksum.
    """
    hrp = f"ln{invoice.network.invoice_prefix}{_write_amount(invoice.amount_msat)}"
    if not 0 <= invoice.timestamp < 1 << 35:
        raise InvoiceError(f"the timestamp {invoice.timestamp} does not fit an invoice")
    timestamp = _from_int(invoice.timestamp).rjust(_TIMESTAMP_SYMBOLS, b"\x00")
    signed = timestamp + b"".join(_write_fields(invoice))
    digest = _digest(hrp, signed)
    signature = secp.sign_recoverable(signer, digest) if isinstance(signer, bytes) else signer(digest)
    if len(signature) != 65:
        raise InvoiceError(f"an invoice's signature has 65 bytes, not {len(signature)}")
    symbols = signed + _from_bytes(signature)
    state = _checksum_state(hrp, symbols + bytes(_CHECKSUM_SYMBOLS)) ^ bech32.BECH32_CONST
    checksum = bytes(state >> shift & 31 for shift in range(25, -1, -5))
    text = f"{hrp}1{(symbols + checksum).translate(_SYMBOLS_TO_TEXT).decode()}"
    if len(text) > MAX_INVOICE_LENGTH:
        raise InvoiceError(f"an invoice has at most {MAX_INVOICE_LENGTH} characters, this one {len(text)}")
    return text


def _write_amount(amount_msat: int | None) -> str:
    """The shortest form of an amount; nothing for none."""
    if amount_msat is None:
        return ""
    if not 0 < amount_msat <= _MAX_MSAT:
        raise InvoiceError(f"an invoice cannot ask for {amount_msat} msat")
    for multiplier, msat in _MULTIPLIERS.items():
        if amount_msat % msat == 0:
            return f"{amount_msat // msat}{multiplier}"
    return f"{amount_msat * 10}p"


def _write_fields(invoice: Invoice) -> list[bytes]:
    """All tagged fields in the order that most of BOLT 11's examples have."""
    if (invoice.description is None) == (invoice.description_hash is None):
        raise InvoiceError("an invoice needs either a description or the hash of one, and not both")
    fields = [
        _hash_field(_S, invoice.payment_secret, "payment secret"),
        _hash_field(_P, invoice.payment_hash, "payment hash"),
    ]
    if invoice.description is not None:
        fields.append(_bytes_field(_D, invoice.description.encode(), "description"))
    if invoice.description_hash is not None:
        fields.append(_hash_field(_H, invoice.description_hash, "hash of the description"))
    if invoice.payment_metadata is not None:
        fields.append(_bytes_field(_M, invoice.payment_metadata, "payment metadata"))
    if invoice.payee_is_explicit:
        if not secp.is_valid_pubkey(invoice.payee):
            raise InvoiceError("the payee is not a public key")
        fields.append(_field(_N, _from_bytes(invoice.payee)))
    if invoice.expiry_seconds != DEFAULT_EXPIRY_SECONDS:
        fields.append(_number_field(_X, invoice.expiry_seconds))
    fields.append(_number_field(_C, invoice.min_final_cltv_expiry_delta))
    fields += [_field(_F, _write_fallback(script)) for script in invoice.fallback_scripts]
    fields += [_routing_hint_field(hops) for hops in invoice.routing_hints]
    fields.append(_features_field(invoice.features))
    return fields + [_field(type_, symbols) for type_, symbols in invoice.unknown_fields]


def _field(type_: int, symbols: bytes) -> bytes:
    length = len(symbols)
    if length > _MAX_FIELD_SYMBOLS or not 0 <= type_ < 32:
        raise InvoiceError(f"a field of type {type_} with {length} symbols does not fit an invoice")
    return bytes((type_, length >> 5, length & 31)) + symbols


def _bytes_field(type_: int, data: bytes, name: str) -> bytes:
    if len(data) > _MAX_FIELD_BYTES:
        raise InvoiceError(f"the {name} has {len(data)} bytes; an invoice holds at most {_MAX_FIELD_BYTES}")
    return _field(type_, _from_bytes(data))


def _hash_field(type_: int, data: bytes, name: str) -> bytes:
    if len(data) != 32:
        raise InvoiceError(f"the {name} has 32 bytes, not {len(data)}")
    return _field(type_, _from_bytes(data))


def _number_field(type_: int, value: int) -> bytes:
    if not 0 <= value <= _MAX_NUMBER:
        raise InvoiceError(f"{value} is no possible value for the field {_FIELD_NAMES[type_]}")
    return _field(type_, _from_int(value))


def _routing_hint_field(hops: tuple[RoutingHop, ...]) -> bytes:
    if not hops:
        raise InvoiceError("a routing hint needs at least one channel")
    return _bytes_field(_R, b"".join(hop.to_bytes() for hop in hops), "routing hint")


@lru_cache(maxsize=256)
def _features_field(bits: FeatureBits) -> bytes:
    _check_features(bits)
    symbols = _from_int(sum(1 << bit for bit in bits))
    return _field(_9, symbols) if symbols else b""


def _write_fallback(script: bytes) -> bytes:
    if is_p2pkh(script):
        return bytes((_FALLBACK_P2PKH,)) + _from_bytes(script[3:23])
    if is_p2sh(script):
        return bytes((_FALLBACK_P2SH,)) + _from_bytes(script[2:22])
    program = witness_program(script)
    if program is None:
        raise InvoiceError("a fallback must be an address: P2PKH, P2SH or a witness program")
    return bytes((program[0],)) + _from_bytes(program[1])
