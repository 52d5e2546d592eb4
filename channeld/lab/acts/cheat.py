"""A cheat: Bob keeps an old copy of his database, from when more of a channel was his. While Alice is away he puts it
back and closes with it. It takes no special program: anybody can do that with any node. Alice's tower takes everything.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc

from channeld.lab.daemon import LOOK_SECONDS, DaemonProcess
from channeld.lab.ledger import ANCHORS, CLOSING_FEES, JUSTICE_FEES, PENALTY, Ledger, fee_sat, fetch_tx
from channeld.lab.stage import BURIAL_BLOCKS, DemoFailed, Stage
from channeld.lab.tower import start, tower_process
from channeld.v1 import channels_pb2, towers_pb2
from wallet.bitcoin import Tx
from watchtower.tower.paths import tower_paths

FUNDS_SAT = 1_100_000
CAPACITY_SAT = 1_000_000
LENT_SAT = 700_000
GIVEN_BACK_SAT = 650_000
PATIENCE_SECONDS = 30.0


async def play(stage: Stage) -> Ledger:
    """The whole act. Raises DemoFailed."""
    alice, bob = await stage.cast("alice", "bob")
    directory = stage.lab.directory / "tower"
    tower = tower_process(stage.lab, directory)
    try:
        uri = await start(tower, tower_paths("regtest", directory))
        stage.say(f"[bold]A watchtower[/] runs: watchtowerd, process {tower.pid}; it has no keys, and learns nothing")
        await alice.client.towers.Add(towers_pb2.AddTowerRequest(uri=str(uri)))
        stage.say("Alice gives it, for each state that is over, a sealed envelope that only a cheat can open")
        return await _play(stage, alice, bob)
    finally:
        await tower.terminate()


async def _play(stage: Stage, alice: DaemonProcess, bob: DaemonProcess) -> Ledger:
    await stage.lab.fund(alice, FUNDS_SAT)
    ledger = Ledger()
    await ledger.open(alice, bob)
    channel = await stage.lab.open_channel(alice, bob, CAPACITY_SAT, private=True)
    await ledger.funded(stage.lab, alice, channel)
    stage.say(f"Alice opens a channel of {CAPACITY_SAT:,} sat to Bob")
    await stage.pay(alice, bob, LENT_SAT, "a loan", ledger)
    copy = await _copy_database(bob, stage.lab.directory / "copy")
    await alice.wait_channel(channel.channel_id)
    stage.say(f"Bob copies his database: in that copy, {LENT_SAT:,} sat of the channel are his")
    await stage.pay(bob, alice, GIVEN_BACK_SAT, "the loan, paid back", ledger)
    await _until_backed_up(alice)
    for daemon, sat in ((alice, CAPACITY_SAT - LENT_SAT + GIVEN_BACK_SAT), (bob, LENT_SAT - GIVEN_BACK_SAT)):
        ledger[daemon].share_msat = sat * 1000
    await alice.stop()
    stage.say("Alice's tower has all it needs; she switches her node off and leaves")
    commitment = await _cheat(stage, bob, copy, channel)
    await _justice(stage, commitment)
    await alice.start()
    await stage.lab.wait_synced()
    await _tell(stage, alice, bob, channel, commitment, ledger)
    await ledger.close(alice, bob)
    return ledger


async def _copy_database(daemon: DaemonProcess, directory: Path) -> Path:
    """A copy of what it has now; it goes on afterwards."""
    await daemon.stop()
    await asyncio.to_thread(_copy_files, daemon.paths.database, directory)
    await daemon.start()
    return directory


def _copy_files(database: Path, directory: Path) -> None:
    """A database is up to three files."""
    directory.mkdir(exist_ok=True)
    for path in database.parent.glob(f"{database.name}*"):
        shutil.copy2(path, directory)


def _put_back(copy: Path, database: Path) -> None:
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()
    _copy_files(copy / database.name, database.parent)


async def _until_backed_up(daemon: DaemonProcess) -> None:
    """Until its tower says that it has the last state that is over."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (await daemon.client.towers.Check(towers_pb2.CheckTowersRequest())).up_to_date:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)


async def _cheat(stage: Stage, bob: DaemonProcess, copy: Path, channel: channels_pb2.Channel) -> Tx:
    """The revoked commitment that Bob publishes; it is in a block."""
    await bob.stop()
    await asyncio.to_thread(_put_back, copy, bob.paths.database)
    await bob.start()
    closing = await bob.close_channel(channel.channel_id, force=True, even_if_outdated=True)
    stage.say("[bold red]Bob puts his old copy back[/] and closes without Alice: the loan would be his once more")
    commitment = await fetch_tx(stage.lab, closing.closing_txid)
    await stage.lab.mine(1)
    stage.say(f"The revoked commitment {commitment.txid_hex[:20]}… is in a block: 144 blocks later it would pay him")
    return commitment


async def _justice(stage: Stage, commitment: Tx) -> None:
    """Until the tower has published what takes both sides' outputs, and that is buried."""
    asked = [{"txid": commitment.txid_hex, "vout": vout} for vout in _contested(commitment)]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answers = await stage.lab.rpc.call("gettxspendingprevout", asked)
                if all("spendingtxid" in answer for answer in answers):
                    break
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise DemoFailed("the tower did nothing") from None
    stage.say("[green]The tower opens the envelope[/] and publishes the justice transaction in it, Alice still away")
    await stage.lab.mine(BURIAL_BLOCKS)


def _contested(commitment: Tx) -> list[int]:
    """Outputs that are worth more than an anchor."""
    return [vout for vout, output in enumerate(commitment.outputs) if output.value_sat > 330]


async def _explained(alice: DaemonProcess, channel: channels_pb2.Channel) -> channels_pb2.GetClosingResponse:
    """What she says of the close, once she has looked at all of it."""
    request = channels_pb2.GetClosingRequest(channel_id=channel.channel_id)
    said = "nothing"
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    answer = await alice.client.channels.GetClosing(request)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                        raise
                    said = str(error.details())  # she has only just come back
                else:
                    left = [output for output in answer.outputs if output.kind != "anchor" and not output.spent_height]
                    if not left:
                        return answer
                    said = "; ".join(f"{output.kind} is {output.status_text}" for output in left)
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise DemoFailed(f"Alice never finds out what became of her channel: {said}") from None


async def _tell(
    stage: Stage,
    alice: DaemonProcess,
    bob: DaemonProcess,
    channel: channels_pb2.Channel,
    commitment: Tx,
    ledger: Ledger,
) -> None:
    """What Alice finds, booked."""
    answer = await _explained(alice, channel)
    if answer.kind != "revoked":
        raise DemoFailed(f"Alice takes the cheat for something else: {answer.kind}")
    taken = [output for output in answer.outputs if output.spent_height and output.taken_by == "local"]
    for output in taken:
        stage.say(f"Alice is back and finds {output.kind}, {output.amount_sat:,} sat: {output.status_text}")
    justice = [await fetch_tx(stage.lab, txid) for txid in {bytes(output.spending_txid) for output in taken}]
    fees_sat = sum([await fee_sat(stage.lab, tx) for tx in justice])
    outputs_sat = sum(output.value_sat for output in commitment.outputs)
    account = ledger[alice]
    account.book(CLOSING_FEES, -(CAPACITY_SAT - outputs_sat) * 1000)
    account.book(JUSTICE_FEES, -fees_sat * 1000)
    account.book(ANCHORS, -(outputs_sat - sum(output.amount_sat for output in taken)) * 1000)
    account.book(PENALTY, (LENT_SAT - GIVEN_BACK_SAT) * 1000)
    ledger[bob].book(PENALTY, -(LENT_SAT - GIVEN_BACK_SAT) * 1000)
    stage.say(f"Bob has lost the {LENT_SAT - GIVEN_BACK_SAT:,} sat that were his, too")
