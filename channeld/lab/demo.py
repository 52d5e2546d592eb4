"""`make demo`: what a Lightning network does, told by daemons that are processes of their own, on a private chain.

The acts are in `channeld.lab.acts`. After each of them every satoshi is accounted for: exit status 1 and a plain
sentence if one is missing. Nothing is left running, whatever happens.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

import grpc
from rich.console import Console

from channeld.lab.acts import ACTS
from channeld.lab.lab import Lab
from channeld.lab.ledger import LedgerError
from channeld.lab.processes import ProcessEnded
from channeld.lab.stage import DemoFailed, Stage


async def _run(console: Console) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="channeld-demo-") as folder:
        async with Lab(Path(folder)) as lab:
            stage = Stage(console, lab)
            stage.say(f"[bold]Layer 1[/] runs: regtestd, process {lab.layer1.pid}, {await lab.height()} blocks")
            for number, (title, act) in enumerate(ACTS, 1):
                stage.title(f"Act {number}: {title}")
                ledger = await act(stage)
                stage.accounts(ledger.table())
                faults.extend(ledger.faults())
    for sentence in faults:
        console.print(f"[bold red]{sentence}[/]")
    if not faults:
        console.print("[green]Nothing is missing, nothing is left running.[/]")
    return 1 if faults else 0


def main() -> int:
    """The exit status: 0 if every satoshi is where it must be."""
    console = Console()
    try:
        return asyncio.run(_run(console))
    except (DemoFailed, LedgerError, ProcessEnded) as error:
        console.print(f"[bold red]The demonstration failed:[/] {error}", highlight=False)
    except grpc.aio.AioRpcError as error:
        console.print(f"[bold red]The demonstration failed:[/] {error.details()}", highlight=False)
    except TimeoutError:
        console.print("[bold red]The demonstration failed:[/] a step took too long", highlight=False)
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; nothing is left running")
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
