"""Our own part of the network: announcing our channels, their policies and our node.

The node hands in what each channel looks like (`OwnChannel`), as often as it likes; what follows from that, given what
was said before, comes back as actions. No I/O, no clock. Source: BOLT 7, "The announcement_signatures Message", "The
channel_update Message", "The node_announcement Message".
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from channeld.bolt.messages import (
    Address,
    AddressType,
    AnnouncementSignatures,
    ChannelAnnouncement,
    ChannelUpdate,
    Message,
    NodeAnnouncement,
    SignedGossip,
    decode,
    encode_addresses,
)
from channeld.bolt.primitives import format_short_channel_id
from channeld.bolt.transactions.funding import funding_script_pubkey
from channeld.gossip.interface import Funding, GossipConfig
from channeld.gossip.validate import DISABLE, DONT_FORWARD, MUST_BE_ONE
from channeld.gossip.verify import check, signature_jobs
from channeld.gossip.view import NetworkView

_NO_SIGNATURE = bytes(64)


class ForwardingPolicy(NamedTuple):
    """What we ask for forwarding over a channel. Amounts in msat, delta in blocks."""

    fee_base_msat: int
    fee_proportional_millionths: int
    cltv_expiry_delta: int
    htlc_minimum_msat: int
    htlc_maximum_msat: int
    """At most the capacity, and what the peer lets be in flight."""


class OwnChannel(NamedTuple):
    """One of our channels, as gossip has to know it."""

    channel_id: bytes
    peer_id: bytes
    scid: int | None
    """The real short_channel_id, once the funding transaction is in a block."""
    local_alias: int | None
    remote_alias: int | None
    funding_txid: bytes
    capacity_sat: int
    announce: bool
    """`announce_channel` was set when the channel was opened."""
    local_funding_pubkey: bytes
    remote_funding_pubkey: bytes
    depth: int
    is_ready: bool
    """`channel_ready` went both ways."""
    is_connected: bool
    """The peer is there, and `channel_reestablish` went both ways."""
    is_closing: bool
    """`shutdown` was sent or received, or worse."""
    policy: ForwardingPolicy


class NodeProfile(NamedTuple):
    """What our `node_announcement` says. `alias` is at most 32 bytes of UTF-8, `features` a feature vector's bytes."""

    alias: str
    rgb_color: bytes
    addresses: tuple[Address, ...]
    features: bytes


class Signer(Protocol):
    """Our keys. Signatures are 64 bytes, compact."""

    def sign_as_node(self, digest: bytes) -> bytes: ...
    def sign_as_funder(self, channel_id: bytes, digest: bytes) -> bytes: ...


class ToPeer(NamedTuple):
    """Send to the peer of the channel, if it is connected."""

    peer_id: bytes
    message: Message


class Announce(NamedTuple):
    """A channel of ours is public: put it into the view, then pass it on."""

    announcement: ChannelAnnouncement
    funding: Funding


class Publish(NamedTuple):
    """An update or announcement of ours: put it into the view, then pass it on."""

    message: ChannelUpdate | NodeAnnouncement


class Warn(NamedTuple):
    """Send a `warning` about a channel."""

    peer_id: bytes
    channel_id: bytes
    reason: str


Action = ToPeer | Announce | Publish | Warn


class _Own:
    """A channel, and what was said about it."""

    def __init__(self, channel: OwnChannel, now: float) -> None:
        self.channel = channel
        self.away_since: float | None = None if channel.is_connected else now
        self.signatures_sent = False
        """On this connection."""
        self.remote_signatures: AnnouncementSignatures | None = None
        self.refused_signatures = False
        self.told_peer: tuple[object, ...] | None = None
        """The private update that the peer has, without timestamp and signature."""
        self.greeted = False
        """The peer got our public update on this connection."""
        self.last_timestamp = 0
        self.published_at = float("-inf")
        self.remote_update: ChannelUpdate | None = None


class OwnGossip:
    """All our channels, and our node."""

    def __init__(
        self, node_id: bytes, chain_hash: bytes, config: GossipConfig, signer: Signer, view: NetworkView
    ) -> None:
        self._node_id = node_id
        self._chain_hash = chain_hash
        self._config = config
        self._signer = signer
        self._view = view
        self._channels: dict[bytes, _Own] = {}
        self._by_peer: dict[bytes, set[bytes]] = {}
        self._profile: NodeProfile | None = None

    # --- what the node tells

    def set_profile(self, profile: NodeProfile) -> None:
        """What our announcement is to say. Raises ValueError for what BOLT 7 does not allow."""
        # BOLT 7, "MUST NOT announce more than one `type 5` DNS hostname."
        if sum(address.type is AddressType.DNS for address in profile.addresses) > 1:
            raise ValueError("a node may announce one DNS hostname only")
        if len(profile.alias.encode()) > 32:
            raise ValueError(f"the alias {profile.alias!r} is longer than 32 bytes")
        if len(profile.rgb_color) != 3:
            raise ValueError("a colour is three bytes")
        encode_addresses(list(profile.addresses))
        self._profile = profile

    def set_channel(self, channel: OwnChannel, now: float) -> list[Action]:
        """A channel as it is now; also when nothing changed."""
        own = self._channels.get(channel.channel_id)
        if own is None:
            own = self._channels[channel.channel_id] = _Own(channel, now)
            self._by_peer.setdefault(channel.peer_id, set()).add(channel.channel_id)
        elif own.channel == channel:
            return []  # time's part is done by `tick`
        was = own.channel
        own.channel = channel
        if not channel.is_connected:
            own.signatures_sent = own.greeted = False
            own.told_peer = None
            own.away_since = now if own.away_since is None else own.away_since
        else:
            own.away_since = None
        if was.scid not in (None, channel.scid):  # the peer may have seen the first block before us
            own.remote_signatures = None
            own.refused_signatures = False
        return self._act(own, now)

    def remove_channel(self, channel_id: bytes) -> None:
        """The channel is over. What others know of it goes with its funding output."""
        own = self._channels.pop(channel_id, None)
        if own is not None:
            with_peer = self._by_peer[own.channel.peer_id]
            with_peer.discard(channel_id)
            if not with_peer:
                del self._by_peer[own.channel.peer_id]

    def scids(self) -> list[int]:
        """The real ids of our channels."""
        return [own.channel.scid for own in self._channels.values() if own.channel.scid is not None]

    def is_announced(self, channel_id: bytes) -> bool:
        """Whether others know of the channel."""
        own = self._channels.get(channel_id)
        return own is not None and self._is_public(own)

    def remote_update(self, channel_id: bytes) -> ChannelUpdate | None:
        """The peer's policy towards us, for routing hints and for paying ourselves through it."""
        own = self._channels.get(channel_id)
        return own.remote_update if own is not None else None

    def public_update_of_peer(self, scid: int) -> tuple[bytes, ChannelUpdate] | None:
        """The peer's public update of our channel `scid`, which came before the channel was public here; and the
        peer."""
        for own in self._channels.values():
            update = own.remote_update
            if own.channel.scid == scid and update is not None and update.short_channel_id == scid:
                return None if update.message_flags & DONT_FORWARD else (own.channel.peer_id, update)
        return None

    def tick(self, now: float) -> list[Action]:
        """Time passes: channels to disable, dampened updates, keep-alives, our node's announcement."""
        actions = [action for own in self._channels.values() for action in self._act(own, now)]
        return [*actions, *self._announce_node(now)]

    # --- what peers tell

    def on_signatures(self, peer_id: bytes, message: AnnouncementSignatures, now: float) -> list[Action]:
        """The peer's half of an announcement."""
        own = self._channels.get(message.channel_id)
        if own is None or own.channel.peer_id != peer_id:
            return [Warn(peer_id, message.channel_id, "announcement_signatures of an unknown channel")]
        channel = own.channel
        # BOLT 7, "If the `short_channel_id` doesn't match one of its funding transactions: SHOULD send a `warning`."
        if channel.scid is not None and message.short_channel_id != channel.scid:
            given, known = map(format_short_channel_id, (message.short_channel_id, channel.scid))
            reason = f"announcement_signatures are for {given}, the channel is {known}"
            return [Warn(peer_id, channel.channel_id, reason)]
        # BOLT 7, "If it has not sent `channel_ready`: SHOULD defer handling the `announcement_signatures` until after
        # it has sent `channel_ready`." `_act` handles what is kept here when the time has come.
        own.remote_signatures = message
        own.refused_signatures = False
        actions = []
        if self._may_announce(own) and not own.signatures_sent:
            # BOLT 7, "If it receives `announcement_signatures` for the funding transaction: MUST respond with its own"
            actions.append(self._own_signatures(own))
        return [*actions, *self._act(own, now)]

    def on_update(self, peer_id: bytes, message: ChannelUpdate) -> bytes | None:
        """A `channel_update` from a peer. If it is the peer's about a channel with us, it is kept, and the id of that
        channel returned."""
        # BOLT 7, "SHOULD accept `channel_update`s for its own channels (even if non-public), in order to learn the
        # associated origin nodes' forwarding parameters."
        for channel_id in self._by_peer.get(peer_id, ()):
            own = self._channels[channel_id]
            channel = own.channel
            if message.short_channel_id not in (channel.scid, channel.local_alias):
                continue
            known = own.remote_update
            is_theirs = message.channel_flags & 1 == int(peer_id > self._node_id)
            if not is_theirs or message.chain_hash != self._chain_hash:
                return None
            if (known is None or message.timestamp > known.timestamp) and all(
                check(signature_jobs(message, message.raw, peer_id))
            ):
                own.remote_update = message
            return channel.channel_id
        return None

    # --- channels

    def _act(self, own: _Own, now: float) -> list[Action]:
        actions: list[Action] = []
        if self._may_announce(own) and not self._is_public(own):
            actions += self._exchange(own)
        # BOLT 7, "MUST NOT send a created `channel_update` before `channel_ready` has been received."
        if own.channel.is_ready:
            public = self._is_public(own) or any(isinstance(action, Announce) for action in actions)
            actions += self._public_update(own, now) if public else self._private_update(own, now)
        return actions

    def _may_announce(self, own: _Own) -> bool:
        # BOLT 7, "If the `open_channel` message has the `announce_channel` bit set AND a `shutdown` message has not
        # been sent: After `channel_ready` has been sent and received AND the funding transaction has enough
        # confirmations to ensure that it won't be reorganized: MUST send `announcement_signatures`"
        channel = own.channel
        deep = channel.scid is not None and channel.depth >= self._config.announce_depth_blocks
        return channel.announce and channel.is_ready and not channel.is_closing and deep

    def _is_public(self, own: _Own) -> bool:
        return own.channel.announce and own.channel.scid in self._view.topology.rows

    def _exchange(self, own: _Own) -> list[Action]:
        """Our signatures, once a connection, and the announcement when there are both."""
        actions: list[Action] = []
        # BOLT 7, "Upon reconnection (once the above timing requirements have been met): If it has NOT previously
        # received `announcement_signatures` for the funding transaction: MUST send its own `announcement_signatures`"
        if own.channel.is_connected and not own.signatures_sent:
            actions.append(self._own_signatures(own))
        if own.remote_signatures is None or own.refused_signatures:
            return actions
        channel, theirs = own.channel, own.remote_signatures
        if theirs.short_channel_id != channel.scid:
            own.remote_signatures = None
            return [*actions, Warn(channel.peer_id, channel.channel_id, "announcement_signatures for another channel")]
        announcement = self._announcement(own, theirs)
        # BOLT 7, "If the `node_signature` OR the `bitcoin_signature` is NOT correct: MAY send a `warning` and close the
        # connection, or send an `error` and fail the channel."
        if not all(check(signature_jobs(announcement, announcement.raw))):
            own.refused_signatures = True
            return [*actions, Warn(channel.peer_id, channel.channel_id, "announcement_signatures are not valid")]
        script = funding_script_pubkey(channel.local_funding_pubkey, channel.remote_funding_pubkey)
        funding = Funding(channel.funding_txid, channel.capacity_sat, script, channel.depth)
        return [*actions, Announce(announcement, funding)]

    def _own_signatures(self, own: _Own) -> ToPeer:
        own.signatures_sent = True
        channel = own.channel
        assert channel.scid is not None
        digest = self._announcement(own, None).signature_hash
        message = AnnouncementSignatures(
            channel.channel_id,
            channel.scid,
            self._signer.sign_as_node(digest),
            self._signer.sign_as_funder(channel.channel_id, digest),
        )
        return ToPeer(channel.peer_id, message)

    def _announcement(self, own: _Own, theirs: AnnouncementSignatures | None) -> ChannelAnnouncement:
        """Without `theirs`, unsigned: what is to be signed."""
        channel = own.channel
        assert channel.scid is not None
        # BOLT 7, "MUST set `bitcoin_key_1` and `bitcoin_key_2` to `node_id_1` and `node_id_2`'s respective
        # `funding_pubkey`s."
        sides = [(self._node_id, channel.local_funding_pubkey), (channel.peer_id, channel.remote_funding_pubkey)]
        signatures = [(_NO_SIGNATURE, _NO_SIGNATURE), (_NO_SIGNATURE, _NO_SIGNATURE)]
        if theirs is not None:
            digest = self._announcement(own, None).signature_hash
            ours = (self._signer.sign_as_node(digest), self._signer.sign_as_funder(channel.channel_id, digest))
            signatures = [ours, (theirs.node_signature, theirs.bitcoin_signature)]
        if self._node_id > channel.peer_id:
            sides.reverse()
            signatures.reverse()
        # BOLT 9 defines no feature of channels (context C), so `features` is empty.
        return ChannelAnnouncement(
            signatures[0][0],
            signatures[1][0],
            signatures[0][1],
            signatures[1][1],
            b"",
            self._chain_hash,
            channel.scid,
            sides[0][0],
            sides[1][0],
            sides[0][1],
            sides[1][1],
        )

    # --- updates

    def _content(self, channel: OwnChannel, scid: int, disabled: bool, message_flags: int) -> tuple[object, ...]:
        """The update's fields but signature and timestamp, which change by themselves."""
        policy = channel.policy
        # BOLT 7, "MUST set this to less than or equal to the channel capacity."
        maximum = min(policy.htlc_maximum_msat, 1000 * channel.capacity_sat)
        flags = self._direction(channel) | (DISABLE if disabled else 0)
        # BOLT 7, "MUST set `htlc_minimum_msat` to less than or equal to `htlc_maximum_msat`."
        minimum = min(policy.htlc_minimum_msat, maximum)
        fees = (policy.fee_base_msat, policy.fee_proportional_millionths)
        return (scid, message_flags, flags, policy.cltv_expiry_delta, minimum, *fees, maximum)

    def _direction(self, channel: OwnChannel) -> int:
        # BOLT 7, "if the origin node is `node_id_1` in the message: MUST set the `direction` bit of `channel_flags` to
        # 0."
        return int(self._node_id > channel.peer_id)

    def _private_update(self, own: _Own, now: float) -> list[Action]:
        """To the peer alone: for its routing hints, and for what it forwards to us."""
        channel = own.channel
        # BOLT 7, "MUST set the `short_channel_id` to either an `alias` it has received from the peer, or the real
        # channel `short_channel_id`. MUST set `dont_forward` to 1 in `message_flags`"
        scid = channel.remote_alias if channel.remote_alias is not None else channel.scid
        if scid is None or not channel.is_connected or channel.is_closing:
            return []
        content = self._content(channel, scid, False, MUST_BE_ONE | DONT_FORWARD)
        if own.told_peer == content:
            return []
        own.told_peer = content
        return [ToPeer(channel.peer_id, self._signed_update(own, content, int(now)))]

    def _public_update(self, own: _Own, now: float) -> list[Action]:
        channel = own.channel
        assert channel.scid is not None
        away = own.away_since is not None and now - own.away_since >= self._config.disable_after_seconds
        known = self._known_update(channel)
        # A short absence is nobody's business: what was said of it before still holds.
        was_disabled = known is not None and bool(known.channel_flags & DISABLE)
        disabled = channel.is_closing or away or (was_disabled and not channel.is_connected)
        content = self._content(channel, channel.scid, disabled, MUST_BE_ONE)
        if known is not None:
            own.last_timestamp = max(own.last_timestamp, known.timestamp)
            same = _content_of(known) == content
            # BOLT 7, "SHOULD NOT create redundant `channel_update`s"
            if same and now - known.timestamp < self._config.keep_alive_seconds:
                return self._greet(own, known)
            dampened = now - own.published_at < self._config.own_update_seconds
            if dampened and not channel.is_closing:
                return self._greet(own, known)
        own.published_at = now
        update = self._signed_update(own, content, int(now))
        return [Publish(update), *self._greet(own, update, anew=True)]

    def _greet(self, own: _Own, update: ChannelUpdate, anew: bool = False) -> list[Action]:
        """The peer hears of our policy at once, and on each connection."""
        if not own.channel.is_connected or (own.greeted and not anew):
            return []
        own.greeted = True
        return [ToPeer(own.channel.peer_id, update)]

    def _known_update(self, channel: OwnChannel) -> ChannelUpdate | None:
        """Our latest update as it stands in the view: also after a restart, or when our own words come back to us."""
        assert channel.scid is not None
        raw = self._view.update(channel.scid, self._direction(channel))
        if raw is None:
            return None
        message = decode(raw)
        assert isinstance(message, ChannelUpdate)
        return message

    def _signed_update(self, own: _Own, content: tuple[object, ...], now: int) -> ChannelUpdate:
        # BOLT 7, "MUST set `timestamp` to greater than 0, AND to greater than any previously-sent `channel_update` for
        # this `short_channel_id`."
        own.last_timestamp = max(now, own.last_timestamp + 1)
        scid, *rest = content
        fields = (self._chain_hash, scid, own.last_timestamp, *rest)
        unsigned = ChannelUpdate(_NO_SIGNATURE, *fields)  # type: ignore[arg-type]
        return ChannelUpdate(self._signer.sign_as_node(unsigned.signature_hash), *fields)  # type: ignore[arg-type]

    # --- the node

    def _announce_node(self, now: float) -> list[Action]:
        """Once we have a public channel; again when it changes or is about to be forgotten."""
        topology = self._view.topology
        index = topology.node_index.get(self._node_id)
        if self._profile is None or index is None or not any(self._is_public(own) for own in self._channels.values()):
            return []
        raw = self._view.node(self._node_id)
        known = decode(raw) if raw is not None else None
        assert known is None or isinstance(known, NodeAnnouncement)
        profile = self._profile
        # BOLT 7, "MUST set `alias` to a valid UTF-8 string, with any `alias` trailing-bytes equal to 0." and "MUST
        # place address descriptors in ascending order."
        alias = profile.alias.encode().ljust(32, b"\0")
        content = (profile.features, profile.rgb_color, alias, encode_addresses(list(profile.addresses)))
        timestamp = int(now)
        if known is not None:
            same = (known.features, known.rgb_color, known.alias, known.addresses) == content
            if same and now - known.timestamp < self._config.keep_alive_seconds:
                return []
            if now - known.timestamp < self._config.own_update_seconds:
                return []
            # BOLT 7, "MUST set `timestamp` to be greater than that of any previous `node_announcement`"
            timestamp = max(timestamp, known.timestamp + 1)
        features, color, alias, addresses = content
        unsigned = NodeAnnouncement(_NO_SIGNATURE, features, timestamp, self._node_id, color, alias, addresses)
        signature = self._signer.sign_as_node(unsigned.signature_hash)
        return [Publish(NodeAnnouncement(signature, features, timestamp, self._node_id, color, alias, addresses))]


def _content_of(update: ChannelUpdate) -> tuple[object, ...]:
    fees = (update.fee_base_msat, update.fee_proportional_millionths)
    limits = (update.cltv_expiry_delta, update.htlc_minimum_msat, *fees, update.htlc_maximum_msat)
    return (update.short_channel_id, update.message_flags, update.channel_flags, *limits)


def apply(view: NetworkView, action: Announce | Publish, now: float) -> SignedGossip:
    """Put our own words into the view; returns what is to be passed on. Raises StoreFull."""
    if isinstance(action, Announce):
        view.add_channel(action.announcement, action.funding, now)
        return action.announcement
    if isinstance(action.message, ChannelUpdate):
        view.set_update(action.message)
    else:
        view.set_node(action.message)
    return action.message
