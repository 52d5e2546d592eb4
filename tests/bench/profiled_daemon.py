"""`channeld` with a profiler around it: what it spends its time on is in PROFILE_FILE when it has stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pyinstrument import Profiler

from channeld.__main__ import run_daemon
from channeld.config import load_config

if __name__ == "__main__":
    file = Path(os.environ.pop("PROFILE_FILE"))
    profiler = Profiler(interval=0.0005, async_mode="disabled")
    profiler.start()
    status = run_daemon(load_config(sys.argv[1:]))
    profiler.stop()
    file.write_text(profiler.output_text(unicode=True, show_all=True, timeline=False))
    sys.exit(status)
