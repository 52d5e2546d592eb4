"""What every test process needs."""

import signal

# Whoever runs the suite in the background of a shell has SIGINT ignored, and every child would inherit that: those that
# are to be interrupted could not be.
signal.signal(signal.SIGINT, signal.default_int_handler)
