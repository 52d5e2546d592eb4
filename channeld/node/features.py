"""What this node offers in `init` (BOLT 9)."""

from __future__ import annotations

from channeld.bolt.features import KEYSEND, Context, Feature, FeatureBits, in_context, optional, required

LOCAL_FEATURES = required(
    Feature.option_data_loss_protect,
    Feature.var_onion_optin,
    Feature.option_static_remotekey,
    Feature.payment_secret,
    Feature.option_channel_type,
) | optional(
    Feature.option_upfront_shutdown_script,
    Feature.gossip_queries,
    Feature.gossip_queries_ex,
    Feature.basic_mpp,
    Feature.option_support_large_channel,
    Feature.option_anchors,
    Feature.option_shutdown_anysegwit,
    Feature.option_scid_alias,
    Feature.option_zeroconf,
    Feature.option_simple_close,
    Feature.option_route_blinding,
    Feature.option_attribution_data,
    Feature.option_onion_messages,
    Feature.option_provide_storage,
)
"""Assumed features are required; the rest is optional."""


def announced(accepts_keysend: bool) -> FeatureBits:
    """What stands in `node_announcement`. Core Lightning and LND tell there, and ask there, who takes keysend (bLIP 3);
    in `init` they do not."""
    told = in_context(LOCAL_FEATURES, Context.NODE_ANNOUNCEMENT)
    return told | {KEYSEND | 1} if accepts_keysend else told
