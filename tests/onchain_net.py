"""Two nodes in this process over a regtest layer 1, for closes that are no fun: HTLCs that nobody answers, old
commitments, blocks with chosen transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from channeld.bolt.transactions import Htlc, build_commitment
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.chain import signed_local_commitment
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import Funded, Normal
from channeld.node.channels import Driver
from channeld.node.driver import NO_REACTION, Reaction
from channeld.node.gossip import GossipSettings
from channeld.node.monitor_store import load_report
from channeld.node.node import Node
from channeld.node.runtime import NodeSettings, Runtime
from channeld.onchain.plans import Attempt
from channeld.onchain.report import CloseReport, OutputReport
from channeld.storage import Store, make_engine, upgrade
from wallet.bitcoin import Tx
from wallet.bitcoin.address import REGTEST
from wallet.bitcoin.secp import sign
from wallet.bitcoind import BitcoindChainSource, BitcoindConfig, RpcConfig
from wallet.keys import Keys, Seed
from wallet.regtest.policy import Policy
from wallet.regtest.server import RegtestServer, Settings

STRANGER = bytes.fromhex("0014" + "ab" * 20)
POLICY = ChannelPolicy(to_self_delay_blocks=20, minimum_depth_blocks=1)


class Held:
    """A switch that answers no HTLC and remembers what became of ours."""

    def __init__(self) -> None:
        self.locked: list[Htlc] = []
        self.settled_ids: dict[int, bytes] = {}
        self.failed_ids: dict[int, fx.HtlcFailed] = {}

    def locked_in(self, driver: Driver, htlc: Htlc, must_fail: bool) -> Reaction:
        self.locked.append(htlc)
        return NO_REACTION

    def read_ahead(self, driver: Driver, htlc_id: int) -> None:
        """Nothing is read."""

    def locked_in_done(self, htlc: Htlc) -> None:
        """Nothing was decided."""

    def removed(self, driver: Driver, htlc_id: int) -> None:
        """Not of interest."""

    def settled(self, driver: Driver, effect: fx.HtlcSettled) -> Reaction:
        assert effect.id not in self.failed_ids
        self.settled_ids[effect.id] = effect.payment_preimage
        return NO_REACTION

    def failed(self, driver: Driver, effect: fx.HtlcFailed) -> Reaction:
        assert effect.id not in self.settled_ids
        self.failed_ids[effect.id] = effect
        return NO_REACTION

    def outgoing_done(self, effect: fx.HtlcSettled | fx.HtlcFailed) -> None:
        """Nobody waits."""

    def load(self, connection: object) -> None:
        """Nothing is kept."""

    def expire(self, height: int) -> list[Any]:
        """No onions."""
        return []


class TestNode:
    """A node that can be stopped and started again."""

    __test__ = False

    def __init__(self, name: str, directory: Path, server: RegtestServer) -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir()
        self.server = server
        self.keys = Keys.from_seed(Seed.create(sha256(name.encode()).digest()[:16]), REGTEST)
        self.held = Held()
        self.runtime: Runtime
        self.node: Node
        self.source: BitcoindChainSource
        self.birthday: int | None = 0
        self.channel_id = b""
        self.running = False

    async def start(self) -> None:
        engine = make_engine(f"sqlite:///{self.directory / 'node.sqlite3'}")
        upgrade(engine)
        store = Store(engine, lambda error: None)
        user, password = self.server.auth
        config = BitcoindConfig(
            RpcConfig(self.server.url, user, password),
            retry_seconds=(0.05,),
            fallback_feerate_sat_per_kw=300,
        )
        self.source = BitcoindChainSource(config, REGTEST)
        settings = NodeSettings(
            alias=self.name,
            listen=(("127.0.0.1", 0),),
            policy=POLICY,
            birthday_height=self.birthday,
            gossip=GossipSettings(self.directory / "gossip"),
        )
        self.birthday = None
        self.runtime = await Runtime.create(store, self.keys, self.source, settings)
        self.node = Node(self.runtime)
        self.runtime.channels.connect_parts(self.held, self.runtime.coins)  # type: ignore[arg-type]
        self.runtime._switch = self.held  # type: ignore[assignment]
        await self.runtime.start()
        await self.runtime.wait_synced()
        self.running = True

    async def stop(self) -> None:
        self.running = False
        await self.runtime.close()

    @property
    def driver(self) -> Driver:
        """Its only channel."""
        (driver,) = self.runtime.channels.all()
        return driver

    @property
    def state(self) -> Funded:
        state = self.driver.state
        assert isinstance(state, Funded)
        return state

    def env(self) -> Any:
        return self.runtime.channels.env(self.driver)

    def commitment(self, state: Funded | None = None) -> Tx:
        """Its own commitment, signed; an old state's, to cheat with."""
        funded = state or self.state
        return signed_local_commitment(funded, self.env())  # type: ignore[arg-type]

    def set_feerate(self, feerate_per_kw: int) -> None:
        """What layer 1 tells it from now on."""

        async def estimate(target_blocks: int) -> int:
            return feerate_per_kw

        self.source.fee_rate_sat_per_kw = estimate  # type: ignore[method-assign]

    async def command(self, event: ev.Event) -> None:
        await self.runtime.channels.command(self.driver, event)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until something is so. That all is quiet is no event that one could wait for."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def balance_sat(self) -> int:
        return self.runtime.wallet.balance().confirmed_sat

    def report(self) -> CloseReport:
        """What there is to tell of its channel's end."""
        channel_id = self.channel_id
        found = self.runtime._store.read_now(lambda connection: load_report(connection, channel_id))
        assert found is not None
        return found

    def attempts(self) -> tuple[Attempt, ...]:
        """What its monitor has under way."""
        channel_key = self.driver.channel_key
        return self.runtime.monitor._stored[channel_key].resolution.attempts

    def outputs(self, kind: str) -> list[OutputReport]:
        """Those of a kind."""
        return [output for output in self.report().outputs if output.kind == kind]


class Net:
    """Layer 1, Alice and Bob."""

    def __init__(self, directory: Path, policy: Policy | None = None) -> None:
        self.server = RegtestServer(directory / "layer1", Settings(policy=policy or Policy()))
        self.directory = directory
        self.alice: TestNode
        self.bob: TestNode

    async def __aenter__(self) -> Net:
        await self.server.start()
        await self.server.node.mine(STRANGER)
        self.alice, self.bob = (TestNode(name, self.directory, self.server) for name in ("alice", "bob"))
        for node in self.nodes:
            await node.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.running:
                await node.stop()
        await self.server.stop()

    @property
    def nodes(self) -> tuple[TestNode, TestNode]:
        return self.alice, self.bob

    @property
    def height(self) -> int:
        return self.server.node.chain.tip.height

    # --- blocks

    async def mine(self, count: int = 1, script: bytes = STRANGER, txs: Sequence[Tx] | None = None) -> None:
        """Blocks of what is in the mempool, or of exactly `txs`; returns when the nodes have done with each."""
        await self.settle()
        for _ in range(count):
            await self.server.node.mine(script, txs)
            await self.settle()

    async def skip(self, count: int) -> None:
        """Blocks in quick succession: the nodes look when they are through with all."""
        await self.settle()
        for _ in range(count):
            await self.server.node.mine(STRANGER)
        await self.settle()

    async def settle(self) -> None:
        """Until both nodes have seen the tip and their monitors rest."""
        for node in self.nodes:
            await self.settled(node)

    async def settled(self, node: TestNode) -> None:
        if not node.running:
            return
        tip = self.server.node.chain.tip.hash
        runtime = node.runtime
        await node.until(lambda: runtime.wallet.tip is not None and runtime.wallet.tip.hash == tip)
        await node.until(lambda: runtime.chain.synced and runtime.monitor._in_step)
        for _ in range(3):
            await node.until(lambda: not any(driver._busy for driver in runtime.channels.all()))
            await runtime.monitor.wait_idle()
            await asyncio.sleep(0)

    async def reorganise(self, depth: int, first: Sequence[Tx] = (), forget: bool = False) -> None:
        """The last blocks leave the chain; as many and one more come, the first with `first`. The mempool may `forget`
        what was in them."""
        await self.settle()
        node = self.server.node
        block = node.chain.tip
        for _ in range(depth - 1):
            assert block.previous is not None
            block = block.previous
        await node.invalidate(block)
        if forget:
            node.mempool.pool.remove(list(node.mempool.pool.entries), "test")
        await node.mine(STRANGER, list(first))
        for _ in range(depth):
            await node.mine(STRANGER)
        await self.settle()

    async def restart(self, node: TestNode) -> None:
        """Stop and start again."""
        await node.stop()
        await node.start()
        await self.settle()

    # --- a channel

    async def open_channel(
        self, amount_sat: int = 1_000_000, push_msat: int = 400_000_000, close_to_address: str = ""
    ) -> None:
        """Alice's channel with Bob; each has coins on chain beside it."""
        for node in self.nodes:
            script = await node.runtime.wallet.new_script()
            await self.server.node.mine(script)
            await self.server.node.mine(script)
        for _ in range(100):
            await self.server.node.mine(STRANGER)
        await self.settle()
        host, port = self.bob.runtime.listening[0].rsplit(":", 1)
        bob_id = self.bob.runtime.identity.node_id
        await self.alice.node.connect_peer(bob_id, host, int(port))
        opening = await self.alice.node.open_channel(
            bob_id, amount_sat, push_msat, announce=False, close_to_address=close_to_address
        )
        assert opening.funding_txid is not None
        await self.mine(2)
        for node in self.nodes:
            await node.until(lambda node=node: isinstance(node.driver.state, Normal) and bool(node.driver.state.scid))  # type: ignore[misc]
            node.channel_id = node.driver.channel_id

    async def add(self, sender: TestNode, amount_msat: int, number: int, cltv_blocks: int = 60) -> int:
        """An HTLC that stays: its id. Returns when it is irrevocable for the receiver."""
        receiver = self.bob if sender is self.alice else self.alice
        before = len(receiver.held.locked)
        id = sender.state.commitments.local_next_htlc_id
        payment_hash = sha256(preimage(number)).digest()
        await sender.command(ev.AddHtlc(amount_msat, payment_hash, self.height + cltv_blocks, bytes(1366), b"test"))
        await receiver.until(lambda: len(receiver.held.locked) > before)
        await self.quiet()
        return id

    async def quiet(self) -> None:
        """Until no update is under way."""
        for node in self.nodes:
            await node.until(lambda node=node: node.state.commitments.is_settled and not node.driver._busy)  # type: ignore[misc]

    async def disconnect(self) -> None:
        """The peers do not talk any more, and do not try to."""
        for node in self.nodes:
            await node.runtime.peers.stop()
        for node in self.nodes:
            await node.until(lambda node=node: all(d.link is None for d in node.runtime.channels.all()))  # type: ignore[misc]


def second_stages(node: TestNode, state: Funded, preimages: dict[int, bytes]) -> dict[str, Tx]:
    """What a cheater makes of its old commitment: HTLC-success and HTLC-timeout transactions, without fee, each with an
    anyone-can-add input missing. Only for blocks that are made by hand. By kind, the last of each."""
    commitments = state.commitments
    params, local = state.params.commitment, commitments.local
    signer = node.driver.secrets
    point = signer.per_commitment_point(local.index)
    built = build_commitment(params, local.spec.commitment_spec(), "local", local.index, point)
    found: dict[str, Tx] = {}
    for output, remote_sig in zip(built.htlcs, local.remote_htlc_sigs, strict=True):
        known = {sha256(item).digest(): item for item in preimages.values()}
        item = b"" if output.offered_by_owner else known.get(output.htlc.payment_hash, b"")
        if not output.offered_by_owner and not item:
            continue
        own = sign(signer.htlc_secret(point), output.owner_sighash())
        tx = output.htlc_tx().with_witness(0, output.witness(remote_sig, own, item))
        found["timeout" if output.offered_by_owner else "success"] = tx
    return found


def preimage(number: int) -> bytes:
    """Of payment `number`."""
    return sha256(b"preimage %d" % number).digest()
