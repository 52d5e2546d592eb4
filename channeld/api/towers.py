"""The service `Towers`."""

from __future__ import annotations

from typing import Any, Protocol

from channeld.node.interface import NodeError
from channeld.v1 import towers_pb2, towers_pb2_grpc
from watchtower.client.connection import TowerUri
from watchtower.client.towers import Towers, TowersError
from watchtower.client.values import ChannelBackup, TowerStatus
from watchtower.justice import MAX_REWARD_PERMILLE


class TowerHost(Protocol):
    """What the service needs of the node."""

    @property
    def all(self) -> Towers: ...
    @property
    def height(self) -> int: ...
    def channel_id(self, name: bytes) -> bytes: ...


class TowersServicer(towers_pb2_grpc.TowersServicer):
    """See proto/channeld/v1/towers.proto."""

    def __init__(self, host: TowerHost) -> None:
        self._host = host

    async def Add(self, request: towers_pb2.AddTowerRequest, context: Any) -> towers_pb2.AddTowerResponse:
        try:
            uri = TowerUri.parse(request.uri)
        except ValueError as error:
            raise NodeError("invalid_argument", str(error)) from error
        if request.max_reward_permille > MAX_REWARD_PERMILLE:
            raise NodeError("invalid_argument", f"A tower may keep {MAX_REWARD_PERMILLE} permille at most.")
        try:
            tower = await self._host.all.add(
                uri, "own" if request.own else "blind", request.max_reward_permille, request.token
            )
        except TowersError as error:
            raise NodeError("failed_precondition", str(error)) from error
        return towers_pb2.AddTowerResponse(tower_id=tower.uri.tower_id)

    async def Remove(self, request: towers_pb2.RemoveTowerRequest, context: Any) -> towers_pb2.RemoveTowerResponse:
        try:
            await self._host.all.remove(request.tower_id)
        except TowersError as error:
            raise NodeError("not_found", str(error)) from error
        return towers_pb2.RemoveTowerResponse()

    async def SetPaused(
        self, request: towers_pb2.SetTowerPausedRequest, context: Any
    ) -> towers_pb2.SetTowerPausedResponse:
        try:
            await self._host.all.set_state(request.tower_id, "paused" if request.paused else "active")
        except TowersError as error:
            raise NodeError("not_found", str(error)) from error
        return towers_pb2.SetTowerPausedResponse()

    async def List(self, request: towers_pb2.ListTowersRequest, context: Any) -> towers_pb2.ListTowersResponse:
        return towers_pb2.ListTowersResponse(towers=[self._tower(status) for status in self._host.all.statuses()])

    async def Check(self, request: towers_pb2.CheckTowersRequest, context: Any) -> towers_pb2.CheckTowersResponse:
        checks = await self._host.all.check(self._host.height)
        return towers_pb2.CheckTowersResponse(
            checks=[
                towers_pb2.TowerCheck(
                    tower_id=check.tower.uri.tower_id,
                    address=check.tower.uri.address,
                    up_to_date=check.up_to_date,
                    reasons=check.reasons,
                )
                for check in checks
            ],
            up_to_date=bool(checks) and all(check.up_to_date for check in checks),
        )

    def _tower(self, status: TowerStatus) -> towers_pb2.Tower:
        tower = status.tower
        return towers_pb2.Tower(
            tower_id=tower.uri.tower_id,
            address=tower.uri.address,
            own=tower.mode == "own",
            paused=tower.state == "paused",
            max_reward_permille=tower.max_reward_permille,
            reachable=status.reachable,
            problem=status.problem,
            problem_since_seconds=status.problem_since_seconds,
            backlog=status.backlog,
            sent=status.sent,
            channels=[self._channel(channel) for channel in status.channels],
        )

    def _channel(self, backup: ChannelBackup) -> towers_pb2.TowerChannel:
        return towers_pb2.TowerChannel(
            channel_id=self._host.channel_id(backup.channel),
            revoked=backup.newest,
            backed_up=backup.backed_up,
            behind_seconds=backup.behind_seconds,
            acknowledged_seconds=backup.acknowledged_seconds,
        )
