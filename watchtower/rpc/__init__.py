"""What any daemon with a gRPC API needs: settings, lock, log, private files, TLS, tokens, statuses."""

ERROR_KIND_METADATA = "channeld-error"
"""Trailing metadata that says which kind of error it was: there whenever the daemon itself answered."""
