"""Bugs planted on purpose: the simulation must see each of them.

Each plant breaks the production code in one place, in the way in which such code is usually broken, for as long as its
context lasts. `caught_by`: where to look first, seeds or stories as `--replay` takes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from msgspec.structs import replace

from channeld.bolt.messages import CommitmentSigned
from channeld.bolt.transactions import commitment as commitment_module
from channeld.channel import commitments as cm
from channeld.channel import economics, machine, normal, reestablish, unconfirmed
from channeld.channel.commitments import HtlcAdd, htlc_key
from channeld.channel.effects import HtlcLockedIn
from channeld.channel.state import Funded
from channeld.channel.writes import ForgetAdd
from channeld.node import towers as node_towers
from channeld.node.channels import Channels
from channeld.node.forwarding import Forwarder
from channeld.node.idempotency import Idempotency
from channeld.node.monitor_facts import Facts
from channeld.node.receive import Receiver, _Set
from channeld.onchain.facts import Fact
from watchtower.client.connection import TowerAway
from watchtower.client.uploader import Uploader
from watchtower.tower import daemon as tower_daemon
from watchtower.tower.index import prefix_of
from watchtower.tower.intake import Intake

Patch = tuple[Any, Any, Any]
"""Owner, name, and what takes its place; an item if the owner is a dict."""


class Plant(NamedTuple):
    """A bug: `make` gives its patches."""

    name: str
    what: str
    make: Callable[[], list[Patch]]
    caught_by: tuple[int | str, ...]


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """While it lasts, the code has this bug."""
    patches = plant.make()
    kept = [
        (owner, name, owner[name] if isinstance(owner, dict) else getattr(owner, name)) for owner, name, _ in patches
    ]
    _apply(patches)
    try:
        yield
    finally:
        _apply(kept)


def _present(owner: Any, name: Any) -> Any:
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


def _apply(patches: Iterable[tuple[Any, Any, Any]]) -> None:
    for owner, name, substitute in patches:
        if isinstance(owner, dict):
            owner[name] = substitute
        else:
            setattr(owner, name, substitute)


# --- the channel --------------------------------------------------------------------------------------------------


def _resend_otherwise(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> list[Patch]:
    original = reestablish.compare

    def compare(*args: Any) -> Any:
        answer = original(*args)
        return reestablish.InStep(change(answer.resend)) if isinstance(answer, reestablish.InStep) else answer

    return [(reestablish, "compare", compare)]


def _retransmission_order() -> list[Patch]:
    return _resend_otherwise(lambda resend: resend[::-1])


def _lost_acks() -> list[Patch]:
    return _resend_otherwise(lambda resend: tuple(what for what in resend if what != "revocation"))


def _early_preimage() -> list[Patch]:
    handle, phases = machine.MESSAGES[CommitmentSigned]
    answer = normal.answer_htlc

    def on_commitment_signed(state: Any, message: Any, env: Any) -> Any:
        adds = [update.htlc for update in state.commitments.theirs.proposed if isinstance(update, HtlcAdd)]
        transition = handle(state, message, env)
        return replace(transition, effects=(*transition.effects, *map(HtlcLockedIn, adds)))

    def answer_htlc(state: Any, event: Any, env: Any) -> Any:
        c, key = state.commitments, htlc_key(event.id, False)
        if key in c.remote.spec.htlcs or key not in cm.next_remote(c).spec.htlcs:
            return answer(state, event, env)
        return normal._propose(state, normal._removal(event))

    return [(machine.MESSAGES, CommitmentSigned, (on_commitment_signed, phases)), (normal, "answer_htlc", answer_htlc)]


def _forgotten_htlc_info() -> list[Patch]:
    original = normal.sign_remote

    def sign_remote(*args: Any) -> Any:
        message, commit, save = original(*args)
        return message, commit, replace(save, htlcs=())

    return [(normal, "sign_remote", sign_remote)]


def _wrong_secret() -> list[Patch]:
    original = normal.revoke_and_ack

    def revoke_and_ack(params: Any, index: int, env: Any) -> Any:
        message = original(params, index, env)
        return type(message)(
            message.channel_id, env.signer.per_commitment_secret(index), message.next_per_commitment_point
        )

    return [(normal, "revoke_and_ack", revoke_and_ack)]


def _adds_forgotten() -> list[Patch]:
    original = normal.sign

    def sign(state: Any, env: Any) -> Any:
        transition = original(state, env)
        adds = [update.htlc.id for update in state.commitments.ours.proposed if isinstance(update, HtlcAdd)]
        return replace(transition, writes=(*transition.writes, *(ForgetAdd(True, htlc_id) for htlc_id in adds)))

    return [(normal, "sign", sign)]


def _answers_forgotten() -> list[Patch]:
    def propose_pending(c: Any, params: Any) -> Any:
        return replace(c, pending=()), []

    return [(normal, "propose_pending", propose_pending)]


def _dropped_adds_untold() -> list[Patch]:
    original = normal.drop_uncommitted

    def drop_uncommitted(*args: Any) -> Any:
        after, _, writes = original(*args)
        return after, [], writes

    return [(normal, "drop_uncommitted", drop_uncommitted)]


def _wrong_fee_side() -> list[Patch]:
    original = commitment_module._add_main_outputs

    def add_main_outputs(entries: Any, frame: Any, keyed: Any, spec: Any) -> None:
        params = SimpleNamespace(local_is_opener=not frame.params.local_is_opener, anchors=frame.params.anchors)
        names = ("side", "dust_limit_sat", "to_remote", "to_local_anchor", "to_remote_anchor")
        fields = {name: getattr(frame, name) for name in names if hasattr(frame, name)}
        original(entries, SimpleNamespace(params=params, **fields), keyed, spec)  # type: ignore[arg-type]

    return [(commitment_module, "_add_main_outputs", add_main_outputs)]


# --- the node -----------------------------------------------------------------------------------------------------


def _speaks_first() -> list[Patch]:
    def submit(self: Any, writes: Any, done: Any) -> None:
        done(None)
        self._store.submit(writes, lambda error: None)

    return [(Channels, "submit", submit)]


def _state_not_stored() -> list[Patch]:
    original = Channels.rows

    def rows(self: Any, driver: Any, before: Any) -> Any:
        state = driver.state
        if isinstance(before, Funded) and type(before) is type(state):
            was, now = before.commitments, state.commitments
            if (
                now.local.index > was.local.index
                and now.remote == was.remote
                and now.latest_remote == was.latest_remote
            ):
                return ()
        return original(self, driver, before)

    return [(Channels, "rows", rows)]


def _settles_upstream_first() -> list[Patch]:
    original = Forwarder.settled

    def settled(self: Any, *args: Any) -> Any:
        writes = original(self, *args)
        asyncio.get_running_loop().call_later(0.05, self._store.submit, writes, lambda error: None)
        return []

    return [(Forwarder, "settled", settled)]


def _fails_nothing_upstream() -> list[Patch]:
    original = Forwarder.failed

    def failed(self: Any, circuit: Any, effect: Any, *args: Any) -> Any:
        return None if effect.on_chain else original(self, circuit, effect, *args)

    return [(Forwarder, "failed", failed)]


def _forwards_twice() -> list[Patch]:
    original = Forwarder.forward

    def forward(self: Any, driver: Any, htlc: Any, onion: Any, again: bool) -> Any:
        if again:
            self._live.discard((driver.channel_key, htlc.id))
        return original(self, driver, htlc, onion, False)

    return [(Forwarder, "forward", forward)]


def _circuits_dropped() -> list[Patch]:
    original = Forwarder.load

    def load(self: Any, connection: Any) -> None:
        original(self, connection)
        self._live.clear()

    return [(Forwarder, "load", load)]


def _first_part_pays() -> list[Patch]:
    return [(_Set, "received_msat", lambda self: self.total_msat)]


def _old_channels_key() -> list[Patch]:
    def scan(self: Any, tx: Any, txid: bytes, height: int, position: int) -> Any:
        writes = []
        for txin in tx.inputs:
            known = self._outputs.get(txin.outpoint)
            channel_key = next(iter(known)) if known else self._watches.channel_of(txin.outpoint)
            if channel_key is not None:
                writes += self._keep(channel_key, Fact(height, txid, tx), position)
        return writes

    return [(Facts, "scan", scan)]


def _deadlines_missed() -> list[Patch]:
    return [(economics, "reason_to_close", lambda *_: "")]


def _settles_from_memory() -> list[Patch]:
    async def after(self: Any, write: Any, then: Any) -> None:
        then()
        asyncio.get_running_loop().call_later(0.05, self._store.submit, [write], lambda error: None)

    return [(Receiver, "_after", after)]


def _old_state_published() -> list[Patch]:
    original = reestablish.compare

    def compare(*args: Any) -> Any:
        answer = original(*args)
        return reestablish.Impossible("") if isinstance(answer, reestablish.LocalBehind) else answer

    return [(reestablish, "compare", compare), (unconfirmed, "is_doubtful", lambda state: False)]


def _keys_forgotten() -> list[Patch]:
    original = Idempotency._mark

    def mark(self: Any, *args: Any) -> Any:
        original(self, *args)
        return ()

    return [(Idempotency, "_mark", mark)]


# --- towers -------------------------------------------------------------------------------------------------------


def _tower_confirms_first() -> list[Patch]:
    async def commit(self: Any, writes: Any, fresh: Any) -> Any:
        asyncio.get_running_loop().call_later(0.05, self._store.submit, writes, lambda error: None)
        self._index.add(prefix_of(row.locator) for row in fresh)
        return self._on_stored(fresh)

    return [(Intake, "_commit", commit)]


def _backups_given_up() -> list[Patch]:
    original = Uploader._upload

    async def upload(self: Any, channel: bytes, first: int, newest: int) -> bool:
        try:
            return await original(self, channel, first, newest)
        except TowerAway:
            self.progress[channel].count = newest
            raise

    return [(Uploader, "_upload", upload)]


def _breaches_forgotten() -> list[Patch]:
    daemon: Any = tower_daemon
    original = daemon.load
    return [(daemon, "load", lambda connection: original(connection)._replace(breaches=[]))]


def _keys_of_another_commitment() -> list[Patch]:
    original = node_towers.make_kit

    def make_kit(*args: Any) -> Any:
        kit = original(*args)
        return None if kit is None else replace(kit, revocation_secret=kit.payment_secret or b"\x01" * 32)

    return [(node_towers, "make_kit", make_kit)]


ONE_PAYMENT = '{"seed": 0, "kind": 3, "actions": [["pay", 801997237, [50449, 41555, 31733, 38054], 4]]}'
"""A payment of one hop."""
REVOKED_AND_CUT = (
    '{"seed": 1, "kind": 1, "actions": [["cut", 3294916953, [12302, 63944, 3715, 51093], 7], '
    '["pay", 95872739, [34908, 29984, 13399, 41606], 0], ["hold", 1001090105, [49965, 28390, 55327, 3806], 3], '
    '["cut", 2758633299, [28676, 60241, 37982, 2816], 2]]}'
)
"""A payment between cuts."""
HELD_AND_CUT = (
    '{"seed": 1, "kind": 1, "actions": [["pay", 95872739, [34908, 29984, 13399, 41606], 0], '
    '["hold", 1001090105, [49965, 28390, 55327, 3806], 3], ["cut", 2758633299, [28676, 60241, 37982, 2816], 2]]}'
)
"""The connection breaks after messages were held back."""
TWO_PAYMENTS = (
    '{"seed": 5, "kind": 1, "actions": [["pay", 715045388, [17333, 232, 696, 27453], 5], '
    '["pay", 1425304169, [54382, 21752, 19097, 34578], 0]]}'
)
"""Two payments, one after the other."""
ANSWERED_WHILE_AWAY = (
    '{"seed": 103, "kind": 4, "actions": [["crash", 509765578, [10228, 15980, 50099, 60446], 1], '
    '["pay", 4130878097, [17318, 29161, 3240, 5774], 2], ["pay", 1068939516, [38492, 24042, 53666, 54399], 5]]}'
)
"""Payments to a node that dies."""
ALONG_THE_WAY = (
    '{"seed": 3, "kind": 1, "actions": [["open", 647532367, [11602, 45099, 8730, 53800], 4], '
    '["fees", 193016889, [55986, 54420, 15586, 5792], 5], ["pay", 330586681, [36578, 30926, 4720, 40589], 0], '
    '["pay", 2962381006, [25871, 53469, 38222, 34520], 5]]}'
)
"""Payments along the way, while fees change."""
CRASHES_ALONG_THE_WAY = (
    '{"seed": 3, "kind": 1, "actions": [["crash", 3350403033, [1985, 8392, 20892, 5608], 4], '
    '["open", 647532367, [11602, 45099, 8730, 53800], 4], ["fees", 193016889, [55986, 54420, 15586, 5792], 5], '
    '["pay", 330586681, [36578, 30926, 4720, 40589], 0], ["pay", 2962381006, [25871, 53469, 38222, 34520], 5], '
    '["crash", 2233696452, [41134, 47211, 18130, 49517], 1]]}'
)
"""The same with a node that dies."""
PARTS = '{"seed": 38, "kind": 3, "actions": [["pay", 1633781753, [64029, 18458, 57230, 32302], 0]]}'
"""A payment that takes both channels."""
ON_THE_WAY = '{"seed": 0, "kind": 1, "actions": [["crash", 5, [1, 1, 2, 0], 1], ["pay", 12, [0, 1, 2, 0], 7]]}'
"""The node in the middle dies while a payment is on the way."""
STRANDED = '{"seed": 0, "kind": 1, "actions": [["snap", 7, [5, 5, 1, 1], 5]]}'
"""The channel to the payee is closed by force while an HTLC goes into it, and its invoice was canceled."""
CUT_OFF = (
    '{"seed": 0, "kind": 0, "actions": [["pay", 0, [0, 0, 1, 0], 2], ["pay", 100, [0, 0, 1, 0], 2], '
    '["pay", 200, [0, 0, 1, 0], 2], ["cut", 0, [0, 0, 0, 0], 5]]}'
)
"""The connection breaks while HTLCs wait for the peer's revocation."""
HEIR = '{"seed": 0, "kind": 0, "actions": [["heir", 1, [0, 1, 0, 1], 5]]}'
"""The output of a mutual close funds the next channel, in which the peer cheats."""
WATCHED = '{"seed": 0, "kind": 0, "actions": [["tower", 3, [0, 0, 1, 0], 4], ["pay", 4, [0, 0, 1, 0], 6]]}'
"""A payment in a channel that a tower watches."""
TOWER_AWAY = (
    '{"seed": 0, "kind": 0, "actions": [["tower", 3, [0, 0, 1, 0], 4], ["tower down", 5, [0, 0, 0, 0], 1], '
    '["pay", 4, [0, 0, 1, 0], 6]]}'
)
"""The same while the tower is off."""
ROBBED = (
    '{"seed": 0, "kind": 0, "actions": [["tower", 3, [0, 0, 1, 0], 4], ["pay", 4, [0, 0, 3, 0], 6], '
    '["rob", 6, [0, 1, 0, 6], 4]]}'
)
"""A peer cheats while the other side is off and has a tower, which dies right after it saw the breach."""

OVERDUE = '{"seed": 10, "kind": 0, "actions": [["overdue", 4026364927, [23139, 45477, 46772, 32972], 0]]}'
"""A payment that its payee holds, and is away until it has expired."""
HELD = '{"seed": 11, "kind": 4, "actions": [["held", 3815666664, [47552, 8300, 61444, 3554], 5]]}'
"""A payment that is held for a while."""
OLD_COPY = (
    '{"seed": 10, "kind": 0, "actions": [["copy", 466519021, [18387, 46216, 40109, 18291], 1], '
    '["strike", 3219244539, [16954, 50583, 51786, 61038], 0], ["lose", 4026364927, [23139, 45477, 46772, 32972], 0]]}'
)
"""A node pays, and is then started from a copy of its database that knows nothing of it."""
ASKED_AGAIN = '{"seed": 32, "kind": 0, "actions": [["keysend", 697476723, [58603, 28439, 40058, 46589], 6]]}'
"""A client asks for one payment twice."""

PLANTS = (
    Plant(
        "retransmission order",
        "signature and revocation come again in the other order",
        _retransmission_order,
        (REVOKED_AND_CUT,),
    ),
    Plant("lost acks", "a revocation that was lost is not sent again", _lost_acks, (HELD_AND_CUT,)),
    Plant(
        "early preimage", "an HTLC is settled as soon as the peer has signed for it", _early_preimage, (ONE_PAYMENT,)
    ),
    Plant(
        "forgotten HTLC info",
        "what a revoked commitment had in HTLCs is not kept",
        _forgotten_htlc_info,
        (ONE_PAYMENT,),
    ),
    Plant("upstream first", "a preimage goes upstream before it is on disk", _settles_upstream_first, (ALONG_THE_WAY,)),
    Plant("speaks first", "messages go out before what they say is on disk", _speaks_first, (ONE_PAYMENT,)),
    Plant(
        "state not stored",
        "a new commitment of ours is not stored with its revocation",
        _state_not_stored,
        (TWO_PAYMENTS,),
    ),
    Plant(
        "wrong fee side",
        "the side that did not open the channel pays for the commitment",
        _wrong_fee_side,
        (ONE_PAYMENT,),
    ),
    Plant(
        "nothing upstream",
        "what timed out on chain is not failed upstream",
        _fails_nothing_upstream,
        (STRANDED,),
    ),
    Plant("wrong secret", "the secret of the present commitment is revealed", _wrong_secret, (ONE_PAYMENT,)),
    Plant(
        "forwards twice",
        "after a restart an HTLC is forwarded again",
        _forwards_twice,
        (ON_THE_WAY,),
    ),
    Plant("circuits dropped", "after a restart nobody knows what was forwarded", _circuits_dropped, (ON_THE_WAY,)),
    Plant(
        "adds forgotten",
        "the onion of an HTLC is thrown away once it was signed for",
        _adds_forgotten,
        (CRASHES_ALONG_THE_WAY,),
    ),
    Plant(
        "answers forgotten",
        "answers decided while the peer was away are lost",
        _answers_forgotten,
        (ANSWERED_WHILE_AWAY,),
    ),
    Plant(
        "dropped adds untold",
        "nobody hears of HTLCs that a lost connection took along",
        _dropped_adds_untold,
        (CUT_OFF,),
    ),
    Plant("first part pays", "the first part of a payment settles it", _first_part_pays, (PARTS,)),
    Plant(
        "old channel's key",
        "the end of a channel whose funds came out of an old one counts as the old one's",
        _old_channels_key,
        (HEIR,),
    ),
    Plant("deadlines missed", "no channel is closed for an HTLC that expires", _deadlines_missed, (OVERDUE,)),
    Plant(
        "settles from memory",
        "a hold invoice's preimage is told before it is on disk that it is settled",
        _settles_from_memory,
        (HELD,),
    ),
    Plant(
        "old state published",
        "who is shown to have lost data publishes the commitment that it knows",
        _old_state_published,
        (OLD_COPY,),
    ),
    Plant("keys forgotten", "an idempotency key is forgotten once the call is over", _keys_forgotten, (ASKED_AGAIN,)),
    Plant("tower confirms first", "a tower confirms what is not on its disk", _tower_confirms_first, (WATCHED,)),
    Plant("backups given up", "what a tower could not be given is not sent again", _backups_given_up, (TOWER_AWAY,)),
    Plant("breaches forgotten", "after a restart a tower knows of no breach", _breaches_forgotten, (ROBBED,)),
    Plant(
        "another commitment's key",
        "a tower is given a key that takes nothing",
        _keys_of_another_commitment,
        (ROBBED,),
    ),
)
