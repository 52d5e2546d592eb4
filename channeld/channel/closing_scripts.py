"""What both ways of closing together share: which scripts a channel may be closed to, on this connection (BOLT 2,
"Closing Initiation: `shutdown`"), and the closing transactions that were signed."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from channeld.bolt.features import Feature, NegotiatedFeatures
from channeld.bolt.transactions.closing import is_valid_shutdown_script
from channeld.channel.env import Env
from channeld.channel.events import ProtocolViolation
from channeld.channel.state import Link, NegotiatingLegacy, NegotiatingSimple, Offline, Open
from wallet.bitcoin import Tx

MAX_CLOSING_TXS = 100
"""So many closing transactions that the peer wants are signed and published: each is kept, and one is enough."""
MAX_UNSEEN_CLOSING_TXS = 4
"""Of a channel whose funding was never seen, which cost the peer nothing."""
MAX_OWN_CLOSING_TXS = 2 * MAX_CLOSING_TXS
"""Those that we asked for still find room then."""
N = TypeVar("N", NegotiatingLegacy, NegotiatingSimple)


def is_valid_script(script: bytes, link: Link, env: Env, *, legacy: bool = False) -> bool:
    """Without a connection nobody knows what the peer supports: we hope for all that we do."""
    remote = env.local_features if isinstance(link, Offline) else link.remote_features
    negotiated = NegotiatedFeatures(env.local_features, remote)
    return is_valid_shutdown_script(
        script,
        negotiated.has(Feature.option_shutdown_anysegwit),
        negotiated.has(Feature.option_simple_close),
        legacy=legacy,
    )


def check_remote_script(state: Open, script: bytes, env: Env) -> None:
    """Whether the peer may be paid to `script`. Raises ProtocolViolation."""
    if not is_valid_script(script, state.link, env, legacy=True):
        # BOLT 2, "if the `scriptpubkey` is not in one of the above forms: SHOULD send a `warning`."
        raise ProtocolViolation("the channel cannot be closed to this script", "warning")
    upfront = state.params.remote.upfront_shutdown_script
    if upfront and upfront != script:
        # BOLT 2, "and that `shutdown_scriptpubkey` is not equal to `scriptpubkey`: MAY send a `warning`. MUST fail the
        # connection."
        raise ProtocolViolation("the script differs from upfront_shutdown_script", "warning")


def with_closing_tx(state: N, signed: Tx, most: int = MAX_CLOSING_TXS) -> N:
    """The state with a closing transaction that both have signed. Raises ProtocolViolation if there are `most`, or
    MAX_UNSEEN_CLOSING_TXS where that counts."""
    raw = signed.serialize()
    if raw in state.closing_txs:
        return state
    if len(state.closing_txs) >= (MAX_UNSEEN_CLOSING_TXS if state.is_unseen else most):
        raise ProtocolViolation("there are more than enough closing transactions", "warning")
    return replace(state, closing_txs=(*state.closing_txs, raw))
