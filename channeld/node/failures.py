"""What went wrong with a payment, as a sentence for who paid."""

from __future__ import annotations

from channeld.bolt.onion import failures as f

_SENTENCES: dict[int, str] = {
    f.TemporaryNodeFailure.CODE: "the recipient's node has a temporary problem; try again later",
    f.PermanentNodeFailure.CODE: "the recipient's node has a permanent problem",
    f.RequiredNodeFeatureMissing.CODE: "the recipient's node requires a feature that was not used",
    f.InvalidOnionVersion.CODE: "the recipient could not read the onion (version)",
    f.InvalidOnionHmac.CODE: "the recipient could not read the onion (hmac)",
    f.InvalidOnionKey.CODE: "the recipient could not read the onion (key)",
    f.InvalidOnionBlinding.CODE: "the payment failed inside the recipient's blinded path",
    f.InvalidOnionPayload.CODE: "the recipient did not understand the onion's payload",
    f.TemporaryChannelFailure.CODE: "a channel on the way cannot carry the payment now; try again later",
    f.PermanentChannelFailure.CODE: "a channel on the way is gone",
    f.RequiredChannelFeatureMissing.CODE: "a channel on the way requires a feature that was not used",
    f.UnknownNextPeer.CODE: "the node on the way does not know the next one",
    f.ExpiryTooSoon.CODE: "the payment expires too soon; is our chain up to date?",
    f.ExpiryTooFar.CODE: "the payment expires too far in the future",
    f.ChannelDisabled.CODE: "a channel on the way is disabled",
    f.MppTimeout.CODE: "the recipient did not get all parts in time",
}


def explain(failure: f.Failure) -> str:
    """A sentence, with the failure's BOLT 4 name and code."""
    match failure:
        case f.IncorrectOrUnknownPaymentDetails():
            text = (
                "the recipient does not accept it: unknown or expired invoice, paid already, or a wrong amount "
                f"(its block height is {failure.height})"
            )
        case f.FinalIncorrectCltvExpiry():
            text = f"the recipient got another expiry ({failure.cltv_expiry}) than was sent"
        case f.FinalIncorrectHtlcAmount():
            text = f"the recipient got another amount ({failure.incoming_htlc_amt:,} msat) than was sent"
        case f.AmountBelowMinimum() | f.FeeInsufficient():
            text = f"a node on the way wants more than it got ({failure.htlc_msat:,} msat)"
        case f.IncorrectCltvExpiry():
            text = f"a node on the way wants a longer expiry than it got ({failure.cltv_expiry})"
        case _:
            text = _SENTENCES.get(failure.code, "the recipient gave a reason that this node does not know")
    return f"{text} [{failure.NAME}, code {failure.code}]"


def explain_code(code: int) -> str:
    """For `update_fail_malformed_htlc`, which carries only a code."""
    known = f.FAILURES.get(code)
    text = _SENTENCES.get(code, "the peer could not read the onion")
    return f"{text} [{known.NAME if known else 'unknown'}, code {code}]"
