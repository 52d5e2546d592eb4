"""A daemon of ours whose connections a test cuts, or whose messages it spoils, where it wants."""

from __future__ import annotations

import json

from tests.interop.conftest import MixedLab

ADD = 128
"""`update_add_htlc`."""
_ONION = 2 + 32 + 8 + 8 + 32 + 4
VERSION_BYTE, KEY_BYTE, HMAC_BYTE = _ONION, _ONION + 1, _ONION + 1365
"""Where the onion's parts are in it (BOLT 4, "Packet Structure")."""


class Knife:
    """`daemon` is not started yet."""

    def __init__(self, lab: MixedLab, name: str) -> None:
        self._file = lab.directory / f"{name}-cut.json"
        self.daemon = lab.add_daemon(name, env={"CUT_FILE": str(self._file)}, module="tests.interop.cutting_daemon")

    def at(self, way: str, kind: int, nth: int = 1, *, spoil: int | None = None) -> None:
        """Cut at the `nth` message of a kind from now on, and that message is lost; or change this byte of it."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps({"way": way, "type": kind, "nth": nth, "spoil": spoil}))
        draft.rename(self._file)

    async def made(self) -> None:
        """Until it was done; an event of our daemon's follows."""

        async def cut() -> bool:
            return not self._file.exists()

        await self.daemon.wait_until(cut)
