"""The daemon's settings: flags, then the environment (`CHANNELD_...`), then `channeld.toml` in the data directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from channeld.bolt.messages import Address, AddressType
from channeld.bolt.messages import parse_address as parse_announced
from channeld.channel.env import ChannelPolicy
from channeld.paths import DEFAULT_ROOT, DataPaths, data_paths
from wallet.coins import GAP_LIMIT
from wallet.fees import CREDIBLE_FEERATE_SAT_PER_KW
from watchtower.rpc.settings import ChainSettings, ConfigError, load_settings, parse_address, settings_config


class Config(ChainSettings):
    """channeld, a Lightning node.

    Every setting can be a flag, an environment variable (CHANNELD_ALIAS=...) or a line in channeld.toml in the data
    directory (alias = "..."); flags win over the environment, the environment over the file.
    """

    model_config = settings_config("channeld")

    datadir: Path = Field(DEFAULT_ROOT, description="where seed, database, logs and keys are kept")
    alias: str = Field("", description="the node's name, at most 32 bytes")
    color: str = Field("3399ff", description="the node's color, six hex digits")
    listen: str = Field(
        "127.0.0.1:9735",
        description="HOST:PORT for peers, several separated by commas; port 0: a free one; empty: none",
    )
    announce_address: str = Field(
        "",
        description="HOST:PORT under which others reach this node (IPv4, [IPv6], .onion or a DNS name), several "
        "separated by commas; it is told to everyone",
    )
    rpclisten: str = Field("127.0.0.1:10019", description="HOST:PORT of the gRPC API; port 0: a free one")
    rpchost: str = Field("", description="further names of this machine for the API's certificate, separated by commas")
    metrics: str = Field("", description="HOST:PORT of the Prometheus metrics, such as 127.0.0.1:10020; empty: none")
    seed_words: str = Field("", description="restore this seed at the first start; better in the environment")
    seed_passphrase: str = Field("", description="BIP 39 passphrase of the seed, for a new or restored one")
    seed_password: str = Field("", description="password that encrypts the seed file; better in the environment")
    show_seed: bool = Field(False, description="print the words of the seed in the data directory, and exit")
    back_up_to: Path | None = Field(
        None, description="copy the database to this file, also while the daemon runs, and exit"
    )
    channel_backup: Path | None = Field(
        None,
        description="keep what brings the channels' money back in this file, too, on another disk; the first is "
        "channels.backup in the data directory",
    )
    restore_from: Path | None = Field(
        None, description="make the database from a copy of it or from a channels.backup, and exit"
    )
    birthday_height: int | None = Field(
        None, ge=0, description="with seed_words: the block from which to look for coins (default: 0)"
    )
    gap_limit: int = Field(
        GAP_LIMIT,
        ge=20,
        le=10_000,
        description="how many addresses beyond the last used one the wallet looks for coins at; more before a seed is "
        "restored that gave out many which were never paid",
    )
    min_depth: int = Field(3, ge=0, le=144, description="confirmations that a channel opened by a peer needs")
    min_channel_sat: int = Field(20_000, ge=1_000, description="smallest channel to accept, in sat")
    max_channel_sat: int = Field(1_000_000_000, ge=20_000, description="largest channel to accept, in sat")
    max_feerate_per_kw: int = Field(
        ChannelPolicy().max_feerate_per_kw,
        ge=2_500,
        le=CREDIBLE_FEERATE_SAT_PER_KW,
        description="highest fee rate of commitments, in sat per 1,000 weight units: the channel of a peer that sets a "
        "higher one is closed without it",
    )
    accept_keysend: bool = Field(True, description="take payments that nobody asked for (keysend)")
    zero_conf_peers: str = Field("", description="node ids whose channels are used before confirmation; commas between")

    @field_validator("alias")
    @classmethod
    def _alias_fits(cls, value: str) -> str:
        if len(value.encode()) > 32:
            raise ValueError("an alias has at most 32 bytes (BOLT 7)")
        return value

    @field_validator("color")
    @classmethod
    def _color_is_hex(cls, value: str) -> str:
        value = value.removeprefix("#").lower()
        if len(value) != 6 or set(value) - set("0123456789abcdef"):
            raise ValueError("a color is six hex digits, such as 3399ff")
        return value

    # --- derived

    @property
    def paths(self) -> DataPaths:
        """Where this daemon keeps its files."""
        return data_paths(self.network, self.datadir)

    @property
    def channel_backups(self) -> tuple[Path, ...]:
        """The files that follow the channels."""
        other = () if self.channel_backup is None else (self.channel_backup.expanduser(),)
        return (self.paths.channels_backup, *other)

    @property
    def listen_addresses(self) -> tuple[tuple[str, int], ...]:
        """Raises ConfigError."""
        return tuple(parse_address(text, "listen") for text in _split(self.listen))

    @property
    def announced_addresses(self) -> tuple[Address, ...]:
        """Raises ConfigError."""
        try:
            addresses = tuple(parse_announced(text) for text in _split(self.announce_address))
        except ValueError as error:
            raise ConfigError(f"announce_address: {error}") from error
        if sum(address.type is AddressType.DNS for address in addresses) > 1:
            raise ConfigError("announce_address: only one DNS name can be announced (BOLT 7)")
        return addresses

    @property
    def rpc_address(self) -> tuple[str, int]:
        """Raises ConfigError."""
        return parse_address(self.rpclisten, "rpclisten")

    @property
    def rpc_hosts(self) -> tuple[str, ...]:
        """Names for the certificate."""
        return tuple(_split(self.rpchost))

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Raises ConfigError."""
        return parse_address(self.metrics, "metrics") if self.metrics else None

    @property
    def trusted_peers(self) -> frozenset[bytes]:
        """Node ids of `zero_conf_peers`. Raises ConfigError."""
        try:
            return frozenset(bytes.fromhex(text) for text in _split(self.zero_conf_peers))
        except ValueError as error:
            raise ConfigError("zero_conf_peers must be node ids, 66 hex digits each, with commas between") from error


def load_config(arguments: Sequence[str]) -> Config:
    """From flags, environment and file. Raises ConfigError; SystemExit for `--help` and unknown flags."""
    return load_settings(Config, arguments, DEFAULT_ROOT)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
