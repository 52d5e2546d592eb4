"""A scene for cheats with real processes: layer 1, a tower, Bob who cheats, and those whom he tries it on.

Who got what is read from the chain: every output of the old commitment is followed to the coins that its value ended
in, and those belong to whose wallet lists them; what is left is fees.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.lab.processes import ManagedProcess
from channeld.lab.tower import start, tower_process
from channeld.v1 import channels_pb2, towers_pb2, wallet_pb2
from wallet.bitcoin import Block, OutPoint, Tx
from wallet.rpc import RpcError
from watchtower.client.connection import TowerUri
from watchtower.tower.paths import tower_paths

CAPACITY_SAT = 1_000_000
PUSHED_SAT = 400_000
HELD_SAT = 60_000
"""An HTLC to Bob in the old state."""
RETURNED_SAT = 70_000
"""An HTLC of Bob's in the old state."""
GIVEN_BACK_SAT = 250_000
"""What Bob pays after the state that he will go back to."""
FUNDS_SAT = 10_000_000
ANCHOR_SAT = 330
COIN_SAT = 200_000
COINS_FOR_FEES = 6
"""Each of the HTLC transactions that Bob makes at once needs a confirmed coin of its own."""
DELAY_BLOCKS = 144
WAIT_SECONDS = 60.0
BLOCK_SECONDS = 2.0
PATIENCE_BLOCKS = 15
USUAL_FEE_SAT_PER_VB = 2
Watcher = Literal["node", "own tower", "blind tower", "nobody"]
NAMES: dict[Watcher, str] = {"node": "alice", "own tower": "carol", "blind tower": "dave"}


@dataclass
class Victim:
    """Somebody with a channel to Bob, and who watches over it while Bob cheats."""

    daemon: DaemonProcess
    watcher: Watcher
    channel: channels_pb2.Channel
    owned_sat: int = 0
    """Its share of the newest commitment, before the commitment's fee."""
    claimed_sat: int = 0
    """Bob's share of the old one, with all its HTLCs."""
    old: Tx = field(init=False)
    """The old commitment that Bob published."""

    @property
    def is_alive(self) -> bool:
        """Whether its daemon runs."""
        return self.daemon.process.is_running

    @property
    def channel_id(self) -> str:
        return str(self.channel.channel_id.hex())


@dataclass(frozen=True)
class Ending:
    """What became of a channel's capacity (sat): all adds up to it."""

    victim_sat: int
    cheater_sat: int
    """Less what his wallet put in, for the fees of HTLC transactions: he may end with less than nothing."""
    commitment_fee_sat: int
    justice_fee_sat: int
    cheater_fee_sat: int
    left_sat: int
    """Outputs that nobody has taken: anchors."""

    @property
    def total_sat(self) -> int:
        """The capacity, if nothing was overlooked."""
        fees_sat = self.commitment_fee_sat + self.justice_fee_sat + self.cheater_fee_sat
        return self.victim_sat + self.cheater_sat + fees_sat + self.left_sat


class Cheater:
    """Bob, with the means of `tests.cheating_daemon`."""

    def __init__(self, lab: Lab) -> None:
        self.daemon = lab.add_daemon("bob", module="tests.cheating_daemon")

    async def ask(self, do: str, **arguments: Any) -> Any:
        """One command."""
        port = int((await self.daemon.process.wait_line("cheats on port")).split()[-1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        writer.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        assert "error" not in answer, answer
        return answer["answer"]

    async def old_state(self, victim: Victim, htlcs: bool) -> dict[str, int]:
        """The state that is worth most to Bob, with HTLCs both ways or with none."""
        states = await self.ask("states", channel_id=victim.channel_id)
        fit = [s for s in states if (s["incoming"], s["outgoing"]) == ((1, 1) if htlcs else (0, 0))]
        found: dict[str, int] = max(fit, key=lambda state: state["local_msat"])
        assert found["number"] < states[-1]["number"], "it is not old"
        return found

    async def stages(self, victim: Victim, count: int) -> list[Tx]:
        """His HTLC transactions, as soon as there are so many."""
        found = await self.ask("stages", channel_id=victim.channel_id, count=count)
        return [Tx.parse(bytes.fromhex(raw)) for raw in found]


class Scene:
    """Everybody. `victims` are alive, or dead and watched over by the tower, as their watchers say. The processes go on
    from one cheat to the next; each has channels of its own."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(directory)
        self.victims: list[Victim] = []
        self.bob: Cheater
        self.tower: ManagedProcess
        self._uri: TowerUri
        self._daemons: dict[Watcher, DaemonProcess] = {}
        self._directory = directory
        self._miner = ""

    async def __aenter__(self) -> Scene:
        await self.lab.__aenter__()
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self.tower.terminate()
        finally:
            await self.lab.close()

    async def _start(self) -> None:
        self._miner = await self.rpc("getnewaddress")
        self.bob = Cheater(self.lab)
        self.tower = tower_process(self.lab, self._directory / "tower", "--log-level", "info")
        for watcher in ("node", "own tower", "blind tower"):
            self._daemons[watcher] = self.lab.add_daemon(NAMES[watcher])
        everybody = [self.bob.daemon, *self._daemons.values()]
        await asyncio.gather(self.start_tower(), *(begin(daemon) for daemon in everybody))
        for daemon in everybody:
            await self.rpc("sendtoaddress", await daemon.new_address(), f"{FUNDS_SAT / 1e8:.8f}")
        for _ in range(COINS_FOR_FEES):
            await self.rpc("sendtoaddress", await self.bob.daemon.new_address(), f"{COIN_SAT / 1e8:.8f}")
        await self.lab.mine(1)
        towers: tuple[Watcher, ...] = ("own tower", "blind tower")
        for watcher in towers:
            added = towers_pb2.AddTowerRequest(uri=str(self._uri), own=watcher == "own tower")
            await self._daemons[watcher].client.towers.Add(added)

    async def rpc(self, method: str, *parameters: Any) -> Any:
        """Layer 1's answer."""
        return await self.lab.rpc.call(method, *parameters)

    # --- a life before the cheat

    async def prepare(self, watchers: Sequence[Watcher], htlcs: bool) -> None:
        """Everybody is alive. One channel for each watcher, and payments that leave Bob with less than he had; then
        those die who have somebody else to watch for them, or nobody."""
        await self.come_back()
        await self.set_fee(USUAL_FEE_SAT_PER_VB)
        daemons = [self._daemons.get(watcher, self._daemons["node"]) for watcher in watchers]
        pairs = list(zip(watchers, daemons, strict=True))
        self.victims = list(await asyncio.gather(*(self._opened(watcher, daemon) for watcher, daemon in pairs)))
        await self.lab.mine(6)
        for victim in self.victims:
            await victim.daemon.wait_channel(victim.channel.channel_id)
            await self.bob.daemon.wait_channel(victim.channel.channel_id)
        await asyncio.gather(*(self._paid(victim, htlcs) for victim in self.victims))
        for victim in self.victims:
            await self._look(victim, htlcs)
            if victim.watcher.endswith("tower"):
                await _until("the tower is up to date", partial(_is_up_to_date, victim.daemon))
        for victim in self.victims:
            if victim.watcher != "node":
                await victim.daemon.kill()

    async def set_fee(self, sat_per_vb: int) -> None:
        """What layer 1 estimates from now on."""
        await self.rpc("setestimatedfee", f"{sat_per_vb / 1e5:.8f}")

    async def _opened(self, watcher: Watcher, daemon: DaemonProcess) -> Victim:
        await daemon.connect(self.bob.daemon)
        channel = await daemon.open_channel(self.bob.daemon, CAPACITY_SAT, push_msat=PUSHED_SAT * 1000, private=True)
        return Victim(daemon, watcher, channel)

    async def _paid(self, victim: Victim, htlcs: bool) -> None:
        alice, bob = victim.daemon, self.bob.daemon
        if htlcs:
            await self.bob.ask("hold", channel_id=victim.channel_id)
            invoice = await bob.invoice(HELD_SAT * 1000)
            held = asyncio.create_task(alice.pay(invoice.bolt11))
            await self._until_incoming(victim)
            await bob.pay((await alice.invoice(RETURNED_SAT * 1000)).bolt11)
            await self.bob.ask("release", channel_id=victim.channel_id)
            await held
        await bob.pay((await alice.invoice(GIVEN_BACK_SAT * 1000)).bolt11)

    async def _until_incoming(self, victim: Victim) -> None:
        async def there() -> bool:
            return bool((await self.bob.ask("states", channel_id=victim.channel_id))[-1]["incoming"])

        await _until("the HTLC is held", there)

    async def _look(self, victim: Victim, htlcs: bool) -> None:
        channel = await victim.daemon.wait_channel(victim.channel.channel_id)
        assert not channel.htlcs
        victim.owned_sat = channel.local_msat // 1000
        old = await self.bob.old_state(victim, htlcs)
        victim.claimed_sat = old["local_msat"] // 1000 + (HELD_SAT + RETURNED_SAT if htlcs else 0)
        assert victim.claimed_sat > CAPACITY_SAT - victim.owned_sat

    # --- the tower

    async def start_tower(self) -> None:
        """Returns when it is ready. After the first start it listens where it did before."""
        self._uri = await start(self.tower, tower_paths("regtest", self._directory / "tower"))
        self.tower.command[self.tower.command.index("--listen") + 1] = self._uri.address

    # --- the cheat

    async def cheat(self, htlcs: bool) -> None:
        """Bob goes back to old states in all channels; the commitments are in the mempool when this returns."""
        for victim in self.victims:
            old = await self.bob.old_state(victim, htlcs)
            raw = await self.bob.ask("go back", channel_id=victim.channel_id, number=old["number"])
            victim.old = Tx.parse(bytes.fromhex(raw))
        await self.until_in_mempool([victim.old.txid() for victim in self.victims])

    async def expired(self) -> int:
        """Blocks until the old states' HTLCs have expired; the height."""
        expiry = max([(await self.bob.old_state(victim, True))["expiry"] for victim in self.victims])
        await self.lab.mine(expiry - await self.lab.height())
        return expiry

    # --- blocks

    async def mine_only(self, *txs: Tx) -> None:
        """A block with these alone; what else is in the mempool stays there."""
        await self.rpc("generateblock", self._miner, [tx.serialize().hex() for tx in txs])
        await self.lab.wait_synced()

    async def reorganise(self, *txs: Tx) -> None:
        """The last block leaves the chain; one with `txs` and an empty one come."""
        await self.rpc("invalidateblock", await self.rpc("getbestblockhash"))
        await self.rpc("generateblock", self._miner, [tx.serialize().hex() for tx in txs])
        await self.mine_only()

    # --- the mempool

    async def until_in_mempool(self, txids: Sequence[bytes]) -> None:
        """Until all are there."""
        wanted = {txid[::-1].hex() for txid in txids}

        async def there() -> bool:
            return wanted <= set(await self.rpc("getrawmempool"))

        await _until("transactions reach the mempool", there)

    async def until_justice(self, least_feerate_per_kw: int = 0) -> None:
        """Until, for every victim, what pays at least so much is about to take Bob's main output."""
        for victim in self.victims:
            await self._patiently("justice", victim, partial(self._is_on_its_way, victim, least_feerate_per_kw))

    async def _patiently(self, what: str, victim: Victim, reached: Callable[[], Awaitable[bool]]) -> None:
        """Until it is so. Meanwhile blocks come with nothing of it: somebody may have evicted what was published, which
        a block brings to light."""
        for _ in range(PATIENCE_BLOCKS):
            try:
                async with asyncio.timeout(BLOCK_SECONDS):
                    while not await reached():  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                return
            except TimeoutError:
                await self.mine_only()
        raise AssertionError(f"no {what} for the channel that is watched by {victim.watcher}")

    async def until_spent(self) -> None:
        """Until everything but anchors is in somebody's wallet, or about to be."""
        for victim in self.victims:
            await _until(f"{victim.watcher}: all is spent", partial(self._is_closed, victim))

    async def until_taken(self, *blind: Watcher) -> None:
        """Until somebody is about to take Bob's main outputs and those of his HTLC transactions: justice, or Bob after
        his delay. What the `blind` watch over is not waited for."""
        for victim in self.victims:
            if victim.watcher not in blind:
                await self._patiently("end of Bob's outputs", victim, partial(self._is_taken, victim))

    async def _is_taken(self, victim: Victim) -> bool:
        trail = Trail(victim.old, await self._since(victim))
        delayed = {OutPoint(step.tx.txid(), 0) for step in trail.steps if step.brought}
        for outpoint in trail.ends.keys() & {OutPoint(victim.old.txid(), self._main_output(victim)), *delayed}:
            if await self.rpc("gettxout", outpoint.txid[::-1].hex(), outpoint.vout) is not None:
                return False
        return True

    async def _is_closed(self, victim: Victim) -> bool:
        trail = Trail(victim.old, await self._since(victim))
        coins = await _coins(self.bob.daemon) | (await _coins(victim.daemon) if victim.is_alive else set())
        for outpoint, value_sat in trail.ends.items():
            if value_sat == ANCHOR_SAT or outpoint in coins:
                continue
            if await self.rpc("gettxout", outpoint.txid[::-1].hex(), outpoint.vout) is not None:
                return False
        return True

    async def _is_on_its_way(self, victim: Victim, least_feerate_per_kw: int) -> bool:
        main = self._main_output(victim)
        txid = victim.old.txid()[::-1].hex()
        (answer,) = await self.rpc("gettxspendingprevout", [{"txid": txid, "vout": main}])
        if "spendingtxid" not in answer:
            return False
        try:
            found = await self.rpc("getmempoolentry", answer["spendingtxid"])
        except RpcError:
            return False  # it was just replaced
        return bool(round(float(found["fees"]["base"]) * 1e8) * 1000 >= least_feerate_per_kw * int(found["weight"]))

    @staticmethod
    def _main_output(victim: Victim) -> int:
        """Bob's `to_local`: what is neither an HTLC, nor an anchor, nor the victim's."""
        bob_sat = victim.claimed_sat - (HELD_SAT + RETURNED_SAT if len(victim.old.outputs) > 4 else 0)
        return min(range(len(victim.old.outputs)), key=lambda v: abs(victim.old.outputs[v].value_sat - bob_sat))

    # --- the reckoning

    async def come_back(self) -> None:
        """The dead start again, and look at what they missed."""
        dead = [daemon for daemon in self._daemons.values() if not daemon.process.is_running]
        await asyncio.gather(*(begin(daemon) for daemon in dead))
        await self.lab.wait_synced()

    async def ending(self, victim: Victim) -> Ending:
        """Who has the channel's money now. All daemons that are asked must be alive and at the tip."""
        trail = Trail(victim.old, await self._since(victim))
        theirs, bobs = await _coins(victim.daemon), await _coins(self.bob.daemon)
        cheater_fee_sat = justice_fee_sat = lost_sat = 0
        for step in trail.steps:
            brought_sat = sum([await self._value_sat(outpoint) for outpoint in step.brought])
            fee_sat = step.taken_sat + brought_sat - sum(output.value_sat for output in step.tx.outputs)
            if step.brought:
                lost_sat += fee_sat - (step.taken_sat - step.passed_sat)
            if step.brought or any(outpoint.txid == step.tx.txid() for outpoint in bobs):
                cheater_fee_sat += fee_sat
            else:
                justice_fee_sat += fee_sat
        return Ending(
            victim_sat=sum(sat for outpoint, sat in trail.ends.items() if outpoint in theirs),
            cheater_sat=sum(sat for outpoint, sat in trail.ends.items() if outpoint in bobs) - lost_sat,
            commitment_fee_sat=CAPACITY_SAT - sum(output.value_sat for output in victim.old.outputs),
            justice_fee_sat=justice_fee_sat,
            cheater_fee_sat=cheater_fee_sat,
            left_sat=sum(sat for outpoint, sat in trail.ends.items() if outpoint not in theirs | bobs),
        )

    async def _value_sat(self, outpoint: OutPoint) -> int:
        raw = await self.rpc("getrawtransaction", outpoint.txid[::-1].hex())
        return Tx.parse(bytes.fromhex(raw)).outputs[outpoint.vout].value_sat

    async def _since(self, victim: Victim) -> list[Tx]:
        """All transactions from the block with Bob's commitment on."""
        first = await self._height_of(victim.old)
        return [tx for height in range(first, await self.lab.height() + 1) for tx in await self._block(height)]

    async def _block(self, height: int) -> tuple[Tx, ...]:
        raw = await self.rpc("getblock", await self.rpc("getblockhash", height), 0)
        return Block.parse(bytes.fromhex(raw)).txs

    async def _height_of(self, tx: Tx) -> int:
        found = await self.rpc("getrawtransaction", tx.txid()[::-1].hex(), 1)
        return int((await self.rpc("getblockheader", found["blockhash"]))["height"])


class Step(NamedTuple):
    """A transaction that takes `taken_sat` of the channel, and passes `passed_sat` of it on to outputs that are to be
    taken yet; `brought` are other coins in it, which pay its fee."""

    tx: Tx
    taken_sat: int
    passed_sat: int
    brought: tuple[OutPoint, ...]


class Trail:
    """Where the value of a commitment went: transactions on top of it, and the outputs that it lies in after `txs`.

    Outputs that are followed further pay to script hashes, as all of BOLT 3 do; wallets have none such. With
    `option_anchors` an HTLC transaction's output has what its input had, at the same place; its change is not followed.
    """

    def __init__(self, commitment: Tx, txs: Sequence[Tx]) -> None:
        self.ends: dict[OutPoint, int] = {}
        self.steps: list[Step] = []
        self._open: dict[OutPoint, int] = {}
        self._reach(commitment, range(len(commitment.outputs)))
        for tx in txs:
            self._follow(tx)

    def _follow(self, tx: Tx) -> None:
        taken = {i: self._open.pop(txin.outpoint) for i, txin in enumerate(tx.inputs) if txin.outpoint in self._open}
        if not taken:
            return
        for place in taken:
            del self.ends[tx.inputs[place].outpoint]
        brought = tuple(txin.outpoint for place, txin in enumerate(tx.inputs) if place not in taken)
        places = range(len(tx.outputs))
        kept = [i for i in places if not brought or (i in taken and taken[i] == tx.outputs[i].value_sat)]
        self._reach(tx, kept)
        passed_sat = sum(tx.outputs[place].value_sat for place in kept)
        self.steps.append(Step(tx, sum(taken.values()), passed_sat, brought))

    def _reach(self, tx: Tx, places: Iterable[int]) -> None:
        txid = tx.txid()
        for place in places:
            output = tx.outputs[place]
            self.ends[OutPoint(txid, place)] = output.value_sat
            if output.script_pubkey[:2] == b"\x00\x20":
                self._open[OutPoint(txid, place)] = output.value_sat


async def begin(daemon: DaemonProcess) -> None:
    """Start it, and wait as long as a machine may take on which everything starts at once."""
    await daemon.process.start()
    await daemon.wait_ready(WAIT_SECONDS)


async def _coins(daemon: DaemonProcess) -> set[OutPoint]:
    coins = (await daemon.client.wallet.ListCoins(wallet_pb2.ListCoinsRequest())).coins
    return {OutPoint(coin.txid, coin.vout) for coin in coins}


async def _is_up_to_date(daemon: DaemonProcess) -> bool:
    """Whether its tower has everything."""
    return bool((await daemon.client.towers.Check(towers_pb2.CheckTowersRequest())).up_to_date)


async def _until(what: str, reached: Callable[[], Awaitable[bool]]) -> None:
    """Until something is so that no event tells. Raises AssertionError after a while."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not await reached():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None
