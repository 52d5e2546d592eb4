"""`channelctl`: what the daemon's API offers, for people and for scripts. Knows the stubs in `channeld.v1` only."""
