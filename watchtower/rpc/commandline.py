"""How a command-line client of a daemon ends: a sentence, a hint and an exit status. The same for all of them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from wallet.version import VERSION
from watchtower.rpc import ERROR_KIND_METADATA
from watchtower.rpc.console import Output
from watchtower.rpc.paths import NETWORKS

if TYPE_CHECKING:
    import grpc
    import typer

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
NOT_ENOUGH = 4
UNAVAILABLE = 5
ALREADY_EXISTS = 6
NOT_NOW = 7
NOT_KNOWN_YET = 8
NOT_ALLOWED = 9
KEY_REUSED = 10
INTERRUPTED = 130

STATUS_OF_CODE = {
    "INVALID_ARGUMENT": USAGE,
    "OUT_OF_RANGE": USAGE,
    "NOT_FOUND": NOT_FOUND,
    "RESOURCE_EXHAUSTED": NOT_ENOUGH,
    "UNAVAILABLE": UNAVAILABLE,
    "UNIMPLEMENTED": UNAVAILABLE,
    "ALREADY_EXISTS": ALREADY_EXISTS,
    "FAILED_PRECONDITION": NOT_NOW,
    "DEADLINE_EXCEEDED": NOT_KNOWN_YET,
    "UNAUTHENTICATED": NOT_ALLOWED,
    "PERMISSION_DENIED": NOT_ALLOWED,
    "ABORTED": KEY_REUSED,
}
"""From the name of a gRPC status."""


class CliError(Exception):
    """Ends the program: a sentence on what is wrong, another on what to do next, and the exit status."""

    def __init__(self, sentence: str, hint: str = "", status: int = FAILED) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint
        self.status = status


def is_from_daemon(error: grpc.RpcError) -> bool:
    """Whether the daemon itself answered so: then nothing is uncertain, and trying again changes nothing."""
    metadata: Any = error.trailing_metadata() or ()
    return any(key == ERROR_KIND_METADATA for key, _ in metadata)


def as_sentence(text: str) -> str:
    """`text` with a capital letter and a full stop; an address or an id at its beginning stays as it is."""
    word = text.split(" ", 1)[0]
    capital = text[:1].upper() + text[1:] if word.isalpha() else text
    return capital if capital.endswith((".", "?", "!")) else f"{capital}."


@cache
def _command(app: typer.Typer) -> Any:
    """What reads an app's command lines. typer would make it anew for each: with many commands, that takes longer than
    most of them do."""
    from typer.main import get_command

    return get_command(app)


def version_shower(program: str) -> Callable[[bool], None]:
    """The callback of a program's `--version`."""

    def show(wanted: bool) -> None:
        if wanted:
            import typer

            print(f"{program} {VERSION}")
            raise typer.Exit

    return show


def check_network(network: str | None) -> None:
    """Of `--network`. Raises CliError."""
    if network is not None and network not in NETWORKS:
        raise CliError(f"{network!r} is no network.", f"There are {', '.join(NETWORKS)}.", USAGE)


def run_app(
    app: typer.Typer, program: str, arguments: Sequence[str] | None, usage_errors: tuple[type[Exception], ...] = ()
) -> int:
    """Runs one command line (without the program's name); the exit status. `usage_errors` are the program's own."""
    import typer

    # A BadParameter is a UsageError is a ClickException. typer has had that class in different places.
    click_exception: type[Any] = typer.BadParameter.__mro__[2]
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would write to stderr beside our own sentences
    out = Output(as_json="--json" in (sys.argv[1:] if arguments is None else arguments))
    try:
        status = _command(app)(args=arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else OK
    except CliError as error:
        out.error(error.sentence, error.hint, error.status)
        return error.status
    except usage_errors as error:
        out.error(str(error), "", USAGE)
        return USAGE
    except click_exception as error:
        return _usage_error(error, out)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. The interpreter flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _usage_error(error: Any, out: Output) -> int:
    message: str = re.sub(r"'\[([A-Z_]+)\]'", r"'\1'", error.format_message())
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message)
        return USAGE
    hint = f"See `{context.command_path} --help`." if context is not None else ""
    misplaced = getattr(error, "option_name", None)
    if context is not None and misplaced in _global_options(context):
        hint = f"It goes before the command: `{context.find_root().command_path} {misplaced} ...`."
    status: int = error.exit_code
    out.error(message, hint, status)
    return status


def _global_options(context: Any) -> set[str]:
    root = context.find_root()
    return {name for parameter in root.command.params for name in parameter.opts} if context is not root else set()
