"""What any daemon with a gRPC API needs: settings, lock, log, private files, TLS, tokens, statuses."""
