"""How a function becomes a command: it gets a `Session`, and `--json` as every other command does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from channeld.cli.amounts import FormatError, parse_duration, parse_feerate, parse_msat, parse_positive_msat, parse_sat
from channeld.cli.failures import FAILED, CliError
from channeld.cli.ids import parse_hash, parse_hash_prefix, parse_node_address
from channeld.cli.session import Session, Settings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., None])

# Options and arguments that several commands have


def parser(function: Callable[[str], T]) -> Callable[[str | T], T]:
    """A parser for an option: what is wrong with the text is told as a usage error."""

    def parse(text: str | T) -> T:
        if not isinstance(text, str):
            return text  # typer hands over defaults as well
        try:
            return function(text)
        except FormatError as error:
            raise typer.BadParameter(str(error)) from None

    parse.__name__ = "str"  # what help texts call the type of an argument
    return parse


sat_parser = parser(parse_sat)
msat_parser = parser(parse_positive_msat)
any_msat_parser = parser(parse_msat)
feerate_parser = parser(parse_feerate)
duration_parser = parser(parse_duration)
node_parser = parser(parse_node_address)
payment_hash_parser = parser(lambda text: parse_hash_prefix(text, "a payment hash"))
AMOUNT_HELP = "1000sat, 0.01btc or 5000msat; no unit means sat."

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before money moves.")]
KeyOption = Annotated[
    str,
    typer.Option(
        "--idempotency-key",
        metavar="TEXT",
        help="The same key again moves no more money and gives the first answer. Without it one is made up.",
        show_default=False,
    ),
]
FeerateOption = Annotated[
    int | None,
    typer.Option(
        "--sat-per-vbyte",
        "--sat_per_vbyte",
        parser=feerate_parser,
        metavar="FEERATE",
        help="Feerate of the transaction in sat/vB; without it the daemon estimates.",
        show_default=False,
    ),
]


def hash_parser(what: str) -> Callable[[str | bytes], bytes]:
    """32 bytes in hex; `what` names them in the error, "a payment hash"."""
    return parser(lambda text: parse_hash(text, what))


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Options that several commands have: a command with a parameter of such a type has an option for each field."""


def command(app: typer.Typer, name: str, *, panel: str | None = None, hidden: bool = False) -> Callable[[F], F]:
    """Adds the function to `app`. Its first parameter is a `Session`, the others are typer's or an `OptionGroup`.

    `hidden`: it works, but no help names it.
    """

    def decorate(function: F) -> F:
        hints = get_type_hints(function, include_extras=True)
        own: list[inspect.Parameter] = []
        groups: dict[str, type[OptionGroup]] = {}
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            hint = hints[parameter.name]
            if isinstance(hint, type) and issubclass(hint, OptionGroup):
                groups[parameter.name] = hint
                own += _options_of(hint)
            else:
                own.append(parameter.replace(annotation=hint))

        def run(context: typer.Context, **values: Any) -> None:
            for parameter_name, group in groups.items():
                values[parameter_name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
            _run(context, function, values)

        _describe(run, own)
        app.command(name, help=inspect.getdoc(function), rich_help_panel=panel, hidden=hidden)(run)
        return function

    return decorate


def _options_of(group: type[OptionGroup]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
        for field in fields(group)
    ]


def default_command(app: typer.Typer, function: Callable[[Session], None]) -> None:
    """What `app` does when it is called without one of its commands."""

    def run(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            _run(context, function, values)
        elif values["as_json"]:
            context.find_root().obj = context.find_root().obj._replace(as_json=True)

    _describe(run, [])
    app.callback(invoke_without_command=True)(run)


def _describe(run: Callable[..., None], own: list[inspect.Parameter]) -> None:
    """Makes `run` look to typer as if it were written with the parameters `own` and `--json`."""
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *own,
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonFlag),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _run(context: typer.Context, function: Callable[..., None], values: dict[str, Any]) -> None:
    settings: Settings = context.find_root().obj
    if values.pop("as_json"):
        settings = settings._replace(as_json=True)
    session = Session(settings)
    function(session, **values)
    session.close()  # after Ctrl-C gRPC may wait for ever in there, and the program ends anyway


def confirm(session: Session, yes: bool, question: str) -> None:
    """Asks before money moves, if somebody is there to answer. Raises `CliError` on no."""
    if not yes and session.out.is_watched and not session.out.confirm(question):
        raise CliError("Nothing was done.", "", FAILED)


def warn_if_behind(session: Session) -> None:
    """Tells if the daemon is not in step with its chain. Reaches the daemon before a call that moves money."""
    from channeld.v1 import node_pb2

    info = session.call(session.node.GetInfo, node_pb2.GetInfoRequest())
    if not info.synced_to_chain:
        session.out.note(f"The daemon is not in step with the chain: {info.chain_status}.")
