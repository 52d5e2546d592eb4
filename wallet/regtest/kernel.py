"""Bitcoin Core's consensus code (libbitcoinkernel through py-bitcoinkernel) over one data directory.

The kernel's directory is a cache: every block also lies in `store`, from which the directory can be built again.
That is how the chain survives a kill, and how a branch is taken back, for which the kernel has no call.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pbk
import pbk.capi.bindings as capi
from pbk.capi.library import BITCOINKERNEL_LIB

from wallet.regtest.errors import StartupError

_REASON = re.compile(
    r"(?:AcceptBlock FAILED \(|ConnectBlock [0-9a-f]{64} failed, |CheckBlock FAILED \()([^\n]*?)\)?\s*$"
)
_SET_MOCK_TIME = "_Z11SetMockTimel"

_log_lock = threading.Lock()
_log_connection: Any = None
_active = threading.local()


def _on_log(line: str) -> None:
    # Log lines come on the thread that is inside a kernel call; the library has one logger for the whole process.
    kernel: Kernel | None = getattr(_active, "kernel", None)
    if kernel is not None:
        kernel._on_log(line)


def _connect_log() -> None:
    global _log_connection
    with _log_lock:
        if _log_connection is None:
            _log_connection = pbk.LoggingConnection(_on_log)


def set_mock_time(seconds: int) -> bool:
    """Set the clock that the consensus code compares block times with (0: the real one). False if it has no such call.

    The clock belongs to the process, so servers that share a process share it.
    """
    function = getattr(BITCOINKERNEL_LIB, _SET_MOCK_TIME, None)
    if function is None:
        return False
    function.argtypes = [ctypes.c_int64]
    function.restype = None
    function(seconds)
    return True


class Verdict(NamedTuple):
    """What the kernel says of a block: stored at all? Why not valid, in Bitcoin Core's words, or None.

    `failed` are the blocks found invalid on the way, which may have come earlier, on a branch that was not best then.
    """

    accepted: bool
    reason: str | None
    failed: frozenset[bytes] = frozenset()


class Kernel:
    """A chain with regtest's parameters, validated by Bitcoin Core's code, in `directory/blocks` and `/chainstate`."""

    def __init__(self, directory: Path, log: Callable[[str], None] | None = None) -> None:
        _connect_log()
        self.directory = directory
        self._log = log
        self._lines: list[str] = []
        self._checked: dict[bytes, bool] = {}
        # A stop must not take the library away from under a block that another thread validates.
        self._busy = threading.RLock()
        options = pbk.ContextOptions()
        options.set_chainparams(pbk.ChainParameters(pbk.ChainType.REGTEST))
        self._callbacks = pbk.ValidationInterfaceCallbacks(block_checked=self._on_block_checked)
        options.set_validation_interface(self._callbacks)
        self._context = pbk.Context(options)
        self._manager: Any = None
        self._chain: Any = None
        self._open()

    def _open(self) -> None:
        with self._inside():
            options = pbk.ChainstateManagerOptions(self._context, str(self.directory), str(self.directory / "blocks"))
            options.set_worker_threads_num(0)
            try:
                self._manager = pbk.ChainstateManager(options)
            except RuntimeError as error:
                detail = self._lines[-1].strip() if self._lines else str(error)
                raise StartupError(f"The block data in {self.directory} cannot be opened: {detail}") from error
            self._chain = self._manager.get_active_chain()

    def close(self) -> None:
        """Flush to disk and let go of the directory. Closing twice does nothing."""
        with self._inside():
            self._chain = None
            self._manager = None

    def wipe(self) -> None:
        """Start again from the genesis block, all blocks forgotten."""
        self.close()
        for name in ("blocks", "chainstate"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        self._open()

    @property
    def height(self) -> int:
        """Height of the active chain's tip."""
        return int(self._chain.height)

    def active_hash(self, height: int) -> bytes | None:
        """Hash of the active chain's block at `height`, None above the tip."""
        if height > self.height:
            return None
        return bytes(self._chain.block_tree_entries[height].block_hash)

    def knows(self, block_hash: bytes) -> bool:
        """Whether the block's header is in the block tree, valid or not."""
        return pbk.BlockHash(block_hash) in self._manager.block_tree_entries

    def raw_block(self, block_hash: bytes) -> bytes:
        """A stored block's serialisation. Raises KeyError if unknown, RuntimeError if unreadable."""
        entry = self._manager.block_tree_entries[pbk.BlockHash(block_hash)]
        return bytes(self._manager.blocks[entry])

    def process(self, raw: bytes, block_hash: bytes) -> Verdict:
        """Validate a block and, if it makes the best chain, activate it. Safe to call from a worker thread."""
        pointer = capi.btck_block_create(raw, len(raw))
        if not pointer:
            return Verdict(False, "block decode failed")
        block = pbk.Block._from_handle(pointer)
        with self._inside():
            if self._manager is None:
                return Verdict(False, "shutting down")
            try:
                self._manager.process_block(block)
            except pbk.ProcessBlockException:
                return Verdict(False, self._reason() or "block rejected")
            failed = frozenset(checked for checked, valid in self._checked.items() if not valid)
            reason = self._reason() or "block invalid" if block_hash in failed else None
            return Verdict(True, reason, failed)

    def _reason(self) -> str | None:
        for line in reversed(self._lines):
            found = _REASON.search(line)
            if found:
                return found[1]
        return None

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self._busy:
            self._lines.clear()
            self._checked.clear()
            previous = getattr(_active, "kernel", None)
            _active.kernel = self
            try:
                yield
            finally:
                _active.kernel = previous

    def _on_log(self, line: str) -> None:
        self._lines.append(line)
        if self._log is not None:
            self._log(line)

    def _on_block_checked(self, _user_data: Any, block: Any, state: Any) -> None:
        self._checked[bytes(block.block_hash)] = state.validation_mode == pbk.ValidationMode.VALID
