"""Where a tower keeps its files: `~/.watchtowerd/<network>/`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

DEFAULT_ROOT = Path("~/.watchtowerd")


class TowerPaths(NamedTuple):
    """One folder a network under `root`."""

    root: Path
    network: str

    @property
    def directory(self) -> Path:
        """The network's folder; mode 0700."""
        return self.root / self.network

    @property
    def identity(self) -> Path:
        """The tower's secret key, 64 hex characters; mode 0600."""
        return self.directory / "identity"

    @property
    def token(self) -> Path:
        """What the operator must show; mode 0600."""
        return self.directory / "token"

    @property
    def client_token(self) -> Path:
        """What clients of a private tower must show to create sessions; mode 0600."""
        return self.directory / "client.token"

    @property
    def tls_cert(self) -> Path:
        """The API's certificate, PEM."""
        return self.directory / "tls.cert"

    @property
    def tls_key(self) -> Path:
        """Its private key, PEM; mode 0600."""
        return self.directory / "tls.key"

    @property
    def grpc_address(self) -> Path:
        """`host:port` of the API; there while the tower listens."""
        return self.directory / "grpc.addr"

    @property
    def database(self) -> Path:
        """The SQLite database, if that is what the tower uses."""
        return self.directory / "watchtower.sqlite"

    @property
    def log(self) -> Path:
        """What the tower has to say."""
        return self.directory / "watchtowerd.log"

    @property
    def lock(self) -> Path:
        """Locked while a tower uses the folder."""
        return self.directory / "lock"

    @property
    def ready(self) -> Path:
        """JSON with the tower's id and addresses, while it runs."""
        return self.directory / "ready.json"


def tower_paths(network: str, root: str | os.PathLike[str] | None = None) -> TowerPaths:
    """The files for `network`; `~` is expanded, nothing is made."""
    return TowerPaths(Path(root if root is not None else DEFAULT_ROOT).expanduser().absolute(), network)
