"""`channelctl tower ...`: watchtowers that guard the channels while the daemon is away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from channeld.cli.command import command
from channeld.cli.failures import FAILED, NOT_FOUND, USAGE, CliError
from channeld.cli.output import Column, Id, Output
from channeld.cli.session import SLOW_TIMEOUT_SECONDS, Session

if TYPE_CHECKING:
    from channeld.v1.towers_pb2 import Tower

TowerArgument = Annotated[
    str, typer.Argument(metavar="TOWER", help="The tower's id, or its beginning.", show_default=False)
]


def add(
    session: Session,
    uri: Annotated[str, typer.Argument(metavar="TOWER_ID@HOST:PORT", help="As watchtowerd prints it.")],
    own: Annotated[
        bool, typer.Option("--own", help="It is mine: it gets revocation keys, takes more, at any fee rate.")
    ] = False,
    max_reward: Annotated[
        int, typer.Option("--max-reward", min=0, max=500, metavar="PERMILLE", help="Share that it may keep.")
    ] = 0,
    token: Annotated[str, typer.Option("--token", help="Of a private tower.", show_default=False)] = "",
) -> None:
    """Uses a tower. It gets the whole past of every channel; nothing waits for that."""
    from channeld.v1 import towers_pb2

    request = towers_pb2.AddTowerRequest(uri=uri, own=own, max_reward_permille=max_reward, token=token)
    answer = session.call(session.towers.Add, request)
    hint = "`channelctl tower check` tells when it is up to date."
    session.out.show(answer, lambda: session.out.line(f"Tower {answer.tower_id.hex()} is used from now on; {hint}"))


def remove(session: Session, tower: TowerArgument) -> None:
    """Forgets a tower, and what it has confirmed."""
    from channeld.v1 import towers_pb2

    found = _find(session, tower)
    answer = session.call(session.towers.Remove, towers_pb2.RemoveTowerRequest(tower_id=found.tower_id))
    session.out.show(answer, lambda: session.out.line(f"Tower {found.tower_id.hex()} is not used any more."))


def pause(session: Session, tower: TowerArgument) -> None:
    """Sends a tower nothing until `resume`."""
    _set_paused(session, tower, True)


def resume(session: Session, tower: TowerArgument) -> None:
    """Goes on after `pause`."""
    _set_paused(session, tower, False)


def _set_paused(session: Session, tower: str, paused: bool) -> None:
    from channeld.v1 import towers_pb2

    found = _find(session, tower)
    request = towers_pb2.SetTowerPausedRequest(tower_id=found.tower_id, paused=paused)
    answer = session.call(session.towers.SetPaused, request)
    state = "is paused" if paused else "is used again"
    session.out.show(answer, lambda: session.out.line(f"Tower {found.tower_id.hex()} {state}."))


def _find(session: Session, text: str) -> Tower:
    from channeld.v1 import towers_pb2

    answer = session.call(session.towers.List, towers_pb2.ListTowersRequest())
    found = [tower for tower in answer.towers if tower.tower_id.hex().startswith(text.lower())]
    if not found:
        raise CliError(f"There is no tower {text}.", "See `channelctl tower list`.", NOT_FOUND)
    if len(found) > 1:
        raise CliError(f"{len(found)} towers begin with {text}.", "Write more of the id.", USAGE)
    return found[0]


def list_(session: Session) -> None:
    """Towers, and how far they are."""
    from channeld.v1 import towers_pb2

    answer = session.call(session.towers.List, towers_pb2.ListTowersRequest())
    columns = [
        Column("Tower"),
        Column("Address"),
        Column("Mode"),
        Column("State", fold=True),
        Column("Backed up", right=True),
        Column("Backlog", right=True),
    ]
    rows = (
        (
            Id(tower.tower_id.hex()),
            tower.address,
            "own" if tower.own else "blind",
            _state(tower),
            f"{sum(channel.backed_up for channel in tower.channels):,}",
            f"{tower.backlog:,}",
        )
        for tower in answer.towers
    )
    out = session.out
    out.show(answer, lambda: out.table(columns, rows, "There are no towers. `channelctl tower add` uses one."))


def _state(tower: Tower) -> str:
    if tower.paused:
        return "paused"
    return "works" if tower.reachable else f"for {_age(tower.problem_since_seconds)}: {tower.problem}"


def stats(session: Session) -> None:
    """For every tower and channel: what is revoked, what the tower has, for how long it has been behind."""
    from channeld.v1 import towers_pb2

    answer = session.call(session.towers.List, towers_pb2.ListTowersRequest())
    session.out.show(answer, lambda: _show_stats(session.out, list(answer.towers)))


def _show_stats(out: Output, towers: list[Tower]) -> None:
    columns = [
        Column("Tower"),
        Column("Channel"),
        Column("Revoked", right=True),
        Column("Backed up", right=True),
        Column("Behind", right=True),
        Column("Last confirmed"),
    ]
    rows = [
        (
            Id(tower.tower_id.hex()),
            Id(channel.channel_id.hex()),
            f"{channel.revoked:,}",
            f"{channel.backed_up:,}",
            f"{channel.behind_seconds:.0f} s" if channel.backed_up < channel.revoked else "",
            f"{_age(channel.acknowledged_seconds)} ago" if channel.acknowledged_seconds else "never",
        )
        for tower in towers
        for channel in tower.channels
    ]
    out.table(columns, rows, "There is nothing to back up, or no tower.")


def _age(seconds: float) -> str:
    passed = max(0.0, time.time() - seconds)
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if passed >= 2 * size:
            return f"{passed / size:.0f} {unit}"
    return f"{passed:.0f} seconds"


def check(session: Session) -> None:
    """Is every tower up to date? Asks them, and looks at what they really have. Exit status 0: yes, 1: no."""
    from channeld.v1 import towers_pb2

    answer = session.call(session.towers.Check, towers_pb2.CheckTowersRequest(), SLOW_TIMEOUT_SECONDS)

    def render() -> None:
        for each in answer.checks:
            verdict = "yes" if each.up_to_date else f"no: {'; '.join(each.reasons)}"
            session.out.line(f"{each.tower_id.hex()}@{each.address}: {verdict}")
        if not answer.checks:
            session.out.line("no: there is no tower")

    session.out.show(answer, render)
    if not answer.up_to_date:
        raise typer.Exit(FAILED)


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    tower = typer.Typer(help="Watchtowers: add, remove, pause, and see how far they are.", no_args_is_help=True)
    command(tower, "add")(add)
    command(tower, "remove")(remove)
    command(tower, "pause")(pause)
    command(tower, "resume")(resume)
    command(tower, "list")(list_)
    command(tower, "stats")(stats)
    command(tower, "check")(check)
    app.add_typer(tower, name="tower")
