"""`channeld` whose connections break at a chosen message, which is then lost: CUT_FILE says which.

The file holds `{"way": "in"|"out", "type": T, "nth": N}`: the N-th message of that type, counted from when the file
came to be, as a whole (a rename). It is removed when the connection is cut, and the cut is over.
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
    """Cuts once for each time that the file is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = 0
        self._done = False

    def meets(self, way: str, data: bytes) -> bool:
        """Whether this message must not get through."""
        kind = int.from_bytes(data[:2], "big")
        if self._done or not self._file.exists():
            return False
        wanted: dict[str, Any] = json.loads(self._file.read_text())
        if (way, kind) != (wanted["way"], wanted["type"]):
            return False
        self._seen += 1
        return bool(self._seen == wanted["nth"])

    def cut(self, link: PeerLink) -> None:
        """The file goes once the node knows that the connection has gone: that is told in the loop's next turn."""
        self._done = True
        link.close("cut by a test")
        asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._seen, self._done = 0, False
        self._file.unlink()


def install(scissors: Scissors) -> None:
    """Between the node and all its connections."""
    send, receive = PeerLink.send, PeerLink._receive

    def cutting_send(link: PeerLink, data: bytes) -> None:
        if scissors.meets("out", data):
            scissors.cut(link)
        else:
            send(link, data)

    def cutting_receive(link: PeerLink, data: bytes) -> None:
        if scissors.meets("in", data):
            scissors.cut(link)
        else:
            receive(link, data)

    PeerLink.send = cutting_send  # type: ignore[method-assign,assignment]
    PeerLink._receive = cutting_receive  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    install(Scissors(Path(os.environ.pop("CUT_FILE"))))
    sys.exit(run_daemon(load_config(sys.argv[1:])))
