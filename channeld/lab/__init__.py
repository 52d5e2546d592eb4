"""Whole regtest networks of separate processes, for tests, demonstrations and benchmarks."""

import os

# A lab starts processes while gRPC runs; its own handling of forks would only complain about it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.lab.processes import ManagedProcess, ProcessEnded

__all__ = ["DaemonProcess", "Lab", "ManagedProcess", "ProcessEnded"]
