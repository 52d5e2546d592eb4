"""Which scripts a channel may be closed to, on this connection (BOLT 2, "Closing Initiation: `shutdown`")."""

from __future__ import annotations

from channeld.bolt.features import Feature, NegotiatedFeatures
from channeld.bolt.transactions.closing import is_valid_shutdown_script
from channeld.channel.env import Env
from channeld.channel.events import ProtocolViolation
from channeld.channel.state import Link, Offline, Open


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
