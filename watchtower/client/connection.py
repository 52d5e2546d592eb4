"""A connection to a tower, known by its public key alone.

The certificate is taken as it is served; then the tower must sign, with its own key, a random number together with the
certificate's hash. Whoever stands in between has another certificate and cannot get that signature.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from wallet.bitcoin.secp import is_valid_pubkey, pubkey_of, sign
from watchtower.appointment import Appointment, Mode
from watchtower.messages import (
    Receipt,
    SessionTerms,
    batch_digest,
    create_digest,
    info_digest,
    is_signed,
    request_digest,
)
from watchtower.rpc import ERROR_KIND_METADATA
from watchtower.v1 import tower_pb2, tower_pb2_grpc

CONNECT_SECONDS = 10.0
CALL_SECONDS = 30.0
_MODES: dict[Mode, Any] = {"blind": tower_pb2.MODE_BLIND, "own": tower_pb2.MODE_OWN}


class TowerAway(Exception):
    """The tower cannot be reached, or asks to try later; the text is a sentence. Trying again may help."""


class TowerRefuses(Exception):
    """The tower refuses what was asked for. `kind` is one of `watchtower.rpc.errors.ErrorKind`."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class TowerLies(Exception):
    """The tower signed something that it must not have, or did not sign at all. It is not used any more."""


class TowerUri(NamedTuple):
    """`TOWER_ID@HOST:PORT`."""

    tower_id: bytes
    address: str

    @classmethod
    def parse(cls, text: str) -> TowerUri:
        """Raises ValueError."""
        hex_id, _, address = text.strip().partition("@")
        host, _, port = address.rpartition(":")
        try:
            tower_id = bytes.fromhex(hex_id)
        except ValueError:
            tower_id = b""
        if not is_valid_pubkey(tower_id) or not host or not port.isascii() or not port.isdigit():
            raise ValueError(f"{text!r} is no tower: write TOWER_ID@HOST:PORT")
        return cls(tower_id, address)

    def __str__(self) -> str:
        return f"{self.tower_id.hex()}@{self.address}"


class Connection:
    """Calls to one tower. All raise TowerAway, TowerRefuses and TowerLies."""

    def __init__(self, uri: TowerUri, token: str = "", clock: Callable[[], float] = time.time) -> None:
        self.uri = uri
        self._token = token
        self._clock = clock
        self._channel: Any = None
        self._stub: Any = None
        self._opening = asyncio.Lock()
        self.info: tower_pb2.GetInfoResponse | None = None

    async def close(self) -> None:
        """Close; the next call connects again."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close(None)

    async def _connected(self) -> Any:
        async with self._opening:
            if self._stub is None:
                await self._open()
            return self._stub

    async def _open(self) -> None:
        host, _, port = self.uri.address.rpartition(":")
        where = (host.removeprefix("[").removesuffix("]"), int(port))
        try:
            pem = await asyncio.to_thread(ssl.get_server_certificate, where, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise TowerAway(f"{self.uri.address} cannot be reached: {error.strerror or error}") from error
        certificate = x509.load_pem_x509_certificate(pem.encode())
        options = (("grpc.ssl_target_name_override", _name_in(certificate)), ("grpc.enable_http_proxy", 0))
        self._channel = grpc.aio.secure_channel(
            self.uri.address, grpc.ssl_channel_credentials(pem.encode()), options=options
        )
        self._stub = tower_pb2_grpc.TowerStub(self._channel)
        try:
            seen = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
            await self._identify(seen)
        except BaseException:
            await self.close()
            raise

    async def _identify(self, certificate_hash: bytes) -> None:
        nonce = secrets.token_bytes(32)
        info = await self._call_stub(self._stub.GetInfo, tower_pb2.GetInfoRequest(nonce=nonce), CONNECT_SECONDS)
        tower_id = self.uri.tower_id
        if info.tower_id != tower_id:
            raise TowerLies(f"at {self.uri.address} is another tower, {info.tower_id.hex()}")
        if not is_signed(tower_id, info_digest(tower_id, nonce, certificate_hash), info.signature):
            raise TowerLies(f"what answers at {self.uri.address} is not the tower: it cannot sign for its certificate")
        self.info = info

    async def _call(self, method: str, request: Any, seconds: float = CALL_SECONDS, token: bool = False) -> Any:
        stub = await self._connected()
        metadata = (("authorization", f"Bearer {self._token}"),) if token and self._token else ()
        return await self._call_stub(getattr(stub, method), request, seconds, metadata)

    async def _call_stub(self, method: Any, request: Any, seconds: float, metadata: Any = ()) -> Any:
        try:
            return await method(request, timeout=seconds, metadata=metadata)
        except asyncio.CancelledError:
            # Closing a channel, for another call that failed, cancels those that are under way in it.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise TowerAway("the connection was closed while the tower was being asked") from None
        except grpc.aio.AioRpcError as error:
            trailing: Any = error.trailing_metadata() or ()
            kind = next((value for key, value in trailing if key == ERROR_KIND_METADATA), None)
            sentence = error.details() or error.code().name
            if kind is None or kind in ("unavailable", "resource_exhausted"):
                if kind is None:
                    await self.close()  # its certificate may be a new one
                raise TowerAway(sentence) from None
            raise TowerRefuses(str(kind), sentence) from None

    async def get_info(self) -> tower_pb2.GetInfoResponse:
        """Now, proven anew."""
        await self.close()
        await self._connected()
        assert self.info is not None
        return self.info

    async def create_session(self, secret: bytes, mode: Mode, max_reward_permille: int) -> SessionTerms:
        """A session for the key `secret`, or more time for it."""
        tower_id, session_id, now = self.uri.tower_id, pubkey_of(secret), self._clock()
        digest = create_digest(tower_id, session_id, mode, (0, 0), max_reward_permille, now)
        request = tower_pb2.CreateSessionRequest(
            session_id=session_id,
            mode=_MODES[mode],
            max_reward_permille=max_reward_permille,
            time_seconds=now,
            signature=sign(secret, digest),
        )
        terms = terms_of((await self._call("CreateSession", request, token=True)).terms, mode)
        if terms.tower_id != tower_id or terms.session_id != session_id or not terms.is_signed():
            raise TowerLies("the tower's terms are not signed by it")
        if terms.reward_permille > max_reward_permille:
            raise TowerLies(f"the tower takes {terms.reward_permille} permille, {max_reward_permille} were offered")
        return terms

    async def add(self, secret: bytes, batch: Sequence[Appointment]) -> list[Receipt]:
        """Receipts in order, checked."""
        tower_id, session_id = self.uri.tower_id, pubkey_of(secret)
        request = tower_pb2.AddAppointmentsRequest(
            session_id=session_id,
            appointments=[tower_pb2.Appointment(locator=each.locator, blob=each.blob) for each in batch],
            signature=sign(secret, batch_digest(tower_id, session_id, batch)),
        )
        answer = await self._call("AddAppointments", request)
        receipts = [receipt_of(each, tower_id, session_id) for each in answer.receipts]
        if len(receipts) != len(batch):
            raise TowerLies(f"the tower confirms {len(receipts)} of {len(batch)} appointments")
        # Two milliseconds for 64 of them: another thread's, so that payments need not wait for it.
        await asyncio.to_thread(_check_receipts, receipts, batch)
        return receipts

    async def get_session(self, secret: bytes) -> tower_pb2.GetSessionResponse:
        """What is used of a session."""
        session_id, now = pubkey_of(secret), self._clock()
        signature = sign(secret, request_digest(self.uri.tower_id, session_id, "get_session", now))
        request = tower_pb2.GetSessionRequest(session_id=session_id, time_seconds=now, signature=signature)
        answer: tower_pb2.GetSessionResponse = await self._call("GetSession", request)
        return answer

    async def get_appointment(self, secret: bytes, locator: bytes) -> tower_pb2.GetAppointmentResponse:
        """What the tower has under a locator."""
        session_id, now = pubkey_of(secret), self._clock()
        signature = sign(secret, request_digest(self.uri.tower_id, session_id, "get_appointment", now, locator))
        request = tower_pb2.GetAppointmentRequest(
            session_id=session_id, locator=locator, time_seconds=now, signature=signature
        )
        answer: tower_pb2.GetAppointmentResponse = await self._call("GetAppointment", request)
        return answer

    async def delete_session(self, secret: bytes) -> int:
        """How many appointments the tower forgets."""
        session_id, now = pubkey_of(secret), self._clock()
        signature = sign(secret, request_digest(self.uri.tower_id, session_id, "delete_session", now))
        request = tower_pb2.DeleteSessionRequest(session_id=session_id, time_seconds=now, signature=signature)
        return int((await self._call("DeleteSession", request)).appointments)


def _check_receipts(receipts: Sequence[Receipt], batch: Sequence[Appointment]) -> None:
    for receipt, each in zip(receipts, batch, strict=True):
        expected = hashlib.sha256(each.blob).digest()
        if receipt.locator != each.locator or receipt.blob_hash != expected or not receipt.is_signed():
            raise TowerLies("the tower's receipt is not for what it was given, or not signed")


def _name_in(certificate: x509.Certificate) -> str:
    """A name that the certificate is for: the tower is known by its key, not by its name."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "localhost"
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return found[0] if found else "localhost"


def terms_of(message: tower_pb2.SessionTerms, mode: Mode) -> SessionTerms:
    """From the wire. Raises TowerLies for another mode."""
    if message.mode != _MODES[mode]:
        raise TowerLies("the tower's terms are for another mode")
    return SessionTerms(
        message.tower_id,
        message.session_id,
        mode,
        message.max_appointments,
        message.max_bytes,
        message.max_blob_bytes,
        message.reward_permille,
        message.reward_script,
        message.expires_height,
        message.signature,
    )


def receipt_of(message: tower_pb2.Receipt, tower_id: bytes, session_id: bytes) -> Receipt:
    """From the wire."""
    return Receipt(tower_id, session_id, message.locator, message.blob_hash, message.accepted_height, message.signature)
