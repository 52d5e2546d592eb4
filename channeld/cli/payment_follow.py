"""A payment as it happens: a line for each attempt that begins or ends, and where somebody watches, the sum of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from channeld.cli import amounts
from channeld.cli.failures import FAILED, INTERRUPTED, NOT_KNOWN_YET, CliError, as_sentence
from channeld.cli.ids import SHORT_HEX, scid
from channeld.cli.session import DEFAULT_TIMEOUT_SECONDS, Session

if TYPE_CHECKING:
    from channeld.v1.payments_pb2 import Attempt, Payment, PaymentUpdate, SendPaymentRequest

ROUND_TRIP_SECONDS = 1.0
"""So much longer than the daemon tries is waited for what it says."""


def send(
    session: Session, request: SendPaymentRequest, timeout_seconds: float, stream: bool, what: str = "payment"
) -> Payment:
    """Starts what is asked for and follows it to its end, or for `timeout_seconds`; the payment as it is then. With
    --json one answer at the end, or (`stream`) a line for each update. Raises `CliError`."""
    keyed = getattr(request, str(request.WhichOneof("order")))
    keyed.timeout_seconds = float(timeout_seconds)
    with_key = None if request.HasField("probe") else keyed
    if session.out.as_json and not stream and with_key is not None:
        return _at_once(session, request, keyed, timeout_seconds)
    patience = timeout_seconds + (DEFAULT_TIMEOUT_SECONDS if with_key is None else ROUND_TRIP_SECONDS)
    updates = session.stream_once(lambda session: session.payments.Send, request, with_key, is_final, patience)
    return follow(session, updates, keyed, what)


def _at_once(session: Session, request: SendPaymentRequest, keyed: Any, timeout_seconds: float) -> Payment:
    """Without anything of what happens on the way."""
    pick: dict[str, Callable[[Session], Any]] = {
        "pay": lambda session: session.payments.Pay,
        "keysend": lambda session: session.payments.Keysend,
        "rebalance": lambda session: session.payments.Rebalance,
    }
    method = pick[str(request.WhichOneof("order"))]
    answer: Any = session.call_once(method, keyed, timeout_seconds + DEFAULT_TIMEOUT_SECONDS)
    session.out.show(answer, lambda: None)
    payment: Payment = answer.payment
    return payment


def is_final(update: PaymentUpdate) -> bool:
    """Whether nothing comes after this one."""
    return not update.HasField("attempt") and update.payment.HasField("ended_seconds")


def follow(session: Session, updates: Iterator[PaymentUpdate], keyed: Any, what: str) -> Payment:
    """Shows updates until there are no more; the payment as it was in the last one. `keyed` may have an idempotency
    key, or is None. Raises `CliError` on Ctrl-C."""
    progress = _Progress(session)
    payment: Payment | None = None
    try:
        with _ticking(session, progress):
            for update in updates:
                payment = update.payment
                progress.take(update)
    except KeyboardInterrupt:
        raise CliError(f"You stopped waiting; the {what} goes on.", _how_on(payment, keyed), INTERRUPTED) from None
    if payment is None:
        raise CliError(f"Nothing is known of the {what} yet.", _how_on(None, keyed), NOT_KNOWN_YET)
    return payment


def _how_on(payment: Payment | None, keyed: Any) -> str:
    if payment is not None:
        name = payment.payment_hash.hex()
        return f"`channelctl payments track {name}` shows it; `channelctl payments cancel {name}` stops new attempts."
    key = getattr(keyed, "idempotency_key", "")
    return f"To see what came of it, run the same command with --idempotency-key {key}: that pays once." if key else ""


def check_outcome(payment: Payment, timeout_seconds: float) -> None:
    """Raises `CliError` unless it succeeded."""
    from channeld.v1 import payments_pb2

    name = payment.payment_hash.hex()
    if payment.state == payments_pb2.PAYMENT_STATE_FAILED:
        raise CliError(
            as_sentence(f"The payment failed: {payment.failure}"), "The money is back; nothing was paid.", FAILED
        )
    if payment.state != payments_pb2.PAYMENT_STATE_SUCCEEDED:
        raise CliError(
            f"The payment is still under way after {amounts.duration(int(timeout_seconds))}.",
            f"See what becomes of it with `channelctl payments show {name}`, or stop new attempts with "
            f"`channelctl payments cancel {name}`.",
            NOT_KNOWN_YET,
        )


class _Progress:
    """What was shown, and what stands in the line that changes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told: dict[int, int] = {}
        self._payment: Payment | None = None

    def take(self, update: PaymentUpdate) -> None:
        """Shows one update; what comes again is passed over."""
        out = self._session.out
        self._payment = update.payment
        attempt = update.attempt if update.HasField("attempt") else None
        if attempt is not None:
            if self._told.get(attempt.index) == attempt.state:
                return
            begins = attempt.index not in self._told
            self._told[attempt.index] = attempt.state
        if out.as_json:
            from channeld.cli.jsonable import to_jsonable

            out.json_line(to_jsonable(update))
        elif attempt is not None:
            if begins:
                out.note(began(attempt), "")
            if attempt.HasField("ended_seconds"):
                out.note(ended(attempt), "")

    @property
    def text(self) -> str:
        """The sum of it."""
        from channeld.v1 import payments_pb2

        states = list(self._told.values())
        counts = (
            ("under way", states.count(payments_pb2.ATTEMPT_STATE_IN_FLIGHT)),
            ("arrived", states.count(payments_pb2.ATTEMPT_STATE_SETTLED)),
            ("arrived", states.count(payments_pb2.ATTEMPT_STATE_ARRIVED)),
            ("failed", states.count(payments_pb2.ATTEMPT_STATE_FAILED)),
        )
        parts = ", ".join(f"{count} {name}" for name, count in counts if count)
        if self._payment is None:
            return "Looking for a way"
        whole = f"{amounts.msat(self._payment.arriving_msat)} of {amounts.msat(self._payment.amount_msat)}"
        return f"{whole}; parts: {parts}" if parts else whole


@contextmanager
def _ticking(session: Session, progress: _Progress) -> Iterator[None]:
    """Where somebody watches: the sum of it and the seconds, once a second."""
    if session.out.as_json:
        yield
        return
    started = time.monotonic()
    over = threading.Event()

    def tick(update: Callable[[str], None]) -> None:
        while not over.wait(1):
            update(f"{progress.text}, {amounts.duration(int(time.monotonic() - started))}")

    with session.out.status(progress.text) as update:
        thread = threading.Thread(target=tick, args=(update,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


# Attempts in words


def began(attempt: Attempt) -> str:
    """`Part 1: 50 sat over 02ab12cd… and 03ef…, fee 1 sat.`"""
    fee = f"fee {amounts.msat(attempt.fee_msat)}" if attempt.fee_msat else "no fee"
    return f"Part {attempt.index + 1}: {amounts.msat(attempt.amount_msat)} {way(attempt)}, {fee}."


def ended(attempt: Attempt) -> str:
    """`Part 1 failed: …`"""
    from channeld.v1 import payments_pb2

    name = f"Part {attempt.index + 1}"
    seconds = f"after {attempt.ended_seconds - attempt.started_seconds:.1f} s"
    if attempt.state != payments_pb2.ATTEMPT_STATE_FAILED:
        return f"{name} arrived {seconds}{_held(attempt)}."
    learnt = f" {as_sentence(attempt.learnt)}" if attempt.learnt else ""
    return f"{name} failed {seconds}{_held(attempt)}: {as_sentence(attempt.failure)}{learnt}"


def way(attempt: Attempt) -> str:
    """The nodes that it passes, and the channels to them."""
    names = []
    for hop in attempt.hops:
        over = f" ({scid(hop.short_channel_id)})" if hop.HasField("short_channel_id") else ""
        names.append(f"{hop.node_id.hex()[:SHORT_HEX]}…{over}")
    return f"to {names[-1]}" if len(names) == 1 else f"by {', '.join(names[:-1])} to {names[-1]}"


def _held(attempt: Attempt) -> str:
    """How long each node says that it held the HTLC."""
    held = [
        f"{hop.node_id.hex()[:SHORT_HEX]}… {hop.hold_time_ms / 1000:g} s"
        for hop in attempt.hops
        if hop.HasField("hold_time_ms")
    ]
    return f" (held by {', '.join(held)})" if held else ""
