"""BOLT 8: the Noise_XK handshake and the encrypted transport, without any input or output of its own.

A handshake is fed act by act and ends in a `Session`, whose two halves encrypt messages into frames and take frames,
however they were cut, apart into messages. Randomness comes from outside: the caller gives the ephemeral key.
"""

from __future__ import annotations

import hashlib
import hmac
from abc import ABC, abstractmethod
from typing import Final

from coincurve import PrivateKey, PublicKey
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from channeld.bolt.primitives import MAX_MESSAGE_BYTES

ACT_ONE_BYTES: Final = 50
ACT_TWO_BYTES: Final = 50
ACT_THREE_BYTES: Final = 66
MAC_BYTES: Final = 16
HEADER_BYTES: Final = 2 + MAC_BYTES
ROTATION_NONCE: Final = 1000  # BOLT 8, "Lightning Message Key Rotation"

_PROTOCOL_NAME = b"Noise_XK_secp256k1_ChaChaPoly_SHA256"
_PROLOGUE = b"lightning"
_NONCES = tuple(bytes(4) + n.to_bytes(8, "little") for n in range(ROTATION_NONCE))


class NoiseError(Exception):
    """The other side is not who it should be, or does not speak BOLT 8; the connection ends without a further word.

    `code` is the name that BOLT 8's test vectors give to a failed act (`ACT2_BAD_TAG`), or `FRAME_BAD_TAG`.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _hkdf(salt: bytes, input_key: bytes) -> tuple[bytes, bytes]:
    """HKDF-SHA256 with empty info, 64 bytes (RFC 5869)."""
    pseudo_random_key = hmac.digest(salt, input_key, "sha256")
    first = hmac.digest(pseudo_random_key, b"\x01", "sha256")
    return first, hmac.digest(pseudo_random_key, first + b"\x02", "sha256")


# --- transport ----------------------------------------------------------------------------------------------------


class CipherState:
    """One direction's key and nonce; after 1000 uses of a key the next one is derived from it."""

    __slots__ = ("_aead", "_chaining_key", "_key", "_nonce")

    def __init__(self, key: bytes, chaining_key: bytes) -> None:
        self._key = key
        self._chaining_key = chaining_key
        self._aead = ChaCha20Poly1305(key)
        self._nonce = 0

    @property
    def key(self) -> bytes:
        """The key that is in use now."""
        return self._key

    def encrypt(self, plaintext: bytes) -> bytes:
        """The ciphertext and its 16 byte tag."""
        ciphertext = self._aead.encrypt(_NONCES[self._nonce], plaintext, None)
        self._advance()
        return ciphertext

    def decrypt(self, ciphertext: bytes | memoryview) -> bytes:
        """Raises cryptography's InvalidTag."""
        plaintext = self._aead.decrypt(_NONCES[self._nonce], ciphertext, None)
        self._advance()
        return plaintext

    def _advance(self) -> None:
        self._nonce += 1
        if self._nonce == ROTATION_NONCE:
            self._chaining_key, self._key = _hkdf(self._chaining_key, self._key)
            self._aead = ChaCha20Poly1305(self._key)
            self._nonce = 0


class Encrypter:
    """The sending half of a session."""

    __slots__ = ("_encrypt", "cipher")

    def __init__(self, cipher: CipherState) -> None:
        self.cipher = cipher
        self._encrypt = cipher.encrypt

    def encrypt_message(self, message: bytes) -> bytes:
        """The frame of one message: its encrypted length, then itself. Raises ValueError beyond 65,535 bytes."""
        size = len(message)
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, not {size}")
        return self._encrypt(size.to_bytes(2, "big")) + self._encrypt(message)


class Decrypter:
    """The receiving half of a session: fed with what a socket gives, it returns the messages that are complete."""

    __slots__ = ("_body_bytes", "_buffer", "_decrypt", "cipher")

    def __init__(self, cipher: CipherState) -> None:
        self.cipher = cipher
        self._decrypt = cipher.decrypt
        self._buffer = bytearray()
        self._body_bytes = 0  # ciphertext of the message whose length was read already; 0 if a length comes next

    @property
    def buffered_bytes(self) -> int:
        """How much of an incomplete frame waits; never more than one frame."""
        return len(self._buffer)

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes. Raises NoiseError when a frame is not authentic; all is over then."""
        buffer = self._buffer
        buffer += data
        end = len(buffer)
        needed = self._body_bytes or HEADER_BYTES
        if end < needed:
            return []
        messages: list[bytes] = []
        pos = 0
        decrypt = self._decrypt
        with memoryview(buffer) as view:
            try:
                while end - pos >= needed:
                    plaintext = decrypt(view[pos : pos + needed])
                    pos += needed
                    if self._body_bytes:
                        messages.append(plaintext)
                        self._body_bytes, needed = 0, HEADER_BYTES
                    else:
                        self._body_bytes = needed = int.from_bytes(plaintext, "big") + MAC_BYTES
            except InvalidTag:
                raise NoiseError("FRAME_BAD_TAG", "a frame of the peer is not authentic") from None
        del buffer[:pos]
        return messages


class Session:
    """What a finished handshake leaves behind: whom we talk to, and the two directions."""

    __slots__ = ("decrypter", "encrypter", "remote_node_id")

    def __init__(self, remote_node_id: bytes, encrypter: Encrypter, decrypter: Decrypter) -> None:
        self.remote_node_id = remote_node_id
        self.encrypter = encrypter
        self.decrypter = decrypter


# --- handshake ----------------------------------------------------------------------------------------------------


class Handshake(ABC):
    """The state that both sides keep (BOLT 8, "Handshake State"). `expected_bytes` is the size of the next act."""

    expected_bytes: int

    def __init__(self, local_key: bytes, ephemeral_key: bytes, responder_id: bytes) -> None:
        """Raises ValueError if a key is none."""
        self._static = PrivateKey(local_key)
        self._ephemeral = PrivateKey(ephemeral_key)
        self._hash = hashlib.sha256(_PROTOCOL_NAME).digest()
        self._chaining_key = self._hash
        self._temporary_key = b""
        self._mix_hash(_PROLOGUE)
        self._mix_hash(responder_id)
        self.session: Session | None = None

    @abstractmethod
    def start(self) -> bytes:
        """What has to be sent before anything is received."""

    @abstractmethod
    def receive(self, act: bytes) -> bytes:
        """Takes exactly the next act, and returns what to answer. Raises NoiseError."""

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_key(self, shared_secret: bytes) -> None:
        self._chaining_key, self._temporary_key = _hkdf(self._chaining_key, shared_secret)

    def _seal(self, nonce: int, plaintext: bytes) -> bytes:
        ciphertext = ChaCha20Poly1305(self._temporary_key).encrypt(_NONCES[nonce], plaintext, self._hash)
        self._mix_hash(ciphertext)
        return ciphertext

    def _open(self, nonce: int, ciphertext: bytes, code: str, reason: str) -> bytes:
        try:
            plaintext = ChaCha20Poly1305(self._temporary_key).decrypt(_NONCES[nonce], ciphertext, self._hash)
        except InvalidTag:
            raise NoiseError(code, reason) from None
        self._mix_hash(ciphertext)
        return plaintext

    def _check_act(self, act: bytes, size: int, number: int) -> None:
        if len(act) != size:
            raise NoiseError(f"ACT{number}_READ_FAILED", f"act {number} has {len(act)} bytes instead of {size}")
        if act[0] != 0:
            raise NoiseError(f"ACT{number}_BAD_VERSION", f"handshake version {act[0]} in act {number}")

    def _send_ephemeral(self, shared_secret_with: bytes) -> bytes:
        """The act "e, es" or "e, ee": our ephemeral key, and a tag under what it shares with the other's key."""
        public_key = self._ephemeral.public_key.format()
        self._mix_hash(public_key)
        self._mix_key(self._ephemeral.ecdh(shared_secret_with))
        return b"\0" + public_key + self._seal(0, b"")

    def _receive_ephemeral(self, act: bytes, number: int, own_key: PrivateKey) -> bytes:
        """The reverse: the other's ephemeral key, authenticated."""
        remote_ephemeral = act[1:34]
        self._mix_hash(remote_ephemeral)
        self._mix_key(_ecdh(own_key, remote_ephemeral, f"ACT{number}_BAD_PUBKEY"))
        self._open(0, act[34:], f"ACT{number}_BAD_TAG", f"act {number} is not authentic")
        return remote_ephemeral

    def _finish(self, remote_node_id: bytes, initiator: bool) -> Session:
        first, second = _hkdf(self._chaining_key, b"")
        sending, receiving = (first, second) if initiator else (second, first)
        self.session = Session(
            remote_node_id,
            Encrypter(CipherState(sending, self._chaining_key)),
            Decrypter(CipherState(receiving, self._chaining_key)),
        )
        return self.session


def _ecdh(key: PrivateKey, public_key: bytes, code: str) -> bytes:
    try:
        return key.ecdh(public_key)
    except ValueError:
        raise NoiseError(code, "not a public key") from None


class InitiatorHandshake(Handshake):
    """Our side of a connection that we open to `remote_node_id`: send act one, take act two, send act three."""

    expected_bytes = ACT_TWO_BYTES

    def __init__(self, local_key: bytes, ephemeral_key: bytes, remote_node_id: bytes) -> None:
        """Raises ValueError if a key, or the remote's node id, is none."""
        super().__init__(local_key, ephemeral_key, PublicKey(remote_node_id).format())
        self._remote_node_id = PublicKey(remote_node_id).format()

    def start(self) -> bytes:
        return self._send_ephemeral(self._remote_node_id)

    def receive(self, act: bytes) -> bytes:
        self._check_act(act, ACT_TWO_BYTES, 2)
        remote_ephemeral = self._receive_ephemeral(act, 2, self._ephemeral)
        sealed_id = self._seal(1, self._static.public_key.format())
        self._mix_key(self._static.ecdh(remote_ephemeral))
        tag = self._seal(0, b"")
        self._finish(self._remote_node_id, initiator=True)
        return b"\0" + sealed_id + tag


class ResponderHandshake(Handshake):
    """Our side of a connection that somebody else opens: take act one, send act two, take act three."""

    expected_bytes = ACT_ONE_BYTES

    def __init__(self, local_key: bytes, ephemeral_key: bytes) -> None:
        """Raises ValueError if a key is none."""
        super().__init__(local_key, ephemeral_key, PrivateKey(local_key).public_key.format())

    def start(self) -> bytes:
        return b""

    def receive(self, act: bytes) -> bytes:
        if self.expected_bytes == ACT_ONE_BYTES:
            self._check_act(act, ACT_ONE_BYTES, 1)
            remote_ephemeral = self._receive_ephemeral(act, 1, self._static)
            self.expected_bytes = ACT_THREE_BYTES
            return self._send_ephemeral(remote_ephemeral)
        self._check_act(act, ACT_THREE_BYTES, 3)
        remote_node_id = self._open(1, act[1:50], "ACT3_BAD_CIPHERTEXT", "the node id of act 3 is not authentic")
        self._mix_key(_ecdh(self._ephemeral, remote_node_id, "ACT3_BAD_PUBKEY"))
        self._open(0, act[50:], "ACT3_BAD_TAG", "act 3 is not authentic")
        self._finish(remote_node_id, initiator=False)
        return b""
