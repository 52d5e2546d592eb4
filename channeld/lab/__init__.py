"""Whole regtest networks of separate processes, for tests, demonstrations and benchmarks."""

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.lab.processes import ManagedProcess, ProcessEnded

__all__ = ["DaemonProcess", "Lab", "ManagedProcess", "ProcessEnded"]
