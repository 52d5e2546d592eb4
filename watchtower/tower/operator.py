"""The service `Operator`: what the one who runs the tower wants to know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import Connection, func, select

from wallet.db import Store
from watchtower.rpc.errors import Refusal
from watchtower.tower import breach as breaches
from watchtower.tower import tables
from watchtower.tower.alerts import Alert, Alerts
from watchtower.tower.breach import Breach
from watchtower.tower.service import MODE_NUMBERS
from watchtower.tower.sessions import Sessions
from watchtower.tower.status import StatusBoard
from watchtower.tower.watcher import Watcher
from watchtower.v1 import operator_pb2, operator_pb2_grpc

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000


class OperatorServicer(operator_pb2_grpc.OperatorServicer):
    """See proto/watchtower/v1/operator.proto. `facts` are those of the status that never change."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        watcher: Watcher,
        alerts: Alerts,
        board: StatusBoard,
        facts: Callable[[], dict[str, Any]],
        stop: asyncio.Event,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._watcher = watcher
        self._alerts = alerts
        self._board = board
        self._facts = facts
        self._stop = stop

    async def GetStatus(self, request: operator_pb2.GetStatusRequest, context: Any) -> operator_pb2.GetStatusResponse:
        figures, tip = self._board.figures(), self._watcher.tip
        return operator_pb2.GetStatusResponse(
            **self._facts(),
            sessions=figures.sessions,
            appointments=figures.appointments,
            blob_bytes=figures.blob_bytes,
            database_bytes=figures.database_bytes,
            block_height=figures.block_height,
            block_hash=tip.hash if tip else b"",
            block_searched_seconds=figures.block_searched_seconds,
            block_time_seconds=figures.block_time_seconds,
            synced_to_chain=figures.synced,
            chain_status=self._watcher.status,
            breaches_open=figures.breaches_open,
            breaches_total=figures.breaches_total,
            justice_sent=figures.justice_sent,
            justice_confirmed=figures.justice_confirmed,
            outputs_lost=figures.outputs_lost,
            saved_sat=figures.saved_sat,
            lost_sat=figures.lost_sat,
            undecipherable=figures.undecipherable,
            started_seconds=self._board.started_seconds,
        )

    async def ListSessions(
        self, request: operator_pb2.ListSessionsRequest, context: Any
    ) -> operator_pb2.ListSessionsResponse:
        return operator_pb2.ListSessionsResponse(
            sessions=[
                operator_pb2.Session(
                    session_id=session.terms.session_id,
                    mode=MODE_NUMBERS[session.terms.mode],
                    appointments=session.appointments,
                    max_appointments=session.terms.max_appointments,
                    bytes=session.bytes,
                    max_bytes=session.terms.max_bytes,
                    reward_permille=session.terms.reward_permille,
                    expires_height=session.terms.expires_height,
                    created_seconds=session.created_seconds,
                    last_used_seconds=session.used_seconds,
                )
                for session in self._sessions.newest(_limit(request.limit))
            ]
        )

    async def ListAppointments(
        self, request: operator_pb2.ListAppointmentsRequest, context: Any
    ) -> operator_pb2.ListAppointmentsResponse:
        key = self._sessions.get(request.session_id).key if request.session_id else None
        limit = _limit(request.limit)

        def read(connection: Connection) -> list[Any]:
            table = tables.appointments.c
            query = select(
                table.session_key, table.locator, table.accepted_height, func.length(table.blob).label("size")
            )
            if key is not None:
                query = query.where(table.session_key == key)
            return list(connection.execute(query.order_by(table.appointment_id.desc()).limit(limit)))

        return operator_pb2.ListAppointmentsResponse(
            appointments=[
                operator_pb2.StoredAppointment(
                    locator=row.locator,
                    session_id=self._session_id(row.session_key),
                    blob_bytes=row.size,
                    accepted_height=row.accepted_height,
                )
                for row in await self._store.read(read)
            ]
        )

    async def ListBreaches(
        self, request: operator_pb2.ListBreachesRequest, context: Any
    ) -> operator_pb2.ListBreachesResponse:
        known = self._watcher.open_breaches if request.only_open else list(self._watcher.breaches.values())
        newest = sorted(known, key=lambda breach: -breach.seen_seconds)[: _limit(request.limit)]
        return operator_pb2.ListBreachesResponse(
            breaches=[breach_message(breach, self._session_id(breach.session_key)) for breach in newest]
        )

    async def StreamAlerts(
        self, request: operator_pb2.StreamAlertsRequest, context: Any
    ) -> AsyncIterator[operator_pb2.Alert]:
        since = request.since_sequence if request.HasField("since_sequence") else None
        following = aiter(self._alerts.follow(since))
        stopped = asyncio.ensure_future(self._stop.wait())
        upcoming = asyncio.ensure_future(anext(following))
        try:
            await asyncio.sleep(0)
            await context.send_initial_metadata(())
            while True:
                await asyncio.wait((upcoming, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not upcoming.done():
                    return
                yield alert_message(upcoming.result())
                upcoming = asyncio.ensure_future(anext(following))
        finally:
            for task in (stopped, upcoming):
                task.cancel()
            await asyncio.gather(stopped, upcoming, return_exceptions=True)

    async def Stop(self, request: operator_pb2.StopRequest, context: Any) -> operator_pb2.StopResponse:
        self._stop.set()
        return operator_pb2.StopResponse()

    def _session_id(self, key: int) -> bytes:
        session = self._sessions.by_key(key)
        return session.terms.session_id if session is not None else b""


def _limit(asked: int) -> int:
    if asked > MAX_LIMIT:
        raise Refusal("invalid_argument", f"At most {MAX_LIMIT} can be listed.")
    return asked or DEFAULT_LIMIT


def alert_message(alert: Alert) -> operator_pb2.Alert:
    """For the wire."""
    return operator_pb2.Alert(
        sequence=alert.sequence,
        time_seconds=alert.time_seconds,
        kind=alert.kind,
        sentence=alert.sentence,
        data_json=json.dumps(alert.data),
    )


def breach_message(breach: Breach, session_id: bytes) -> operator_pb2.Breach:
    """For the wire."""
    outputs = [
        operator_pb2.BreachOutput(
            outpoint=str(target.outpoint),
            kind=target.penalty.kind,
            amount_sat=target.penalty.amount_sat,
            state="uneconomic" if target.state == "open" and not breaches.is_economic(target, breach) else target.state,
            spending_txid=target.spent.txid if target.spent else b"",
            spent_height=target.spent.height if target.spent else 0,
        )
        for target in breaches.targets(breach)
    ]
    justice = [
        operator_pb2.JusticeTx(
            txid=attempt.txid,
            feerate_per_kw=attempt.feerate_per_kw,
            fee_sat=attempt.fee_sat,
            sent_height=attempt.height,
            confirmed_height=breaches.confirmed_height(breach, attempt.txid) or 0,
            problem=attempt.problem,
        )
        for attempt in breach.attempts
    ]
    return operator_pb2.Breach(
        txid=breach.txid,
        session_id=session_id,
        height=breach.height or 0,
        state="resolved" if breach.resolved else "open",
        outputs=outputs,
        justice=justice,
        seen_seconds=breach.seen_seconds,
    )
