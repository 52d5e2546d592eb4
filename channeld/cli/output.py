"""What the user sees: see `watchtower.rpc.console`."""

from watchtower.rpc.console import Column, Id, Output, printable

__all__ = ["Column", "Id", "Output", "printable"]
