"""How much of what peers do the operator is told, so that strangers cannot fill event history and log.

Only what is told is limited: whatever happens is acted upon all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from channeld.gossip.limits import TokenBuckets

OF_PEER_BURST: Final = 20
OF_PEER_SECONDS: Final = 5.0
"""So many errors and warnings of a peer are told at once, and one more each so many seconds."""
OF_STRANGERS_BURST: Final = 100
OF_STRANGERS_SECONDS: Final = 1.0
"""The same for whatever peers without channels do, all of them together: anybody can be many."""
MAX_PEERS: Final = 200
"""So many peers' buckets are kept before those that are full again are looked for."""


class Notes:
    """`has_stake`: whether a peer has a channel that cost it something, or that we wanted. `clock`: seconds."""

    def __init__(self, has_stake: Callable[[bytes], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._has_stake = has_stake
        self._clock = clock
        self._of_peer = TokenBuckets(OF_PEER_BURST, OF_PEER_SECONDS)
        self._of_strangers = TokenBuckets(OF_STRANGERS_BURST, OF_STRANGERS_SECONDS)

    def may_tell_complaint(self, node_id: bytes) -> bool:
        """Whether an error or warning that a peer sent is told."""
        now = self._clock()
        if not self._of_peer.take(node_id, now):
            return False
        if len(self._of_peer) > MAX_PEERS:
            self._of_peer.clean(now)
        return self.may_tell(node_id)

    def may_tell(self, node_id: bytes) -> bool:
        """Whether something else that a peer did is told: always, if it is no stranger."""
        return self._has_stake(node_id) or self._of_strangers.take(None, self._clock())
