"""From an exception to a gRPC status: `NodeError` is what the node's users meet."""

from __future__ import annotations

from channeld.node.interface import NodeError
from watchtower.rpc import ERROR_KIND_METADATA, errors
from watchtower.rpc.errors import Status


class ErrorInterceptor(errors.ErrorInterceptor):
    """Ends calls to the daemon's services with the status of what their handlers raise."""

    def __init__(self) -> None:
        super().__init__("/channeld.", NodeError)


def to_status(error: Exception, method: str) -> Status:
    """The status for `error`."""
    return errors.to_status(error, method, NodeError)


__all__ = ["ERROR_KIND_METADATA", "ErrorInterceptor", "to_status"]
