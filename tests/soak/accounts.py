"""The reckoning after a soak: where every millisatoshi is, and why."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc

from channeld.lab import DaemonProcess
from channeld.v1 import invoices_pb2, payments_pb2
from tests.soak.load import Paid, Soak
from tests.soak.members import Edge, Member

SUCCEEDED = payments_pb2.PAYMENT_STATE_SUCCEEDED
IN_FLIGHT = payments_pb2.PAYMENT_STATE_IN_FLIGHT
REST_SECONDS = 100.0
"""A set of parts of which one never comes is given up after 60 s (BOLT 4); until then it may be waited for."""


class Lost(AssertionError):
    """Something does not add up; the text has every fault."""


@dataclass
class Reckoning:
    """What came of it. Amounts in msat."""

    payments: int = 0
    succeeded: int = 0
    paid_msat: int = 0
    fees_msat: int = 0
    forwards: int = 0
    faults: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    """What was said of payments that were not made, and how often."""

    def require(self, holds: bool, sentence: str) -> None:
        """Notes a fault unless it `holds`."""
        if not holds:
            self.faults.append(sentence)


async def own_msat(member: Member) -> int:
    """All that a member has: on chain and in channels."""
    balance = await member.daemon.balance()
    return int(balance.confirmed_sat) * 1000 + int(balance.channels_local_msat)


async def rest(soak: Soak, edges: Iterable[Edge]) -> None:
    """Until nothing moves any more: channels usable, payments over, HTLCs gone. Raises ProcessEnded."""
    for edge in edges:
        await asyncio.gather(*(m.daemon.wait_channel(edge.channel.channel_id) for m in (edge.opener, edge.other)))
    for paid in soak.paid:
        if not paid.refused and (not paid.answers or paid.answers[-1] == IN_FLIGHT):
            payment = await paid.payer.daemon.wait_payment(paid.payment_hash, REST_SECONDS)
            paid.answers.append(payment.state)
    await asyncio.gather(*(member.daemon.wait_htlcs(False, REST_SECONDS) for member in soak.members))


async def reckon(soak: Soak, edges: list[Edge], before_msat: dict[str, int]) -> Reckoning:
    """Everything, checked. Raises Lost with all that is wrong."""
    found = Reckoning(payments=len(soak.paid))
    await rest(soak, edges)
    change_msat: dict[str, int] = defaultdict(int)
    fees_msat = await _payments(soak, found, change_msat)
    await _forwards(soak.members, found, change_msat, fees_msat)
    await _channels(edges, found)
    for member in soak.members:
        off_msat = await own_msat(member) - before_msat[member.name] - change_msat[member.name]
        found.require(off_msat == 0, f"{member.name} has {off_msat:+} msat that nothing explains")
        _log(member.daemon, found)
    total_msat = sum([await own_msat(member) for member in soak.members])
    found.require(total_msat == sum(before_msat.values()), "the network as a whole has not what it had")
    if found.faults:
        raise Lost("\n".join(found.faults))
    return found


async def _payments(soak: Soak, found: Reckoning, change_msat: dict[str, int]) -> dict[bytes, int]:
    """Payer and payee agree about each payment; returns what each that succeeded cost in fees."""
    fees: dict[bytes, int] = {}
    for paid in soak.paid:
        payment, invoice = await _record(paid), await paid.payee.daemon.received(paid.payment_hash)
        what = f"the payment {paid.payment_hash.hex()[:16]} of {paid.payer.name} to {paid.payee.name}"
        settled = invoice.state == invoices_pb2.INVOICE_STATE_SETTLED
        succeeded = payment is not None and payment.state == SUCCEEDED
        found.require(settled == succeeded, f"{what}: the payer says {succeeded}, the payee {settled}")
        answers = {state for state in paid.answers if state != IN_FLIGHT}
        found.require(len(answers) <= 1, f"{what} was told to have ended in two ways")
        if answers:
            found.require((SUCCEEDED in answers) == succeeded, f"{what} was told otherwise than it is")
        found.require(not (paid.refused and succeeded), f"{what} was made, although its payer was told: {paid.refused}")
        received_msat = int(invoice.received_msat)
        found.require(received_msat == (paid.amount_msat if settled else 0), f"{what}: {received_msat} msat came")
        if payment is None or not succeeded:
            found.failures[_brief(paid.refused or (payment.failure if payment is not None else "never heard of"))] += 1
            continue
        digest = hashlib.sha256(payment.payment_preimage).digest()
        found.require(digest == paid.payment_hash, f"{what} has no preimage")
        found.succeeded += 1
        found.paid_msat += paid.amount_msat
        found.fees_msat += int(payment.fee_msat)
        fees[paid.payment_hash] = int(payment.fee_msat)
        change_msat[paid.payer.name] -= paid.amount_msat + int(payment.fee_msat)
        change_msat[paid.payee.name] += paid.amount_msat
    for member in soak.members:
        await _listed_once(member, fees, found)
    return fees


async def _record(paid: Paid) -> payments_pb2.Payment | None:
    """The payer's record; None if it never tried."""
    try:
        return await paid.payer.daemon.payment(paid.payment_hash)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def _listed_once(member: Member, fees: dict[bytes, int], found: Reckoning) -> None:
    """No payment succeeded twice, and none that nobody asked for."""
    listed = (await member.daemon.client.payments.List(payments_pb2.ListPaymentsRequest(limit=10_000))).payments
    times = Counter(payment.payment_hash for payment in listed if payment.state == SUCCEEDED)
    for payment_hash, count in times.items():
        found.require(count == 1, f"{member.name} paid {payment_hash.hex()[:16]} {count} times")
        found.require(payment_hash in fees, f"{member.name} paid {payment_hash.hex()[:16]}, which nobody asked for")


async def _forwards(
    members: list[Member], found: Reckoning, change_msat: dict[str, int], fees_msat: dict[bytes, int]
) -> None:
    """What forwarders say that they earned is what payers say that they paid, payment by payment."""
    earned: dict[bytes, int] = defaultdict(int)
    for member in members:
        for forward in await member.daemon.forwards():
            found.forwards += 1
            earned[forward.payment_hash] += int(forward.fee_msat)
            change_msat[member.name] += int(forward.fee_msat)
    for payment_hash in earned.keys() | fees_msat.keys():
        got, gave = earned.get(payment_hash, 0), fees_msat.get(payment_hash)
        found.require(got == gave, f"for {payment_hash.hex()[:16]} {gave} msat of fees were paid, {got} msat earned")


async def _channels(edges: list[Edge], found: Reckoning) -> None:
    """Both sides of each channel say the same, and it adds up."""
    for edge in edges:
        first, second = [await _side(member.daemon, edge.channel.channel_id) for member in (edge.opener, edge.other)]
        what = f"the channel of {edge.opener.name} and {edge.other.name}"
        found.require(first == second[::-1], f"{what}: one side says {first}, the other {second}")
        found.require(sum(first) == edge.channel.capacity_sat * 1000, f"{what} has {sum(first)} msat in all")


async def _side(daemon: DaemonProcess, channel_id: bytes) -> tuple[int, int]:
    channel = next(c for c in await daemon.channels() if c.channel_id == channel_id)
    return int(channel.local_msat), int(channel.remote_msat)


def _log(daemon: DaemonProcess, found: Reckoning) -> None:
    """Bugs are told in the log, whatever the balances say."""
    lines = daemon.paths.log.read_text(errors="replace").splitlines()
    for line in lines:
        if any(word in line for word in ("critical", "Traceback", "broke a rule")):
            found.faults.append(f"{daemon.name} logged: {line[:500]}")


def _brief(failure: str) -> str:
    """Without the node ids and amounts, which differ each time."""
    return " ".join(word for word in failure.split() if not any(letter.isdigit() for letter in word))[:120]
