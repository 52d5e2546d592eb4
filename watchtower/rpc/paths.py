"""Where a daemon keeps its files: one folder a network under its root. For daemons and for their clients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

NETWORKS = ("mainnet", "testnet", "signet", "regtest")


class _Place(NamedTuple):
    root: Path
    network: str


class DaemonPaths(_Place):
    """What every daemon with a gRPC API has: `root` is its data directory. Nothing is made."""

    __slots__ = ()

    @property
    def directory(self) -> Path:
        """The network's folder; mode 0700."""
        return self.root / self.network

    @property
    def token(self) -> Path:
        """What a client must show (for a tower: the operator's): 64 hex characters and a line feed; mode 0600."""
        return self.directory / "token"

    @property
    def tls_cert(self) -> Path:
        """The API's certificate, PEM."""
        return self.directory / "tls.cert"

    @property
    def tls_key(self) -> Path:
        """The certificate's private key, PEM; mode 0600."""
        return self.directory / "tls.key"

    @property
    def grpc_address(self) -> Path:
        """`host:port` of the API and a line feed; there while the daemon listens."""
        return self.directory / "grpc.addr"

    @property
    def lock(self) -> Path:
        """Locked while a daemon uses the folder."""
        return self.directory / "lock"

    @property
    def ready(self) -> Path:
        """JSON with the daemon's ids and addresses, from when it is ready until it ends."""
        return self.directory / "ready.json"


def data_root(root: str | os.PathLike[str]) -> Path:
    """Absolute, with `~` expanded."""
    return Path(root).expanduser().absolute()
