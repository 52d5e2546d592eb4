"""The tower's settings: flags, then the environment (`WATCHTOWERD_...`), then `watchtowerd.toml` in its directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from wallet.bitcoin.address import BY_NAME, AddressError, script_of
from watchtower.justice import MAX_REWARD_PERMILLE
from watchtower.rpc.settings import ConfigError, explain, parse_address
from watchtower.tower.paths import DEFAULT_ROOT, TowerPaths, tower_paths
from watchtower.tower.sessions import Policy

CONFIG_NAME = "watchtowerd.toml"
_BITCOIND_PORTS = {"mainnet": 8332, "testnet": 18332, "signet": 38332, "regtest": 18443}
_BITCOIND_FOLDERS = {"mainnet": "", "testnet": "testnet3", "signet": "signet", "regtest": "regtest"}
_POLICY = Policy()


class Config(BaseSettings):
    """watchtowerd, a watchtower for Lightning nodes.

    Every setting can be a flag, an environment variable (WATCHTOWERD_NETWORK=...) or a line in watchtowerd.toml in the
    data directory (network = "..."); flags win over the environment, the environment over the file.
    """

    toml_path: ClassVar[Path | None] = None
    model_config = SettingsConfigDict(
        env_prefix="WATCHTOWERD_",
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="watchtowerd",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    datadir: Path = Field(DEFAULT_ROOT, description="where database, log and keys are kept")
    network: Literal["mainnet", "testnet", "signet", "regtest"] = Field("mainnet", description="the Bitcoin network")
    listen: str = Field("127.0.0.1:10029", description="HOST:PORT of the gRPC API; port 0: a free one")
    host: str = Field("", description="further names of this machine for the certificate, separated by commas")
    metrics: str = Field("127.0.0.1:10030", description="HOST:PORT of the Prometheus metrics; empty: none")
    access: Literal["open", "token"] = Field(
        "open", description="who may create sessions: anybody, or with client.token"
    )
    bitcoind_url: str = Field("", description="bitcoind's RPC (default: http://127.0.0.1 and the network's usual port)")
    bitcoind_user: str = Field("", description="bitcoind's RPC user, if it has a password")
    bitcoind_password: str = Field("", description="bitcoind's RPC password; better in the environment or the file")
    bitcoind_cookie: Path | None = Field(None, description="bitcoind's cookie file (default: the usual place)")
    bitcoind_zmq: str = Field("", description="bitcoind's ZMQ address for blocks (default: what bitcoind tells)")
    database: str = Field("", description="SQLAlchemy URL of the database (default: SQLite in the data directory)")
    reward_permille: int = Field(
        0, ge=0, le=MAX_REWARD_PERMILLE, description="share of what is saved, in permille; 0: none is taken"
    )
    reward_address: str = Field("", description="where the share is paid to")
    session_appointments: int = Field(_POLICY.session_appointments, ge=1, description="most appointments a session")
    session_bytes: int = Field(_POLICY.session_bytes, ge=1_000, description="most bytes of blobs a session")
    session_blocks: int = Field(_POLICY.session_blocks, ge=144, description="how long a session lasts")
    max_sessions: int = Field(_POLICY.max_sessions, ge=1, description="most sessions")
    max_total_bytes: int = Field(_POLICY.max_total_bytes, ge=1_000, description="most bytes of blobs in all")
    max_blob_bytes: int = Field(_POLICY.max_blob_bytes, ge=1_000, le=1 << 20, description="largest blob")
    appointments_per_second: float = Field(
        _POLICY.appointments_per_second, gt=0, description="most appointments a second from one session"
    )
    appointments_burst: float = Field(_POLICY.appointments_burst, ge=1, description="most at once from one session")
    sessions_per_minute: float = Field(
        _POLICY.sessions_per_minute, gt=0, description="most new sessions a minute from one network address"
    )
    sessions_burst: float = Field(_POLICY.sessions_burst, ge=1, description="most new sessions at once from one")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much the log says")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags come in as `init_settings`."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, cls.toml_path)

    # --- derived

    @property
    def paths(self) -> TowerPaths:
        """Where this tower keeps its files."""
        return tower_paths(self.network, self.datadir)

    @property
    def listen_address(self) -> tuple[str, int]:
        """Raises ConfigError."""
        return parse_address(self.listen, "listen")

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Raises ConfigError."""
        return parse_address(self.metrics, "metrics") if self.metrics else None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names for the certificate."""
        return tuple(part.strip() for part in self.host.split(",") if part.strip())

    @property
    def policy(self) -> Policy:
        """Raises ConfigError."""
        if self.reward_permille and not self.reward_address:
            raise ConfigError("reward_permille needs a reward_address for the share to be paid to")
        script = b""
        if self.reward_address:
            try:
                script = script_of(self.reward_address, BY_NAME[self.network])
            except AddressError as error:
                raise ConfigError(f"reward_address {self.reward_address!r} is none: {error}") from error
        return Policy(
            reward_permille=self.reward_permille,
            reward_script=script,
            session_appointments=self.session_appointments,
            session_bytes=self.session_bytes,
            session_blocks=self.session_blocks,
            max_sessions=self.max_sessions,
            max_total_bytes=self.max_total_bytes,
            max_blob_bytes=self.max_blob_bytes,
            appointments_per_second=self.appointments_per_second,
            appointments_burst=self.appointments_burst,
            sessions_per_minute=self.sessions_per_minute,
            sessions_burst=self.sessions_burst,
        )

    @property
    def bitcoind_rpc_url(self) -> str:
        """The URL, or the network's usual one."""
        return self.bitcoind_url or f"http://127.0.0.1:{_BITCOIND_PORTS[self.network]}"

    @property
    def bitcoind_cookie_file(self) -> Path | None:
        """The cookie file, unless there is a user."""
        if self.bitcoind_user:
            return None
        if self.bitcoind_cookie is not None:
            return self.bitcoind_cookie.expanduser()
        return Path("~/.bitcoin").expanduser() / _BITCOIND_FOLDERS[self.network] / ".cookie"


def load_config(arguments: Sequence[str]) -> Config:
    """From flags, environment and file. Raises ConfigError; SystemExit for `--help` and unknown flags."""
    from pydantic_settings import CliSettingsSource

    flags: dict[str, Any] = CliSettingsSource(Config, cli_parse_args=list(arguments))()
    root = Path(flags.get("datadir") or os.environ.get("WATCHTOWERD_DATADIR") or DEFAULT_ROOT).expanduser()
    toml = root / CONFIG_NAME
    located = type("Config", (Config,), {"toml_path": toml if toml.exists() else None, "__doc__": Config.__doc__})
    try:
        config = located(**flags)
    except ValidationError as error:
        raise ConfigError(explain(error, "watchtowerd")) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{toml} cannot be read: {error}") from error
    assert isinstance(config, Config)
    return config
