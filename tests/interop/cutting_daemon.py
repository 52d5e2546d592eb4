"""`channeld` whose connections break at a chosen message, which is then lost, or garble one: CUT_FILE says which.

The file holds `{"way": "in"|"out", "type": T, "nth": N, "spoil": S}`: the N-th message of that type, counted from when
the file came to be, as a whole (a rename). With `spoil`, that message gets through with its S-th byte changed. The file
is removed when it is done.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from channeld.__main__ import run_daemon
from channeld.config import load_config
from channeld.node.peer import PeerLink


class Scissors:
    """Cuts, or spoils, once for each time that the file is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = 0
        self._done = False

    def passes(self, link: PeerLink, way: str, data: bytes) -> bytes | None:
        """What gets through of a message; None if the connection is cut instead."""
        kind = int.from_bytes(data[:2], "big")
        if self._done or not self._file.exists():
            return data
        wanted: dict[str, Any] = json.loads(self._file.read_text())
        if (way, kind) != (wanted["way"], wanted["type"]):
            return data
        self._seen += 1
        if self._seen != wanted["nth"]:
            return data
        self._done = True
        at: int | None = wanted["spoil"]
        if at is None:
            link.close("cut by a test")
        # The file goes once the node knows that the connection has gone: that is told in the loop's next turn.
        asyncio.get_running_loop().call_soon(self._tell)
        return None if at is None else data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]

    def _tell(self) -> None:
        self._seen, self._done = 0, False
        self._file.unlink()


def install(scissors: Scissors) -> None:
    """Between the node and all its connections."""
    send, receive = PeerLink.send, PeerLink._receive

    def cutting_send(link: PeerLink, data: bytes) -> None:
        passed = scissors.passes(link, "out", data)
        if passed is not None:
            send(link, passed)

    def cutting_receive(link: PeerLink, data: bytes) -> None:
        passed = scissors.passes(link, "in", data)
        if passed is not None:
            receive(link, passed)

    PeerLink.send = cutting_send  # type: ignore[method-assign,assignment]
    PeerLink._receive = cutting_receive  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    install(Scissors(Path(os.environ.pop("CUT_FILE"))))
    sys.exit(run_daemon(load_config(sys.argv[1:])))
