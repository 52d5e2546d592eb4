"""Where a daemon keeps its files: `~/.channeld/<network>/`. Pure functions, used by the daemon and by `channelctl`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from watchtower.rpc.files import write_private

DEFAULT_ROOT = Path("~/.channeld")
NETWORKS = ("mainnet", "testnet", "signet", "regtest")


class DataPaths(NamedTuple):
    """The files of one daemon: one folder a network under `root`."""

    root: Path
    network: str

    @property
    def directory(self) -> Path:
        """The network's folder; mode 0700."""
        return self.root / self.network

    @property
    def token(self) -> Path:
        """What a client must show: 64 hex characters and a line feed; mode 0600."""
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
    def database(self) -> Path:
        """The SQLite database, if that is what the daemon uses."""
        return self.directory / "channeld.sqlite"

    @property
    def gossip(self) -> Path:
        """What is known of the network. It may be deleted: peers tell it again."""
        return self.directory / "gossip"

    @property
    def seed(self) -> Path:
        """The wallet's seed; mode 0600."""
        return self.directory / "seed"

    @property
    def log(self) -> Path:
        """What the daemon has to say."""
        return self.directory / "channeld.log"

    @property
    def lock(self) -> Path:
        """Locked while a daemon uses the folder."""
        return self.directory / "lock"


def data_paths(network: str, root: str | os.PathLike[str] | None = None) -> DataPaths:
    """The files for `network` under `root` (`~/.channeld` if None); `~` is expanded, nothing is made."""
    return DataPaths(Path(root if root is not None else DEFAULT_ROOT).expanduser().absolute(), network)


__all__ = ["DEFAULT_ROOT", "NETWORKS", "DataPaths", "data_paths", "write_private"]
