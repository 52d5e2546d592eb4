"""The service `Wallet`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from channeld.api import convert
from channeld.api.background import Background
from channeld.api.streams import until_set
from channeld.node.interface import NodeError, NodeService
from channeld.v1 import wallet_pb2, wallet_pb2_grpc


class WalletServicer(wallet_pb2_grpc.WalletServicer):
    """See proto/channeld/v1/wallet.proto. `stopping` is set when the streams are to end."""

    def __init__(self, node: NodeService, background: Background, stopping: asyncio.Event) -> None:
        self._node = node
        self._background = background
        self._stopping = stopping

    async def NewAddress(self, request: wallet_pb2.NewAddressRequest, context: Any) -> wallet_pb2.NewAddressResponse:
        address = await self._node.new_address(convert.address_kind(request.kind))
        return wallet_pb2.NewAddressResponse(address=address)

    async def GetBalance(self, request: wallet_pb2.GetBalanceRequest, context: Any) -> wallet_pb2.GetBalanceResponse:
        return convert.balance(await self._node.balance())

    async def ListCoins(self, request: wallet_pb2.ListCoinsRequest, context: Any) -> wallet_pb2.ListCoinsResponse:
        return wallet_pb2.ListCoinsResponse(coins=[convert.coin(view) for view in await self._node.coins()])

    async def ListTransactions(
        self, request: wallet_pb2.ListTransactionsRequest, context: Any
    ) -> wallet_pb2.ListTransactionsResponse:
        views = await self._node.transactions()
        return wallet_pb2.ListTransactionsResponse(transactions=[convert.transaction(view) for view in views])

    async def Send(self, request: wallet_pb2.SendRequest, context: Any) -> wallet_pb2.SendResponse:
        if not request.address:
            raise NodeError("invalid_argument", "Say where to send the money: the address is missing.")
        view = await self._background.run(
            self._node.send_coins(
                request.address,
                convert.amount_sat(request.amount_sat, "The amount") if request.HasField("amount_sat") else None,
                convert.optional_feerate_per_kw(request),
                convert.idempotency_key(request.idempotency_key),
            )
        )
        return wallet_pb2.SendResponse(transaction=convert.transaction(view))

    async def Bump(self, request: wallet_pb2.BumpRequest, context: Any) -> wallet_pb2.BumpResponse:
        txid = convert.hash32(request.txid, "a transaction id")
        feerate_per_kw = convert.feerate_per_kw(request.feerate_per_kw)
        view = await self._background.run(self._node.bump(txid, feerate_per_kw))
        return wallet_pb2.BumpResponse(transaction=convert.transaction(view))

    async def Rescan(self, request: wallet_pb2.RescanRequest, context: Any) -> AsyncIterator[wallet_pb2.RescanResponse]:
        async for view in until_set(self._node.rescan(request.from_height), self._stopping):
            yield wallet_pb2.RescanResponse(
                height=view.height,
                tip_height=view.tip_height,
                found_coins=view.found_coins,
                found_sat=view.found_sat,
            )
