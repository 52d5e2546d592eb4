"""Sweeps of several channels in one transaction, where nobody else can take any of the outputs and nothing is due.

What each channel would take by itself at this block is a plan; plans that can go together become a batch. A channel
pays for its own inputs and its part of what the transaction has once, so never more than it would pay alone. Everything
that somebody may race us for (penalties, HTLCs) stays in transactions of its channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from channeld.bolt.transactions.sweep import Spend, sweep_weight
from channeld.onchain.outputs import Sweep
from channeld.onchain.plans import HOME_SCRIPT_BYTES, Plan
from channeld.onchain.rates import FLOOR_PER_KW, fee_sat

MAX_BATCH_INPUTS = 100
"""One output that cannot be spent costs all others of its transaction a block at most, and a rebroadcast."""


class Part(Struct, frozen=True):
    """A channel's plan; `number` is the caller's. `replaced_fee_sat` is what the whole transaction pays that it takes
    the place of, if layer 1 has that."""

    number: int
    plan: Plan
    replaced_fee_sat: int = 0

    @property
    def spends(self) -> list[Spend]:
        """Its inputs."""
        return [output.claim.spend for output in self.plan.outputs if isinstance(output.claim, Sweep)]


class Batch(Struct, frozen=True):
    """One transaction for all `parts`, at a fee rate, but at least `min_fee_sat` in all."""

    parts: tuple[Part, ...]
    feerate_per_kw: int
    min_fee_sat: int = 0

    def shares_sat(self, fee: int) -> list[int]:
        """Each part's share of a whole fee of so many sat: in proportion to its inputs' weight and an equal part of
        the rest. The sum is exactly the fee."""
        own = [sum(spend.input_weight for spend in part.spends) for part in self.parts]
        whole, count = self.weight, len(own)
        frame = whole - sum(own)
        shares: list[int] = []
        until = given = 0
        for number, weight in enumerate(own, 1):
            until += weight
            upto = fee * (until * count + frame * number) // (whole * count)
            shares.append(upto - given)
            given = upto
        return shares

    @property
    def wanted_fee_sat(self) -> int:
        """What it is going to pay at most."""
        return max(fee_sat(self.weight, self.feerate_per_kw), self.min_fee_sat)

    @property
    def weight(self) -> int:
        """Expected weight, at most."""
        return sweep_weight([spend for part in self.parts for spend in part.spends], bytes(HOME_SCRIPT_BYTES))


def is_joinable(plan: Plan) -> bool:
    """Whether a plan may share a transaction with other channels': nobody races for its outputs, and nothing went wrong
    with it in company before."""
    return plan.group == "sweep" and not plan.alone


def batches(parts: Sequence[Part]) -> Iterator[Batch]:
    """What goes together: fresh sweeps, and replacements of the same transaction. Parts that cannot pay their share of
    a replacement are left out, and stay with what is out already."""
    groups: dict[bytes, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.plan.replaces, []).append(part)
    for members in groups.values():
        for chunk in _chunks(members):
            batch = _affordable(chunk)
            if batch is not None:
                yield batch


def _chunks(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """In order, each of MAX_BATCH_INPUTS at most where that does not divide a plan."""
    chunk: list[Part] = []
    inputs = 0
    for part in parts:
        size = len(part.plan.outputs)
        if chunk and inputs + size > MAX_BATCH_INPUTS:
            yield chunk
            chunk, inputs = [], 0
        chunk.append(part)
        inputs += size
    if chunk:
        yield chunk


def _affordable(parts: list[Part]) -> Batch | None:
    """Without those whose share would exceed their budget; the worst first to go."""
    members = parts
    while members:
        batch = _batch(members)
        shares = batch.shares_sat(batch.wanted_fee_sat)
        excess = [share - part.plan.max_fee_sat for share, part in zip(shares, members, strict=True)]
        if max(excess) <= 0:
            return batch
        worst = excess.index(max(excess))
        members = members[:worst] + members[worst + 1 :]
    return None


def _batch(parts: Sequence[Part]) -> Batch:
    rate = max(part.plan.feerate_per_kw for part in parts)
    batch = Batch(tuple(parts), rate, max(part.plan.min_fee_sat for part in parts))
    replaced = max(part.replaced_fee_sat for part in parts)
    if replaced:
        # BIP 125: it pays for what it evicts, and for its own relay.
        least = replaced + fee_sat(batch.weight, FLOOR_PER_KW)
        return Batch(batch.parts, rate, max(batch.min_fee_sat, least))
    return batch
