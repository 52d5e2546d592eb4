"""Bitcoin transactions of a channel: scripts, commitments, HTLC transactions, closing, sweeping, signing (BOLT 3)."""

from channeld.bolt.keys import ChannelKeys, CommitmentKeys
from channeld.bolt.transactions.commitment import (
    BuiltCommitment,
    build_commitment,
    prepare_commitment,
)
from channeld.bolt.transactions.htlc import HtlcOutput
from channeld.bolt.transactions.onchain import commitment_number_of
from channeld.bolt.transactions.signing import ChannelSecrets, InvalidSignature, complete, verify_commitment
from channeld.bolt.transactions.spec import (
    CommitmentParams,
    CommitmentSpec,
    Htlc,
    Side,
    commitment_fee_sat,
    is_trimmed,
    num_untrimmed,
    trim_limit_sat,
)

__all__ = [
    "BuiltCommitment",
    "ChannelKeys",
    "ChannelSecrets",
    "CommitmentKeys",
    "CommitmentParams",
    "CommitmentSpec",
    "Htlc",
    "HtlcOutput",
    "InvalidSignature",
    "Side",
    "build_commitment",
    "commitment_fee_sat",
    "commitment_number_of",
    "complete",
    "is_trimmed",
    "num_untrimmed",
    "prepare_commitment",
    "trim_limit_sat",
    "verify_commitment",
]
