"""Where a tower keeps its files: `~/.watchtowerd/<network>/`."""

from __future__ import annotations

import os
from pathlib import Path

from watchtower.rpc.paths import DaemonPaths, data_root

DEFAULT_ROOT = Path("~/.watchtowerd")


class TowerPaths(DaemonPaths):
    """The files of one tower."""

    __slots__ = ()

    @property
    def identity(self) -> Path:
        """The tower's secret key, 64 hex characters; mode 0600."""
        return self.directory / "identity"

    @property
    def client_token(self) -> Path:
        """What clients of a private tower must show to create sessions; mode 0600."""
        return self.directory / "client.token"

    @property
    def database(self) -> Path:
        """The SQLite database, if that is what the tower uses."""
        return self.directory / "watchtower.sqlite"

    @property
    def log(self) -> Path:
        """What the tower has to say."""
        return self.directory / "watchtowerd.log"


def tower_paths(network: str, root: str | os.PathLike[str] | None = None) -> TowerPaths:
    """The files for `network`; `~` is expanded, nothing is made."""
    return TowerPaths(data_root(root if root is not None else DEFAULT_ROOT), network)
