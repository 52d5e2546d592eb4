"""A restart changes nothing: a second runtime is made of a copy of the disk and compared with the one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from channeld.channel import machine
from channeld.node.runtime import NodeSettings, Runtime
from tests.sim.network_chain import SimSource
from tests.sim.network_loop import Life
from tests.sim.network_node import GAP_SCRIPTS, POLICY
from tests.sim.network_store import Database, SimStore

if TYPE_CHECKING:
    from tests.sim.network_node import SimNode
    from tests.sim.network_world import World


def check_restart(world: World, turn: int) -> None:
    """For a node, another one each turn: making a runtime takes as long as the rest of a run. All are at rest."""
    nodes = list(world.nodes.values())
    for node in nodes[turn % len(nodes) :][:1]:
        world.checked["a restart changes nothing"] += 1
        before = _memory(node.running)
        database = Database(node.database)
        life = Life(f"{node.name} again")
        found: list[dict[str, Any]] = []

        async def read(
            node: SimNode = node, life: Life = life, database: Database = database, found: list[Any] = found
        ) -> None:
            store = SimStore(database, life, world.luck, life.end)
            source = SimSource(world.chain, life, world.luck, lambda tx: None)
            settings = NodeSettings(alias=node.name, policy=POLICY, gap_limit=GAP_SCRIPTS)
            runtime = await Runtime.create(store, node.keys, source, settings)
            found.append(_memory(runtime))
            store.release()

        task = world.loop.create_task(read(), context=life.context)
        world.loop.run_for(1)
        life.end()
        if not found:
            world.problem(f"{node} could not be started again: {task}")
            continue
        for what, kept in before.items():
            if found[0][what] != kept:
                world.problem(f"{node} would have other {what} after a restart: {found[0][what]}, not {kept}"[:500])
        database.close()


def _memory(runtime: Runtime) -> dict[str, Any]:
    """What a node knows, as values that stay as they are while it goes on."""
    drivers = {driver.channel_key: driver for driver in runtime.channels.all()}
    wallet = runtime.wallet
    return {
        "channels": {key: machine.encode_state(_offline(driver.state)) for key, driver in drivers.items()},
        "HTLCs to send again": {key: dict(driver.adds) for key, driver in drivers.items()},
        "circuits": (set(runtime.forwarder._live), dict(runtime.forwarder._settled)),
        "payments": {key: live.record for key, live in runtime.payments._live.items()},
        "invoices": {key: record for key, record in runtime.invoices._live.items() if record.state == "open"},
        "onions": dict(runtime._switch._onions),
        "broadcasts": sorted(runtime._broadcasts._entries),
        "watches": {key: _watch(watch) for key, watch in runtime._watches._by_key.items()},
        "closes": dict(runtime.monitor._stored),
        "coins": sorted((coin.outpoint, coin.value_sat, coin.reserved) for coin in wallet.coins()),
        "tip": wallet.tip,
        "peers": sorted(node_id for node_id, peer in runtime.peers._peers.items() if peer.address is not None),
    }


def _watch(watch: Any) -> tuple[Any, ...]:
    return (watch.outpoint, watch.confirmed_height, watch.tx_index, watch.spent_height)


def _offline(state: Any) -> Any:
    return msgspec.structs.replace(state, link=type(state).__struct_defaults__[0]) if hasattr(state, "link") else state
