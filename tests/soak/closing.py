"""The last proof of a soak: every channel is closed, half of them by force, and all the money is on chain, less what
miners got and anchors that nobody wanted.

This is what shows that the last commitments, which died and came back so often, are worth what they say.
"""

from __future__ import annotations

from random import Random
from typing import Any

from channeld.lab import Lab
from channeld.lab.ledger import confirmed_sat
from channeld.v1 import wallet_pb2
from tests.soak.accounts import Lost
from tests.soak.members import Edge, Member
from wallet.rpc import btc_to_sat

ANCHOR_SAT = 330
HALVING_BLOCKS = 150
STEP_BLOCKS = 12
MOST_STEPS = 60


async def close_everything(lab: Lab, members: list[Member], edges: list[Edge], rng: Random) -> int:
    """Closes all channels and waits until everything is irrevocable; what miners got, in sat. Raises Lost."""
    owned_msat = sum([int((await m.daemon.balance()).channels_local_msat) for m in members])
    owned_sat = owned_msat // 1000 + sum([await confirmed_sat(m.daemon) for m in members])
    began = await lab.height()
    for number, edge in enumerate(edges):
        closer = rng.choice((edge.opener, edge.other))
        await closer.daemon.close_channel(edge.channel.channel_id, force=number % 2 == 0)
    for _ in range(MOST_STEPS):
        await lab.mine(STEP_BLOCKS)
        if await _is_over(members):
            break
    else:
        raise Lost(f"after {MOST_STEPS * STEP_BLOCKS} blocks not all channels are over")
    have_sat = sum([await confirmed_sat(m.daemon) for m in members])
    left_sat, fees_sat = await _left(lab, members, edges), await _fees(lab, began)
    if have_sat + left_sat + fees_sat != owned_sat:
        raise Lost(f"{owned_sat} sat became {have_sat}, miners got {fees_sat}, {left_sat} are in anchors")
    return fees_sat


async def _is_over(members: list[Member]) -> bool:
    for member in members:
        balance = await member.daemon.balance()
        if balance.closing_sat or balance.unconfirmed_sat or await member.daemon.channels():
            return False
    return True


async def _fees(lab: Lab, after_height: int) -> int:
    """What coinbases took beside the subsidy, in sat."""
    total_sat = 0
    for height in range(after_height + 1, await lab.height() + 1):
        block = await lab.rpc.call("getblock", await lab.rpc.call("getblockhash", height), 2)
        coinbase_sat = sum(btc_to_sat(output["value"]) for output in block["tx"][0]["vout"])
        total_sat += coinbase_sat - (50 * 10**8 >> height // HALVING_BLOCKS)
    return total_sat


async def _left(lab: Lab, members: list[Member], edges: list[Edge]) -> int:
    """Outputs of closing transactions that are nobody's coins and still there: only anchors may be. In sat."""
    coins = set()
    for member in members:
        for coin in (await member.daemon.client.wallet.ListCoins(wallet_pb2.ListCoinsRequest())).coins:
            coins.add((coin.txid, coin.vout))
    total_sat = 0
    for edge in edges:
        closed = await edge.opener.daemon.channels(include_closed=True)
        txid = next(c.closing_txid for c in closed if c.channel_id == edge.channel.channel_id)
        tx: dict[str, Any] = await lab.rpc.call("getrawtransaction", txid[::-1].hex(), True)
        for vout, output in enumerate(tx["vout"]):
            if (txid, vout) in coins or await lab.rpc.call("gettxout", txid[::-1].hex(), vout) is None:
                continue
            value_sat = btc_to_sat(output["value"])
            if value_sat != ANCHOR_SAT:
                raise Lost(f"output {vout} of {txid[::-1].hex()}, {value_sat} sat, was left behind")
            total_sat += value_sat
    return total_sat
