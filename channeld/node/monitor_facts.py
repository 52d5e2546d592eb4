"""Which transactions of a block concern the end of a channel: spends of funding outputs and of what came of them."""

from __future__ import annotations

from sqlalchemy import Connection

from channeld.node import monitor_store as rows
from channeld.node.watches import Watches
from channeld.onchain.facts import Fact, children_to_watch
from channeld.storage import Write
from wallet.bitcoin import OutPoint, Tx


class Facts:
    """The chain's facts about all channels that end. Looking at a block costs two dictionary lookups per input."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches
        self._by_channel: dict[int, list[Fact]] = {}
        self._outputs: dict[OutPoint, dict[int, bool]] = {}
        """Outputs that came of funding outputs, by channel: whether it is the commitment's own. One transaction may
        spend outputs of several channels: what it pays then concerns all of them."""

    def load(self, connection: Connection) -> None:
        """As they were when the node stopped."""
        for channel_key, facts in rows.load_facts(connection).items():
            self._by_channel[channel_key] = facts
            self._watch_again(channel_key)

    def of(self, channel_key: int) -> tuple[Fact, ...]:
        """In the chain's order."""
        return tuple(self._by_channel.get(channel_key, ()))

    def channels(self) -> list[int]:
        """Channels with facts."""
        return list(self._by_channel)

    # --- blocks

    def scan(self, tx: Tx, txid: bytes, height: int, position: int) -> list[Write]:
        """A transaction is in the block at `height`."""
        writes: list[Write] = []
        outputs, funding = self._outputs, self._watches.channel_of
        for txin in tx.inputs:
            # An output of one channel's close may fund another channel: its spend concerns both.
            known, funded = outputs.get(txin.outpoint), funding(txin.outpoint)
            for channel_key in known or ():
                writes += self._keep(channel_key, Fact(height, txid, tx), position)
            if funded is not None:
                writes += self._keep(funded, Fact(height, txid, tx), position)
        return writes

    def _keep(self, channel_key: int, fact: Fact, position: int) -> list[Write]:
        facts = self._by_channel.setdefault(channel_key, [])
        if any(known.txid == fact.txid for known in facts):
            return []
        facts.append(fact)
        self._watch_outputs(channel_key, fact)
        return [rows.save_fact(channel_key, fact, position)]

    def _watch_outputs(self, channel_key: int, fact: Fact) -> None:
        spent_first = [t.outpoint for t in fact.tx.inputs if self._outputs.get(t.outpoint, {}).get(channel_key)]
        funding = any(self._watches.channel_of(txin.outpoint) == channel_key for txin in fact.tx.inputs)
        watched = range(len(fact.tx.outputs)) if funding else children_to_watch(fact.tx, spent_first)
        for vout in watched:
            self._outputs.setdefault(OutPoint(fact.txid, vout), {})[channel_key] = funding

    def _watch_again(self, channel_key: int) -> None:
        for fact in self._by_channel[channel_key]:
            self._watch_outputs(channel_key, fact)

    def disconnected(self, height: int) -> list[Write]:
        """The block at `height` left the chain."""
        touched = [key for key, facts in self._by_channel.items() if facts and facts[-1].height >= height]
        for channel_key in touched:
            kept = [fact for fact in self._by_channel[channel_key] if fact.height < height]
            self._unwatch(channel_key)
            self._by_channel[channel_key] = kept
            self._watch_again(channel_key)
        return [rows.FORGET_FACTS_AT(height)] if touched else []

    def forget(self, channel_key: int) -> list[Write]:
        """The channel is over."""
        if channel_key not in self._by_channel:
            return []
        self._unwatch(channel_key)
        del self._by_channel[channel_key]
        return [rows.FORGET_FACTS_OF(channel_key)]

    def _unwatch(self, channel_key: int) -> None:
        for outpoint in [outpoint for outpoint, channels in self._outputs.items() if channel_key in channels]:
            del self._outputs[outpoint][channel_key]
            if not self._outputs[outpoint]:
                del self._outputs[outpoint]
