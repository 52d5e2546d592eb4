"""`channelctl score`: what payments have taught of other nodes' channels. The file format stands in docs/routing.md."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from channeld.cli import amounts
from channeld.cli.command import command, confirm
from channeld.cli.failures import FAILED, USAGE, CliError
from channeld.cli.ids import parse_scid
from channeld.cli.session import Session

if TYPE_CHECKING:
    from channeld.v1.graph_pb2 import ChannelScore, ImportScoresRequest, NodeScore

FORMAT = "channeld-scores"
VERSION = 1
PAGE = 1000

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="Where to; without it stdout.", show_default=False)
]


def export(
    session: Session,
    file: FileArgument = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Also of channels that are not public. Do not give such a file away."),
    ] = False,
) -> None:
    """Writes what was learnt as JSON, to be imported elsewhere or later."""
    from channeld.cli.jsonable import to_jsonable
    from channeld.v1 import graph_pb2

    channels: list[Any] = []
    nodes: list[Any] = []
    for page in session.stream(session.graph.ExportScores, graph_pb2.ExportScoresRequest(include_private=private)):
        channels += map(to_jsonable, page.channels)
        nodes += map(to_jsonable, page.nodes)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "exported_seconds": int(time.time()),
        "channels": channels,
        "nodes": nodes,
    }
    text = json.dumps(document, indent=1)
    if file is None:
        print(text)
        return
    try:
        file.write_text(text + "\n")
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}.", "Name another file.", FAILED) from None
    _tell(session, "exported", len(channels), len(nodes), f"What was learnt of {{}} is in {file} now.")


def import_(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As exported; - for stdin.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="Forget first what was learnt here.")] = False,
) -> None:
    """Takes over what was exported. Of what both know the newer stays; all of it is taken, or nothing."""
    channels, nodes = read_scores(file)
    answer = session.upload(session.graph.ImportScores, _requests(channels, nodes, replace))
    kept = len(channels) + len(nodes) - answer.num_channels - answer.num_nodes
    ending = f"; {kept:,} were older than what is known here" if kept else ""
    _tell(session, "imported", answer.num_channels, answer.num_nodes, f"Learnt of {{}}{ending}.")


def reset(
    session: Session,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forgets everything that payments have taught of other nodes' channels."""
    from channeld.v1 import graph_pb2

    if not yes and not session.out.is_watched:
        raise CliError("This forgets all that was learnt.", "Add --yes if that is what you want.", USAGE)
    confirm(session, yes, "Forget all that payments have taught of channels and nodes?")
    answer = session.call(session.graph.ResetScores, graph_pb2.ResetScoresRequest())
    _tell(session, "forgotten", answer.num_channels, answer.num_nodes, "Forgotten: what was learnt of {}.")


def _tell(session: Session, what: str, channels: int, nodes: int, sentence: str) -> None:
    if session.out.as_json:
        session.out.json_line({what: {"num_channels": channels, "num_nodes": nodes}})
    else:
        session.out.line(sentence.format(f"{amounts.count(channels, 'channel')} and {amounts.count(nodes, 'node')}"))


def read_scores(file: Path) -> tuple[list[ChannelScore], list[NodeScore]]:
    """The scores in a file; `-` is stdin. Raises `CliError` for anything else than an export."""
    import sys

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        document = json.loads(text)
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}.", "Name the file that was exported.", USAGE) from None
    except ValueError:
        raise _no_scores(file, "it is not JSON") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _no_scores(file, f'its "format" is not "{FORMAT}"')
    if document.get("version") != VERSION:
        raise _no_scores(file, f"its version is not {VERSION}, the only one that is known here")
    try:
        return (
            [_channel(entry) for entry in document["channels"]],
            [_node(entry) for entry in document["nodes"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _no_scores(file, f"an entry cannot be read ({error})") from None


def _no_scores(file: Path, why: str) -> CliError:
    return CliError(f"{file} holds no scores: {why}.", "`channelctl score export` writes such files.", USAGE)


def _channel(entry: dict[str, Any]) -> ChannelScore:
    from channeld.v1.graph_pb2 import ChannelScore

    scid = parse_scid(entry["short_channel_id"])
    if scid is None:
        raise ValueError(f"{entry['short_channel_id']!r} is not a short channel id")
    return ChannelScore(
        short_channel_id=scid,
        lower_msat=entry["lower_msat"],
        upper_msat=entry["upper_msat"],
        capacity_msat=entry["capacity_msat"],
        learnt_seconds=entry["learnt_seconds"],
    )


def _node(entry: dict[str, Any]) -> NodeScore:
    from channeld.v1.graph_pb2 import NodeScore

    return NodeScore(
        node_id=bytes.fromhex(entry["node_id"]), nats=entry["nats"], learnt_seconds=entry["learnt_seconds"]
    )


def _requests(channels: list[ChannelScore], nodes: list[NodeScore], replace: bool) -> Iterator[ImportScoresRequest]:
    """In pages that fit the API's limit; one at least."""
    from channeld.v1.graph_pb2 import ImportScoresRequest

    for start in range(0, max(len(channels), len(nodes), 1), PAGE):
        yield ImportScoresRequest(
            replace=replace, channels=channels[start : start + PAGE], nodes=nodes[start : start + PAGE]
        )


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    score = typer.Typer(help="What payments have taught: export, import, reset.", no_args_is_help=True)
    command(score, "export")(export)
    command(score, "import")(import_)
    command(score, "reset")(reset)
    app.add_typer(score, name="score")
