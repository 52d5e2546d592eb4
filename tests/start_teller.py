"""A program that tells how it was started; with the argument `wait` it stays. For `test_warm_start`."""

import os
import random
import signal
import sys

if __name__ == "__main__":
    is_leader, has_input = os.getsid(0) == os.getpid(), sys.stdin.read() != ""
    descriptors = sorted(map(int, os.listdir("/proc/self/fd")))
    print(sys.argv[1:], os.environ["WORD"], is_leader, has_input, descriptors)
    print(random.random(), flush=True)
    if "wait" in sys.argv:
        signal.pause()
    print("last words", file=sys.stderr)
    sys.exit(7)
