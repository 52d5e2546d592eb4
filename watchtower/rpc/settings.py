"""What daemons' settings have in common: the chain they follow, and where settings come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from wallet.version import VERSION

if TYPE_CHECKING:
    from wallet.bitcoind import BitcoindChainSource

_BITCOIND_PORTS = {"mainnet": 8332, "testnet": 18332, "signet": 38332, "regtest": 18443}
_BITCOIND_FOLDERS = {"mainnet": "", "testnet": "testnet3", "signet": "signet", "regtest": "regtest"}


class ConfigError(Exception):
    """A setting that cannot be; the text is a sentence for the operator."""


def settings_config(program: str) -> SettingsConfigDict:
    """How a program's flags and environment look."""
    return SettingsConfigDict(
        env_prefix=f"{program.upper()}_",
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name=program,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )


class ChainSettings(BaseSettings):
    """The settings of a program that follows a chain; flags win over the environment, the environment over the file."""

    toml_path: ClassVar[Path | None] = None

    network: Literal["mainnet", "testnet", "signet", "regtest"] = Field("mainnet", description="the Bitcoin network")
    bitcoind_url: str = Field("", description="bitcoind's RPC (default: http://127.0.0.1 and the network's usual port)")
    bitcoind_user: str = Field("", description="bitcoind's RPC user, if it has a password")
    bitcoind_password: str = Field("", description="bitcoind's RPC password; better in the environment or the file")
    bitcoind_cookie: Path | None = Field(None, description="bitcoind's cookie file (default: the usual place)")
    bitcoind_zmq: str = Field("", description="bitcoind's ZMQ address for blocks (default: what bitcoind tells)")
    database: str = Field("", description="SQLAlchemy URL of the database (default: SQLite in the data directory)")
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

    def chain_source(self, on_waiting: Callable[[str], None]) -> BitcoindChainSource:
        """Layer 1 as configured. `on_waiting` hears why it is waited for, in a sentence."""
        from wallet.bitcoin.address import BY_NAME
        from wallet.bitcoind import BitcoindChainSource, BitcoindConfig
        from wallet.rpc import RpcConfig

        user, password = self.bitcoind_user or None, self.bitcoind_password or None
        rpc = RpcConfig(self.bitcoind_rpc_url, user, password, self.bitcoind_cookie_file)
        bitcoind = BitcoindConfig(rpc, self.bitcoind_zmq or None)
        return BitcoindChainSource(bitcoind, BY_NAME[self.network], on_waiting=on_waiting)


S = TypeVar("S", bound=ChainSettings)


def load_settings(kind: type[S], arguments: Sequence[str], default_root: Path) -> S:
    """From flags, environment and `<program>.toml` in the data directory. Raises ConfigError; SystemExit for `--help`
    and unknown flags."""
    program = str(kind.model_config["cli_prog_name"])
    flags = _flags(kind, program, arguments)
    _refuse_misspelt(kind)
    root = Path(flags.get("datadir") or os.environ.get(f"{program.upper()}_DATADIR") or default_root).expanduser()
    toml = root / f"{program}.toml"
    located = type("Config", (kind,), {"toml_path": toml if toml.exists() else None, "__doc__": kind.__doc__})
    try:
        config = located(**flags)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, program)) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{toml} cannot be read: {error}") from error
    assert isinstance(config, kind)
    return config


def _flags(kind: type[ChainSettings], program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What is given as flags. Raises SystemExit for `--help`, `--version` and unknown flags."""
    from argparse import SUPPRESS, RawDescriptionHelpFormatter, _HelpAction
    from inspect import cleandoc

    from pydantic_settings import CliSettingsSource

    source: Any = CliSettingsSource(kind, formatter_class=RawDescriptionHelpFormatter)
    parser = source.root_parser
    parser.description = cleandoc(kind.__doc__ or "")
    parser.usage = f"{program} [OPTIONS]"
    for action in parser._actions:
        field = kind.model_fields.get(action.dest)
        if isinstance(action, _HelpAction):
            action.help = "show this help and exit"
        elif field is not None:
            described = field.description or ""
            has_default = field.default not in ("", None) and "(default" not in described
            action.help = f"{described} (default: {_shown(field.default)})" if has_default else described
            action.help = action.help.replace("%", "%%")
            if field.default is False:
                action.option_strings = action.option_strings[:1]  # no --no-... for what is off
            if action.nargs != 0 and not str(action.metavar).startswith("{"):
                action.metavar = _METAVARS.get(str(action.metavar), "TEXT")
    parser.add_argument(
        "--version",
        action="version",
        version=f"{program} {VERSION}",
        help="print the version and exit",
        default=SUPPRESS,
    )
    given: dict[str, Any] = source(args=list(arguments))()
    return given


def _refuse_misspelt(kind: type[ChainSettings]) -> None:
    """A variable that looks like a setting's and is none: a seed that is not restored for a letter would be a new one.
    Others are left alone: clients have theirs, and so has who starts the program. Raises ConfigError."""
    prefix = str(kind.model_config["env_prefix"])
    for variable in os.environ:
        name = variable.removeprefix(prefix).lower()
        if variable.startswith(prefix) and name not in kind.model_fields and (guess := _guess(name, kind, prefix)):
            raise ConfigError(f"{variable} in the environment is no setting{guess}")


def _guess(name: str, kind: type[ChainSettings], prefix: str = "") -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, kind.model_fields, n=1, cutoff=0.85)
    return f" (did you mean {prefix + close[0].upper() if prefix else close[0]}?)" if close else ""


_METAVARS = {"int": "NUMBER", "float": "NUMBER", "Path": "PATH"}


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return str(default)


def explain(error: ValidationError, kind: type[ChainSettings], program: str) -> str:
    """What is wrong with a program's settings, in a sentence."""
    sentences = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            sentences.append(f"there is no setting {name!r}{_guess(name, kind)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            sentences.append(f"{name} cannot be {item.get('input')!r}: {message[:1].lower()}{message[1:]}")
    return f"{'; '.join(sentences)} (see {program} --help)"


def parse_address(text: str, name: str) -> tuple[str, int]:
    """`HOST:PORT`, with [brackets] around an IPv6 address. Raises ConfigError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535 or not host:
        raise ConfigError(f"{name} must be HOST:PORT, such as 127.0.0.1:9735; {text!r} is not")
    return host.removeprefix("[").removesuffix("]"), int(port)
