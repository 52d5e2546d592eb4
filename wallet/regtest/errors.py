"""Errors: those a JSON-RPC client sees (bitcoind's codes) and those that keep the daemon from starting."""

from __future__ import annotations

MISC_ERROR = -1
TYPE_ERROR = -3
WALLET_ERROR = -4
INVALID_ADDRESS_OR_KEY = -5
WALLET_INSUFFICIENT_FUNDS = -6
INVALID_PARAMETER = -8
WALLET_INVALID_LABEL_NAME = -11
WALLET_NOT_FOUND = -18
WALLET_NOT_SPECIFIED = -19
DATABASE_ERROR = -20
DESERIALIZATION_ERROR = -22
VERIFY_ERROR = -25
VERIFY_REJECTED = -26
VERIFY_ALREADY_IN_UTXO_SET = -27
IN_WARMUP = -28
WALLET_ALREADY_LOADED = -35
WALLET_ALREADY_EXISTS = -36

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
PARSE_ERROR = -32700


class RpcError(Exception):
    """What a JSON-RPC call answers instead of a result: one of bitcoind's codes and a message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class StartupError(Exception):
    """The daemon cannot start; the message is a sentence that says what to do."""
