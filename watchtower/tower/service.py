"""The service `Tower`: protobuf to values and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wallet.bitcoin.secp import sign
from watchtower.appointment import Appointment, Mode
from watchtower.messages import Receipt, SessionTerms, info_digest, request_digest
from watchtower.rpc.errors import Refusal
from watchtower.tower.intake import Intake
from watchtower.tower.sessions import Sessions
from watchtower.tower.watcher import Watcher
from watchtower.v1 import tower_pb2, tower_pb2_grpc

NONCE_BYTES = 32
MODES: dict[int, Mode] = {tower_pb2.MODE_BLIND: "blind", tower_pb2.MODE_OWN: "own"}
MODE_NUMBERS: dict[Mode, Any] = {"blind": tower_pb2.MODE_BLIND, "own": tower_pb2.MODE_OWN}


class TowerServicer(tower_pb2_grpc.TowerServicer):
    """See proto/watchtower/v1/tower.proto. `identity` is (secret, tower id); `certificate_hash` gives that of the
    certificate that is served; `check_new_session` raises Refusal for a network address that asks for too many."""

    def __init__(
        self,
        identity: tuple[bytes, bytes],
        network: str,
        version: str,
        sessions: Sessions,
        intake: Intake,
        watcher: Watcher,
        certificate_hash: Callable[[], bytes],
        check_new_session: Callable[[str], None],
    ) -> None:
        self._secret, self._tower_id = identity
        self._network = network
        self._version = version
        self._sessions = sessions
        self._intake = intake
        self._watcher = watcher
        self._certificate_hash = certificate_hash
        self._check_new_session = check_new_session

    async def GetInfo(self, request: tower_pb2.GetInfoRequest, context: Any) -> tower_pb2.GetInfoResponse:
        if len(request.nonce) != NONCE_BYTES:
            raise Refusal("invalid_argument", f"A nonce has {NONCE_BYTES} bytes.")
        policy, tip = self._sessions.policy, self._watcher.tip
        certificate_hash = self._certificate_hash()
        return tower_pb2.GetInfoResponse(
            tower_id=self._tower_id,
            certificate_hash=certificate_hash,
            signature=sign(self._secret, info_digest(self._tower_id, request.nonce, certificate_hash)),
            network=self._network,
            block_height=tip.height if tip else 0,
            block_hash=tip.hash if tip else b"",
            synced_to_chain=self._watcher.synced,
            reward_permille=policy.reward_permille,
            max_appointments=policy.session_appointments,
            max_bytes=policy.session_bytes,
            max_blob_bytes=policy.max_blob_bytes,
            max_batch=policy.max_batch,
            session_blocks=policy.session_blocks,
            version=self._version,
        )

    async def CreateSession(
        self, request: tower_pb2.CreateSessionRequest, context: Any
    ) -> tower_pb2.CreateSessionResponse:
        if request.mode not in MODES:
            raise Refusal("invalid_argument", "The mode must be blind or own.")
        if self._watcher.tip is None:
            raise Refusal("unavailable", "The tower waits for layer 1; try again.")
        self._check_new_session(context.peer())
        terms = await self._sessions.create(
            request.session_id,
            MODES[request.mode],
            (request.appointments, request.bytes),
            request.max_reward_permille,
            request.time_seconds,
            request.signature,
            self._watcher.height,
        )
        return tower_pb2.CreateSessionResponse(terms=terms_message(terms))

    async def GetSession(self, request: tower_pb2.GetSessionRequest, context: Any) -> tower_pb2.GetSessionResponse:
        digest = request_digest(self._tower_id, request.session_id, "get_session", _time(request))
        session = self._sessions.check_request(request.session_id, digest, request.time_seconds, request.signature)
        return tower_pb2.GetSessionResponse(
            terms=terms_message(session.terms),
            appointments=session.appointments,
            bytes=session.bytes,
            block_height=self._watcher.height,
            synced_to_chain=self._watcher.synced,
        )

    async def AddAppointments(
        self, request: tower_pb2.AddAppointmentsRequest, context: Any
    ) -> tower_pb2.AddAppointmentsResponse:
        batch = [Appointment(each.locator, each.blob) for each in request.appointments]
        receipts, breached = await self._intake.add(request.session_id, batch, request.signature)
        return tower_pb2.AddAppointmentsResponse(
            receipts=[receipt_message(receipt) for receipt in receipts], breached=breached
        )

    async def GetAppointment(
        self, request: tower_pb2.GetAppointmentRequest, context: Any
    ) -> tower_pb2.GetAppointmentResponse:
        digest = request_digest(self._tower_id, request.session_id, "get_appointment", _time(request), request.locator)
        session = self._sessions.check_request(request.session_id, digest, request.time_seconds, request.signature)
        row = self._intake.find(session, request.locator)
        if row is None:
            raise Refusal("not_found", "The session has no appointment with this locator.")
        breach = self._watcher.breaches.get(row.appointment_id)
        state = "watched" if breach is None else "resolved" if breach.resolved else "breached"
        return tower_pb2.GetAppointmentResponse(
            appointment=tower_pb2.Appointment(locator=row.locator, blob=row.blob),
            receipt=receipt_message(self._intake.receipt(request.session_id, row)),
            state=state,
        )

    async def DeleteSession(
        self, request: tower_pb2.DeleteSessionRequest, context: Any
    ) -> tower_pb2.DeleteSessionResponse:
        digest = request_digest(self._tower_id, request.session_id, "delete_session", _time(request))
        session = self._sessions.check_request(request.session_id, digest, request.time_seconds, request.signature)
        await self._sessions.end(session)
        return tower_pb2.DeleteSessionResponse(appointments=session.appointments)


def _time(request: Any) -> float:
    """Numbers that cannot be a time would not fit what is signed."""
    seconds: float = request.time_seconds
    if not 0 <= seconds < 1 << 40:
        raise Refusal("invalid_argument", "The request's time is none.")
    return seconds


def terms_message(terms: SessionTerms) -> tower_pb2.SessionTerms:
    """For the wire."""
    return tower_pb2.SessionTerms(
        tower_id=terms.tower_id,
        session_id=terms.session_id,
        mode=MODE_NUMBERS[terms.mode],
        max_appointments=terms.max_appointments,
        max_bytes=terms.max_bytes,
        max_blob_bytes=terms.max_blob_bytes,
        reward_permille=terms.reward_permille,
        reward_script=terms.reward_script,
        expires_height=terms.expires_height,
        signature=terms.signature,
    )


def receipt_message(receipt: Receipt) -> tower_pb2.Receipt:
    """For the wire."""
    return tower_pb2.Receipt(
        locator=receipt.locator,
        blob_hash=receipt.blob_hash,
        accepted_height=receipt.accepted_height,
        signature=receipt.signature,
    )
