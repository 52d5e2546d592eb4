"""A Lightning node daemon."""
