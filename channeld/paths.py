"""Where a daemon keeps its files: `~/.channeld/<network>/`. Pure functions, used by the daemon and by `channelctl`."""

from __future__ import annotations

import os
from pathlib import Path

from watchtower.rpc.files import write_private
from watchtower.rpc.paths import NETWORKS, DaemonPaths, data_root

DEFAULT_ROOT = Path("~/.channeld")


class DataPaths(DaemonPaths):
    """The files of one daemon."""

    __slots__ = ()

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
    def restored(self) -> Path:
        """The mark of a database that was made from a copy."""
        return self.directory / "restored-from-a-copy"

    @property
    def channels_backup(self) -> Path:
        """What brings the channels' money back, with the seed's words (`channeld.node.channel_backup`)."""
        return self.directory / "channels.backup"

    @property
    def log(self) -> Path:
        """What the daemon has to say."""
        return self.directory / "channeld.log"


def data_paths(network: str, root: str | os.PathLike[str] | None = None) -> DataPaths:
    """The files for `network` under `root` (`~/.channeld` if None); `~` is expanded, nothing is made."""
    return DataPaths(data_root(root if root is not None else DEFAULT_ROOT), network)


__all__ = ["DEFAULT_ROOT", "NETWORKS", "DataPaths", "data_paths", "write_private"]
