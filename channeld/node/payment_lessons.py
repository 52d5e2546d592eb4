"""What the parts of a payment that failed teach: for this payment (`lessons_of`), and for all that follow (`Teacher`).

Lessons are a function of the stored parts, so that they survive restarts with them. A `channel_update` inside a failure
counts for this payment alone and never leaves it: applying it to the graph would tell others who paid.

Source: BOLT 4, "Receiving Failure Codes", "Returning Errors".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from channeld.bolt.messages import ChannelUpdate, decode
from channeld.bolt.onion import failures as f
from channeld.bolt.onion.attribution import Attribution, verify_fulfill_attribution
from channeld.bolt.onion.failures import decode_failure
from channeld.bolt.onion.returns import ReturnPacket, read_failure
from channeld.bolt.primitives import DecodeError, format_short_channel_id
from channeld.channel import effects as fx
from channeld.node import failures
from channeld.node.payment_record import PartRecord, PaymentRecord
from channeld.routing.values import MAX_AMOUNT_MSAT, EdgeKey, Policy, Route
from wallet.bitcoin.secp import InvalidKey, verify

if TYPE_CHECKING:
    from channeld.routing.graph import Graph
    from channeld.routing.scoring import Scorer

MOST_STUCK = 3
"""So often a channel may fail one payment in a way that may pass, before it is left alone. Parts that were out at the
same time count as one: none of them knew of the others' end."""
MOST_POLICIES = 2
"""So often a channel may correct its terms in one payment."""
_UPDATE_TYPE = 258
_DISABLED = 2
_MALFORMED = "malformed"
_BY_AMOUNT = frozenset({"insufficient_balance", "in_flight_limit", "dust_exposure", "amount_above_maximum"})
"""Why our own channel refuses an amount, but perhaps not a smaller one."""


class Stuck(NamedTuple):
    """A channel did not pass so much."""

    amount_msat: int
    ended_seconds: float


class Lessons(NamedTuple):
    """What the next attempt of a payment must heed. `most_msat`: by `channel_key`, what our own channels will not
    take more than. `stuck`: what others' channels did not pass, with this payment's parts that they held besides, and
    when that was known. `stop`: why no further attempt makes sense; empty if one does."""

    ignored_channels: frozenset[EdgeKey]
    ignored_nodes: frozenset[bytes]
    policies: Mapping[EdgeKey, Policy]
    most_msat: Mapping[int, int]
    stop: str
    stuck: Mapping[EdgeKey, Sequence[Stuck]] = {}


_NONE = Lessons(frozenset(), frozenset(), {}, {}, "")


def lessons_of(record: PaymentRecord) -> Lessons:
    """All that the payment's failed parts teach it."""
    if not record.parts:
        return _NONE
    lessons = _Lessons(record)
    for part in record.parts:
        if part.state == "failed":
            lessons.add(part)
    return lessons.result()


class _Lessons:
    """Lessons while they are collected."""

    def __init__(self, record: PaymentRecord) -> None:
        self._record = record
        self._channels: set[EdgeKey] = set()
        self._nodes: set[bytes] = set()
        self._policies: dict[EdgeKey, Policy] = {}
        self._corrected: Counter[EdgeKey] = Counter()
        self._times: dict[EdgeKey, list[tuple[float, float]]] = {}
        self._stuck: dict[EdgeKey, list[Stuck]] = {}
        self._refused: Counter[int] = Counter()
        self._suspects: Counter[bytes] = Counter()
        self._most_msat: dict[int, int] = {}
        self._stop = ""

    def add(self, part: PartRecord) -> None:
        """One failed part."""
        match part.end:
            case "refused":
                self._refused_by_us(part)
            case "on_chain":
                self._most_msat[part.channel_key] = 0
            case "malformed" | "unreadable" if part.last_hop == 0:
                self._stop = part.failure
            case "malformed":
                assert part.route is not None
                self._nodes.add(part.route.hops[0].node_id)
            case "unreadable":
                assert part.route is not None
                self._unreadable(part.route, part.unproven_hop)
            case "told":
                self._told(part)
            case "" | "stopped" | "never_sent":
                pass

    def _refused_by_us(self, part: PartRecord) -> None:
        key = part.channel_key
        if part.reject_code in _BY_AMOUNT:
            self._most_msat[key] = min(self._most_msat.get(key, part.amount_msat), part.amount_msat * 3 // 4)
            return
        self._refused[key] += 1
        if self._refused[key] >= MOST_STUCK:
            self._most_msat[key] = 0

    def _unreadable(self, route: Route, unproven_hop: int | None) -> None:
        """Nobody says who failed. The first wrong attribution is by that node or the one before it; without any, every
        channel between others is left alone."""
        if unproven_hop is None or unproven_hop >= len(route.hops):
            self._channels.update(hop.key for hop in route.hops[1:])
            return
        self._channels.add(route.hops[unproven_hop].key)
        suspects = [hop.node_id for hop in route.hops[max(0, unproven_hop - 1) : unproven_hop + 1]]
        self._suspects.update(suspects)
        payee = route.hops[-1].node_id
        self._nodes.update(node for node in suspects if self._suspects[node] > 1 and node != payee)

    def _told(self, part: PartRecord) -> None:
        failing_key, code = part.failing_key, part.failure_code or 0
        if failing_key is None:
            if code != f.MppTimeout.CODE:
                self._stop = part.failure
            return
        assert part.route is not None
        assert part.failing_hop is not None
        if code & f.NODE:
            self._nodes.add(part.route.hops[part.failing_hop].node_id)
        elif code == f.TemporaryChannelFailure.CODE:
            ended = part.ended_seconds or part.started_seconds
            amount_msat = part.route.hops[part.failing_hop + 1].amount_msat + self._beside(part, failing_key)
            self._times.setdefault(failing_key, []).append((ended, part.started_seconds))
            self._stuck.setdefault(failing_key, []).append(Stuck(amount_msat, ended))
        elif part.policy is not None and self._corrected[failing_key] < MOST_POLICIES:
            self._corrected[failing_key] += 1
            self._policies[failing_key] = part.policy
        else:
            self._channels.add(failing_key)

    def _beside(self, failed: PartRecord, key: EdgeKey) -> int:
        """What other parts that were out when this one came back hold on a channel, as far as they have come."""
        ended = failed.ended_seconds or failed.started_seconds
        return sum(
            hop.amount_msat
            for part in self._record.parts
            if part is not failed and part.route is not None and part.started_seconds <= ended
            if part.ended_seconds is None or part.ended_seconds > ended
            for hop in part.route.hops
            if hop.key == key
        )

    def result(self) -> Lessons:
        """What was collected."""
        often = {key for key, times in self._times.items() if _rounds(times) >= MOST_STUCK}
        channels, nodes = frozenset(self._channels | often), frozenset(self._nodes)
        return Lessons(channels, nodes, self._policies, self._most_msat, self._stop, self._stuck)


def _rounds(times: list[tuple[float, float]]) -> int:
    """How many of the parts that ended and began then followed one another."""
    count, last = 0, float("-inf")
    for ended, started in sorted(times):
        if started >= last:
            count, last = count + 1, ended
    return count


# --- reading what came back


def settled_part(part: PartRecord, attribution_data: bytes | None, now: float) -> PartRecord:
    """The part after its preimage came. Hold times of a single hop say nothing that we do not see ourselves."""
    held: tuple[int, ...] = ()
    unproven = None
    if attribution_data is not None and part.last_hop > 0:
        held, unproven = _attributed(verify_fulfill_attribution(part.shared_secrets, attribution_data))
    return replace(part, state="settled", hold_times=held, unproven_hop=unproven, ended_seconds=now)


def failed_part(
    part: PartRecord,
    effect: fx.HtlcFailed,
    is_probe: bool,
    chain_hash: bytes,
    known_timestamp: Callable[[EdgeKey], int],
    now: float,
) -> PartRecord:
    """The part after it came back, with who failed it, and why, as a sentence for who paid. `known_timestamp`: of the
    latest `channel_update` that gossip has of a channel's direction, 0 for none."""
    ended = replace(part, state="failed", ended_seconds=now)
    if effect.never_sent:
        sentence = "the connection was lost before the payment was sent; nothing was paid"
        return replace(ended, end="never_sent", failure=sentence)
    if effect.failure_code is not None:
        sentence = failures.explain_code(effect.failure_code)
        return replace(ended, end=_MALFORMED, failure=sentence, failure_code=effect.failure_code)
    if effect.reason is None:
        return replace(ended, end="on_chain", failure="the channel was closed, and the payment with it")
    found = read_failure(part.shared_secrets, ReturnPacket(effect.reason, effect.attribution_data))
    held, unproven = _attributed(found.attribution)
    ended = replace(ended, hold_times=held, unproven_hop=unproven)
    if found.erring_hop is None:
        return replace(
            ended, end="unreadable", failure=f"it failed, and the reason that came back cannot be read{_who(ended)}"
        )
    failure = decode_failure(found.failure_message)
    sentence = failures.explain(failure)
    if part.route is not None and found.erring_hop < part.last_hop:
        sentence = f"{sentence} (said {part.route.hops[found.erring_hop].node_id.hex()})"
    ended = replace(
        ended, end="told", failing_hop=found.erring_hop, failure_code=failure.code, failure=sentence, unproven_hop=None
    )
    if is_probe and found.erring_hop == part.last_hop and failure.code == f.IncorrectOrUnknownPaymentDetails.CODE:
        return replace(ended, state="arrived", failure="")
    return replace(ended, policy=_policy_in(ended, failure, chain_hash, known_timestamp))


def _attributed(attribution: Attribution | None) -> tuple[tuple[int, ...], int | None]:
    return ((), None) if attribution is None else (attribution.hold_times, attribution.unproven_hop)


def _who(part: PartRecord) -> str:
    """Between whom a failure was damaged, as far as the attribution tells."""
    if part.unproven_hop is None or part.route is None or part.unproven_hop >= len(part.route.hops):
        return ""
    hops = part.route.hops
    first = hops[part.unproven_hop - 1].node_id.hex() if part.unproven_hop else "our peer"
    return f": {first} or {hops[part.unproven_hop].node_id.hex()} changed it"


def _policy_in(
    part: PartRecord, failure: f.Failure, chain_hash: bytes, known_timestamp: Callable[[EdgeKey], int]
) -> Policy | None:
    """The terms in a failure's `channel_update`, if it is about the channel that failed, newer than what is known, and
    signed by its node."""
    raw: bytes = getattr(failure, "channel_update", b"")
    key = part.failing_key
    if not raw or key is None:
        return None
    assert part.route is not None
    assert part.failing_hop is not None
    if int.from_bytes(raw[:2], "big") != _UPDATE_TYPE:
        raw = _UPDATE_TYPE.to_bytes(2, "big") + raw  # some nodes leave the message's type out
    try:
        update = decode(raw)
        if not isinstance(update, ChannelUpdate) or update.chain_hash != chain_hash:
            return None
        if EdgeKey(update.short_channel_id, update.channel_flags & 1) != key:
            return None
        if update.timestamp <= known_timestamp(key):
            return None
        node_id = part.route.hops[part.failing_hop].node_id
        if not verify(node_id, update.signature_hash, update.signature):
            return None
    except (DecodeError, InvalidKey):
        return None
    return Policy(
        enabled=not update.channel_flags & _DISABLED,
        htlc_minimum_msat=min(update.htlc_minimum_msat, MAX_AMOUNT_MSAT),
        htlc_maximum_msat=min(update.htlc_maximum_msat, MAX_AMOUNT_MSAT),
        fee_base_msat=update.fee_base_msat,
        fee_proportional_millionths=update.fee_proportional_millionths,
        cltv_expiry_delta=update.cltv_expiry_delta,
    )


# --- for the operator


def learnt_from(part: PartRecord) -> str:
    """What the payment does differently after this part, as a sentence; empty if nothing."""
    match part.end:
        case "refused" if part.reject_code in _BY_AMOUNT:
            return "our channel gets smaller parts"
        case "refused" | "on_chain":
            return "other channels of ours are tried"
        case "malformed" if part.route is not None:
            return f"{part.route.hops[0].node_id.hex()} is left alone"
        case "unreadable" if part.route is not None:
            return "the channels between those who may have changed it are left alone"
        case "told":
            return _learnt_from_word(part)
        case _:
            return ""


def _learnt_from_word(part: PartRecord) -> str:
    key, code = part.failing_key, part.failure_code or 0
    if key is None or part.route is None or part.failing_hop is None:
        return ""
    node = part.route.hops[part.failing_hop].node_id.hex()
    name = format_short_channel_id(key.short_channel_id)
    if code & f.NODE:
        return f"{node} is left alone"
    if code == f.TemporaryChannelFailure.CODE:
        return f"{node} cannot send {part.route.hops[part.failing_hop + 1].amount_msat:,} msat over {name} now"
    if part.policy is not None:
        fee = f"{part.policy.fee_base_msat:,} msat + {part.policy.fee_proportional_millionths} ppm"
        return f"{name} asks for {fee} and {part.policy.cltv_expiry_delta} blocks"
    return f"{name} is left alone"


# --- for all payments


class Teacher:
    """Tells the scorer what the ends of parts say of the network."""

    def __init__(self, scorer: Callable[[], Scorer], graph: Callable[[], Graph], now: Callable[[], float]) -> None:
        self._scorer = scorer
        self._graph = graph
        self._now = now

    def teach(self, part: PartRecord, in_flight: Mapping[EdgeKey, int]) -> bool:
        """A part that ended; whether there was anything to learn. `in_flight`: what our other HTLCs hold on channels,
        msat: a channel that did not pass this one as well may have passed it alone."""
        route = part.route
        if route is None:
            return False
        if part.state == "settled":
            self._scorer().route_succeeded(self._graph(), route, self._now())
        elif part.state == "arrived" or (part.end == "told" and part.failing_key is None):
            self._scorer().route_failed(self._graph(), route, len(route.hops), self._now(), in_flight)
        elif part.end == "told":
            self._relay_failed(route, part, in_flight)
        elif part.end == "unreadable" and part.unproven_hop is not None and part.unproven_hop < len(route.hops) - 1:
            self._scorer().node_failed(route.hops[part.unproven_hop].node_id, self._now())
        else:
            return False
        return True

    def _relay_failed(self, route: Route, part: PartRecord, in_flight: Mapping[EdgeKey, int]) -> None:
        assert part.failing_hop is not None
        scorer, graph, now = self._scorer(), self._graph(), self._now()
        code = part.failure_code or 0
        if code & f.NODE:
            scorer.node_failed(route.hops[part.failing_hop].node_id, now)
        elif code == f.TemporaryChannelFailure.CODE:
            scorer.route_failed(graph, route, part.failing_hop + 1, now, in_flight)
        else:
            scorer.route_passed(graph, route, part.failing_hop + 1, now, in_flight)
