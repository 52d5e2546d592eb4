"""Plans made into transactions with the wallet: a script to sweep to, coins to pay fees with."""

from __future__ import annotations

from collections.abc import Sequence

from channeld.bolt.transactions import ChannelSecrets
from channeld.bolt.transactions.sweep import Uneconomical
from channeld.node.wallet_store import to_rows
from channeld.onchain import build
from channeld.onchain.anchor import missing_fee_sat
from channeld.onchain.batch import Batch
from channeld.onchain.known import Known
from channeld.onchain.outputs import HtlcTx, Output, Sweep
from channeld.onchain.plans import Attempt, Plan
from channeld.onchain.rates import FLOOR_PER_KW, least_bump
from channeld.storage import Write
from wallet import errors as we
from wallet.bitcoin import OutPoint, Tx, TxOut
from wallet.funding import ForeignInput, Request
from wallet.spending import FundedTx
from wallet.store import Write as WalletWrite
from wallet.wallet import Wallet


class CannotMake(Exception):
    """A plan that cannot be carried out now; the text is a sentence. `short_sat`: so much is missing in the wallet."""

    def __init__(self, sentence: str, short_sat: int = 0) -> None:
        super().__init__(sentence)
        self.short_sat = short_sat


class Made:
    """A complete transaction, and the rows that must be durable before it is published."""

    __slots__ = ("attempt", "writes")

    def __init__(self, attempt: Attempt, writes: list[Write]) -> None:
        self.attempt = attempt
        self.writes = writes


class Maker:
    """Makes transactions of plans. Methods raise CannotMake."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet

    def release(self, reservation: int) -> list[Write]:
        """Free coins of a transaction that is not needed any more."""
        return to_rows(self._wallet.unreserve(reservation)) if reservation else []

    def reserved_sat(self, reservation: int) -> int:
        """What the coins of a transaction hold."""
        held = set(self._wallet.reservations().get(reservation, ()))
        return sum(coin.value_sat for coin in self._wallet.coins() if coin.outpoint in held)

    async def make(
        self,
        plan: Plan,
        known: Known,
        number: int | None,
        signer: ChannelSecrets,
        height: int,
        replaced: Attempt | None,
    ) -> Made:
        """The plan's transaction. `number` is the commitment's; `replaced` is what it takes the place of."""
        if plan.group == "presigned":
            tx, fee_sat = build.build_presigned(plan, signer)
            return Made(build.attempt_of(plan, tx, fee_sat, height), [])
        if plan.group == "htlc" or plan.group == "anchor":
            return self._with_coins(plan, known, signer, height, replaced)
        script = plan.script_pubkey or await self._wallet.new_script()
        try:
            tx = build.build_sweep(plan, known, number, signer, script)
        except Uneconomical as error:
            raise CannotMake(str(error)) from error
        fee_sat = sum(output.amount_sat for output in plan.outputs) - tx.outputs[0].value_sat
        return Made(build.attempt_of(plan, tx, fee_sat, height), [])

    async def make_batch(self, batch: Batch, signers: Sequence[ChannelSecrets], height: int) -> list[Attempt]:
        """A batch's transaction, as an attempt of each of its parts. `signers`: the secrets of each part's channel."""
        script = batch.parts[0].plan.script_pubkey or await self._wallet.new_script()
        try:
            tx = build.build_batch(batch, signers, script)
        except Uneconomical as error:
            raise CannotMake(str(error)) from error
        return build.attempts_of(batch, tx, height)

    def _with_coins(
        self, plan: Plan, known: Known, signer: ChannelSecrets, height: int, replaced: Attempt | None
    ) -> Made:
        """HTLC transactions, or a child of our commitment, paid for with the wallet's coins. If that fails, those of
        what was to be replaced stay reserved: it is out, and nothing else may spend them."""
        number = 0 if replaced is None else replaced.reservation
        held = self._wallet.reservations().get(number, [])
        freed = self._wallet.unreserve(number) if number else []
        try:
            least = FLOOR_PER_KW if replaced is None or replaced.problem else least_bump(replaced.feerate_per_kw)
            made = self._paid(plan, known, signer, height, least, held)
        except BaseException:
            if number:
                self._wallet.hold_again(number, held, freed)
            raise
        return Made(made.attempt, [*to_rows(freed), *made.writes])

    def _paid(
        self,
        plan: Plan,
        known: Known,
        signer: ChannelSecrets,
        height: int,
        least_per_kw: int,
        same: Sequence[OutPoint],
    ) -> Made:
        """At the plan's rate, or as much of it as the wallet and the budget allow: too little may do, nothing does not.
        A rate below `least_per_kw` is of no use. The `same` coins that are in what is replaced are in this, too: it may
        be mined all the same, and what else was made of them would be void."""
        rate = plan.feerate_per_kw
        trouble: CannotMake | None = None
        short_sat = 0
        while True:
            try:
                funded, writes = self._funded(plan, known, rate, same)
                break
            except we.CoinUnavailable:
                same = ()  # a reorganisation has taken them
                continue
            except we.InsufficientFunds as error:
                trouble = trouble or CannotMake(f"the wallet cannot pay for it: {error}")
                short_sat = short_sat or _short_sat(_request(plan, known, rate))
                rate = rate * 3 // 4
            except we.FeeTooHigh as error:
                trouble = trouble or CannotMake(str(error))
                rate = min(rate * error.max_fee_sat // error.fee_sat, rate * 15 // 16)
            except we.WalletError as error:
                raise CannotMake(str(error)) from error
            if rate < least_per_kw:
                trouble.short_sat = short_sat
                raise trouble
        tx = self._signed(plan, funded, signer)
        attempt = build.attempt_of(plan, tx, funded.fee_sat, height, funded.reservation)
        return Made(attempt, to_rows(writes))

    def _funded(
        self, plan: Plan, known: Known, feerate_per_kw: int, same: Sequence[OutPoint]
    ) -> tuple[FundedTx, list[WalletWrite]]:
        """Only confirmed coins: a replacement may bring no new unconfirmed ones (BIP 125, rule 2), and a child that
        goes out with its parent no other unconfirmed parent. Raises WalletError."""
        return self._wallet.plan_tx(
            _request(plan, known, feerate_per_kw),
            min_confirmations=1,
            sign=False,
            use_reserve=True,
            max_fee_sat=plan.max_fee_sat,
            required=same,
        )

    def _signed(self, plan: Plan, funded: FundedTx, signer: ChannelSecrets) -> Tx:
        if plan.group == "anchor":
            tx = self._wallet.sign(funded.tx, funded.spent)
            return build.sign_spend_input(tx, plan.outputs[0], signer)
        # The peer's signatures commit to input i, output i and the locktime: the change goes behind the HTLCs' outputs.
        frame = build.htlc_frame(plan)
        change = () if funded.change_vout is None else (funded.tx.outputs[funded.change_vout],)
        tx = Tx(frame.version, funded.tx.inputs, (*frame.outputs, *change), frame.locktime)
        return build.sign_htlc_inputs(plan, self._wallet.sign(tx, funded.spent), signer)


def _request(plan: Plan, known: Known, feerate_per_kw: int) -> Request:
    """What the wallet has to pay for."""
    if plan.group == "anchor":
        return _child_request(plan, known, feerate_per_kw)
    return _htlc_request(plan, feerate_per_kw)


def _child_request(plan: Plan, known: Known, feerate_per_kw: int) -> Request:
    (anchor,) = plan.outputs
    return Request(
        (),
        feerate_per_kw,
        foreign=(_foreign(anchor),),
        extra_fee_sat=missing_fee_sat(known, feerate_per_kw),
        min_fee_sat=plan.min_fee_sat,
    )


def _htlc_request(plan: Plan, feerate_per_kw: int) -> Request:
    frame = build.htlc_frame(plan)
    return Request(
        frame.outputs,
        feerate_per_kw,
        foreign=tuple(_foreign(output) for output in plan.outputs),
        min_fee_sat=plan.min_fee_sat,
        locktime=frame.locktime,
    )


def _foreign(output: Output) -> ForeignInput:
    match output.claim:
        case HtlcTx(output=htlc_output):
            txout = TxOut(htlc_output.amount_sat, htlc_output.script_pubkey)
            weight, sequence = build.htlc_input_weight(output), htlc_output.context.sequence
            return ForeignInput(htlc_output.outpoint, txout, weight, sequence)
        case Sweep(spend=spend):
            return ForeignInput(spend.outpoint, spend.output, spend.input_weight, spend.sequence)
        case _:
            raise AssertionError("only what we can take is planned")


def _short_sat(request: Request) -> int:
    """About what a coin should hold to pay for this."""
    return max(request.min_fee_sat, request.extra_fee_sat) + request.feerate_sat_per_kw * 2
