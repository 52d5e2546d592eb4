"""Random payments between random members, while random members die at random moments."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import grpc

from channeld.lab import Lab
from channeld.v1 import payments_pb2
from tests.soak.members import Member, answered

Outcome = payments_pb2.PaymentState
PAY_SECONDS = 15.0


@dataclass
class Paid:
    """A payment that was asked for. `answers`: states that the payer reported, over all its lives; `refused`: what it
    said when it did not even try."""

    payer: Member
    payee: Member
    amount_msat: int
    bolt11: str
    payment_hash: bytes
    answers: list[int]
    refused: str = ""


class Load(NamedTuple):
    """`payments`: how many in all; `workers`: how many at once; `kills`: how many deaths, spread over the payments.
    `away_seconds`: how long the dead stay dead at most. `blocks`: how many are found meanwhile."""

    payments: int
    workers: int
    kills: int
    away_seconds: float = 0.5
    amount_msat: tuple[int, int] = (1_000, 300_000_000)
    blocks: int = 0


class Soak:
    """One run. Everything random comes from `rng`; only the processes' own timing is not repeatable."""

    def __init__(self, lab: Lab, members: list[Member], load: Load, rng: Random, say: Callable[[str], None]) -> None:
        self.lab = lab
        self.members = members
        self.load = load
        self.paid: list[Paid] = []
        self.kills = 0
        self.seconds = 0.0
        self._rng = rng
        self._say = say
        self._asked = 0
        self._progress = asyncio.Condition()
        self._deaths: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Everything; afterwards all members are up."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.load.workers):
                tasks.create_task(self._work(Random(self._rng.randrange(2**63))), name=f"worker {number}")
            tasks.create_task(self._kill(Random(self._rng.randrange(2**63)), tasks))
            tasks.create_task(self._mine())
        self.seconds = time.monotonic() - began

    # --- payments

    async def _work(self, rng: Random) -> None:
        while self._asked < self.load.payments:
            self._asked += 1
            number = self._asked
            await self._pay_one(number, rng)
            async with self._progress:
                self._progress.notify_all()

    async def _pay_one(self, number: int, rng: Random) -> None:
        payer, payee = rng.sample(self.members, 2)
        amount_msat = self._amount(rng)
        invoice = await payee.ask(lambda daemon: daemon.invoice(amount_msat, f"goods {number}"))
        paid = Paid(payer, payee, amount_msat, invoice.bolt11, invoice.payment_hash, [])
        self.paid.append(paid)
        try:
            payment = await payer.ask(
                lambda daemon: daemon.pay(
                    invoice.bolt11,
                    timeout_seconds=PAY_SECONDS,
                    max_fee_msat=amount_msat // 10 + 20_000,
                    idempotency_key=f"soak {number}",
                )
            )
            paid.answers.append(payment.state)
        except grpc.aio.AioRpcError as error:
            if not answered(error):  # it ended by itself
                raise
            paid.refused = error.details() or str(error.code())

    def _amount(self, rng: Random) -> int:
        """As many small ones as large ones."""
        least, most = (math.log(bound) for bound in self.load.amount_msat)
        return round(math.exp(rng.uniform(least, most)))

    # --- deaths and blocks

    async def _reached(self, share: float) -> None:
        """Until so much of the load was asked for."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._asked >= share * self.load.payments)

    async def _kill(self, rng: Random, tasks: asyncio.TaskGroup) -> None:
        for share in sorted(rng.uniform(0.02, 0.98) for _ in range(self.load.kills)):
            await self._reached(share)
            await asyncio.sleep(rng.uniform(0, 0.1))  # anywhere in what is going on
            alive = [member for member in self.members if member.up.is_set()]
            while len(alive) <= len(self.members) // 2:
                await asyncio.wait(self._deaths, return_when=asyncio.FIRST_COMPLETED)
                alive = [member for member in self.members if member.up.is_set()]
            victim, away_seconds = rng.choice(alive), rng.uniform(0, self.load.away_seconds)
            death = tasks.create_task(victim.die_and_return(away_seconds))
            self._deaths.add(death)
            death.add_done_callback(self._deaths.discard)
            self.kills += 1
            self._say(f"kill {self.kills} of {self.load.kills}: {victim.name} after {self._asked} payments")

    async def _mine(self) -> None:
        for number in range(self.load.blocks):
            await self._reached((number + 1) / (self.load.blocks + 1))
            await self.lab.mine(1, wait=False)
