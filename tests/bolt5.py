"""The requirements of BOLT 5, each with a name. A test that proves one carries `@pytest.mark.bolt5("its name")`;
`tests/unit/test_bolt5.py` checks that all that MUST or SHOULD be done has such a test."""

from __future__ import annotations

REQUIREMENTS: dict[str, dict[str, str]] = {
    "General Nomenclature": {
        "monitor": "MUST monitor the blockchain for transactions that spend any output that is NOT *irrevocably "
        "resolved*",
        "resolve": "MUST *resolve* all outputs, as specified below",
        "reorganisation": "MUST be prepared to resolve outputs multiple times, in case of blockchain reorganizations",
        "spent": "SHOULD fail the channel",
        "invalid": "SHOULD ignore invalid transactions",
    },
    "Failing a Channel": {
        "fail.forget": "until the remote node closes: MUST NOT forget the channel",
        "fail.mutual": "SHOULD use this fee to perform a *mutual close*",
        "fail.outdated": "MUST NOT broadcast its *last commitment transaction*",
        "fail.broadcast": "MUST broadcast the *last commitment transaction*, for which it has a signature, to "
        "perform a *unilateral close*",
        "fail.anchor": "MUST spend any `to_local_anchor` output, providing sufficient fees as incentive to include "
        "the commitment transaction in a block",
        "fail.replace": "SHOULD use replace-by-fee or other mechanism on the spending transaction if it proves "
        "insufficient for timely inclusion in a block",
    },
    "Local Commitment Transaction": {
        "local.to_local": "SHOULD spend the `to_local` output to a convenient address",
        "local.delay": "MUST wait until the `OP_CHECKSEQUENCEVERIFY` delay has passed before spending the output",
        "local.offered": "MUST handle HTLCs offered by itself",
        "local.received": "MUST handle HTLCs offered by the remote node",
    },
    "Local Commitment, Local Offers": {
        "local.offered.extract": "MUST extract the payment preimage from the transaction input witness",
        "local.offered.timeout": "MUST *resolve* the output by spending it using the HTLC-timeout transaction",
        "local.offered.fail": "once the resolving transaction has reached reasonable depth: MUST fail the "
        "corresponding incoming HTLC (if any)",
        "local.offered.second": "MUST resolve the output of that HTLC-timeout transaction",
        "local.offered.home": "SHOULD resolve the HTLC-timeout transaction by spending it to a convenient address",
        "local.offered.delay": "MUST wait until the `OP_CHECKSEQUENCEVERIFY` delay has passed before spending that "
        "HTLC-timeout output",
        "local.absent.fulfill": "no output, preimage known: MUST fulfill the corresponding incoming HTLC (if any)",
        "local.absent.fail": "no output, once the commitment transaction has reached reasonable depth: MUST fail "
        "the corresponding incoming HTLC (if any)",
    },
    "Local Commitment, Remote Offers": {
        "local.received.success": "MUST *resolve* the output by spending it, using the HTLC-success transaction",
        "local.received.own": "MUST NOT reveal its own preimage when it's not the final recipient",
        "local.received.second": "MUST resolve the output of that HTLC-success transaction",
        "local.received.uncommitted": "if the *remote node* is NOT irrevocably committed to the HTLC: MUST NOT "
        "*resolve* the output by spending it",
        "local.received.home": "SHOULD resolve that HTLC-success transaction output by spending it to a convenient "
        "address",
        "local.received.delay": "MUST wait until the `OP_CHECKSEQUENCEVERIFY` delay has passed before spending that"
        " HTLC-success transaction output",
    },
    "Remote Commitment Transaction": {
        "remote.outputs": "MUST handle each output as specified below",
        "remote.offered": "MUST handle HTLCs offered by itself",
        "remote.received": "MUST handle HTLCs offered by the remote node",
        "remote.lost": "otherwise (it is NOT able to handle the broadcast for some reason): MUST inform the user of"
        " potentially lost funds",
    },
    "Remote Commitment, Local Offers": {
        "remote.offered.extract": "MUST extract the payment preimage from the HTLC-success transaction input witness",
        "remote.offered.timeout": "MUST *resolve* the output, by spending it to a convenient address",
        "remote.absent.fulfill": "no output, preimage known: MUST fulfill the corresponding incoming HTLC (if any)",
        "remote.absent.fail": "no output, once the commitment transaction has reached reasonable depth: MUST fail "
        "the corresponding incoming HTLC (if any)",
    },
    "Remote Commitment, Remote Offers": {
        "remote.received.claim": "MUST *resolve* the output by spending it to a convenient address",
        "remote.received.uncommitted": "if the remote node is NOT irrevocably committed to the HTLC: MUST NOT "
        "*resolve* the output by spending it",
    },
    "Revoked Transaction Close Handling": {
        "revoked.ours": "MUST NOT broadcast a commitment transaction for which *it* has exposed the "
        "`per_commitment_secret`",
        "revoked.main": "MUST *resolve* the _remote node's main output_ by spending it using the revocation private"
        " key",
        "revoked.received": "MUST *resolve* the _remote node's offered HTLCs_ in one of three ways",
        "revoked.offered": "MUST *resolve* the _local node's offered HTLCs_ in one of three ways",
        "revoked.timeout": "MUST *resolve* the _remote node's HTLC-timeout transaction_ by spending it using the "
        "revocation private key",
        "revoked.success": "MUST *resolve* the _remote node's HTLC-success transaction_ by spending it using the "
        "revocation private key",
        "revoked.extract": "SHOULD extract the payment preimage from the transaction input witness, if it's not "
        "already known",
        "revoked.split": "if confirmation doesn't happen before reaching `security_delay` blocks from expiry: "
        "SHOULD *resolve* revoked outputs in their own, separate penalty transactions",
        "revoked.raced": "MUST handle its transactions being invalidated by HTLC transactions",
    },
    "Generation of HTLC Transactions": {
        "htlc.remote_sighash": "`SIGHASH_SINGLE|SIGHASH_ANYONECANPAY` MUST be used on the HTLC signatures received "
        "from the peer",
        "htlc.local_sighash": "The local signature MUST use `SIGHASH_ALL`",
        "htlc.fees": "MUST combine it with inputs contributing sufficient fee to ensure timely inclusion in a block",
    },
    "General Requirements": {
        "rogue": "MUST warn the user of potentially lost funds",
    },
}
"""By section, then by name: the specification's words, with their conditions where they alone say too little."""
