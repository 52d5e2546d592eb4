"""The tower's settings: flags, then the environment (`WATCHTOWERD_...`), then `watchtowerd.toml` in its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from wallet.bitcoin.address import BY_NAME, AddressError, script_of
from watchtower.justice import MAX_REWARD_PERMILLE
from watchtower.rpc.settings import ChainSettings, ConfigError, load_settings, parse_address, settings_config
from watchtower.tower.paths import DEFAULT_ROOT, TowerPaths, tower_paths
from watchtower.tower.sessions import Policy

_POLICY = Policy()


class Config(ChainSettings):
    """watchtowerd, a watchtower for Lightning nodes.

    Every setting can be a flag, an environment variable (WATCHTOWERD_NETWORK=...) or a line in watchtowerd.toml in the
    data directory (network = "..."); flags win over the environment, the environment over the file.
    """

    model_config = settings_config("watchtowerd")

    datadir: Path = Field(DEFAULT_ROOT, description="where database, log and keys are kept")
    listen: str = Field("127.0.0.1:10029", description="HOST:PORT of the gRPC API; port 0: a free one")
    host: str = Field("", description="further names of this machine for the certificate, separated by commas")
    metrics: str = Field("127.0.0.1:10030", description="HOST:PORT of the Prometheus metrics; empty: none")
    access: Literal["open", "token"] = Field(
        "open", description="who may create sessions: anybody, or with client.token"
    )
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


def load_config(arguments: Sequence[str]) -> Config:
    """From flags, environment and file. Raises ConfigError; SystemExit for `--help` and unknown flags."""
    return load_settings(Config, arguments, DEFAULT_ROOT)
