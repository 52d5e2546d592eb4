"""What messages and frames cost: `cases()` names functions for the benchmark runner to time."""

from collections.abc import Callable

from coincurve import PrivateKey

from channeld.bolt.messages import (
    AttributionData,
    ChannelUpdate,
    CommitmentSigned,
    Message,
    RevokeAndAck,
    UpdateAddHtlc,
    UpdateFulfillHtlc,
    decode,
    encode,
)
from channeld.bolt.noise import (
    CipherState,
    Decrypter,
    Encrypter,
    InitiatorHandshake,
    ResponderHandshake,
)

POINT = b"\x02" + bytes(32)
FRAMES_A_READ = 100

MESSAGES: dict[str, Message] = {
    "update_add_htlc": UpdateAddHtlc(bytes(32), 1, 10**6, bytes(32), 800_000, bytes(1366)),
    "update_add_htlc with a path_key": UpdateAddHtlc(bytes(32), 1, 10**6, bytes(32), 800_000, bytes(1366), POINT),
    "update_fulfill_htlc": UpdateFulfillHtlc(bytes(32), 1, bytes(32)),
    "update_fulfill_htlc with attribution_data": UpdateFulfillHtlc(
        bytes(32), 1, bytes(32), AttributionData(bytes(80), bytes(840))
    ),
    "commitment_signed with 100 HTLCs": CommitmentSigned(bytes(32), bytes(64), (bytes(64),) * 100),
    "revoke_and_ack": RevokeAndAck(bytes(32), bytes(32), POINT),
    "channel_update": ChannelUpdate(bytes(64), bytes(32), 1, 2, 1, 0, 40, 1, 1000, 1, 10**9),
}


def _handshake() -> object:
    initiator = InitiatorHandshake(b"\x11" * 32, b"\x12" * 32, PrivateKey(b"\x21" * 32).public_key.format())
    responder = ResponderHandshake(b"\x21" * 32, b"\x22" * 32)
    return responder.receive(initiator.receive(responder.receive(initiator.start())))


def _frames(size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Sealing one message, and sealing a hundred that arrive in one read: a frame can be opened only once."""
    sealing = Encrypter(CipherState(bytes(32), bytes(32)))
    encrypter = Encrypter(CipherState(bytes(32), bytes(32)))
    decrypter = Decrypter(CipherState(bytes(32), bytes(32)))
    message = bytes(size)

    def seal() -> object:
        return sealing.encrypt_message(message)

    def there_and_back() -> object:
        return decrypter.receive(b"".join([encrypter.encrypt_message(message) for _ in range(FRAMES_A_READ)]))

    return seal, there_and_back


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Names and functions; each call of a function does what its name says once."""
    found: list[tuple[str, Callable[[], object]]] = []
    for name, message in MESSAGES.items():
        data = encode(message)
        found.append((f"encode {name}", lambda message=message: encode(message)))  # type: ignore[misc]
        found.append((f"decode {name}", lambda data=data: decode(data)))  # type: ignore[misc]
    for size in (100, 1452):
        seal, there_and_back = _frames(size)
        found.append((f"noise: seal a frame of {size} bytes", seal))
        found.append((f"noise: seal and open {FRAMES_A_READ} frames of {size} bytes", there_and_back))
    found.append(("noise: both sides of a handshake", _handshake))
    return found
