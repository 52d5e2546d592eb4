"""The gRPC API: services over a `NodeService`, TLS, the token, health and reflection. Start at `server.ApiServer`."""

import os

os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # gRPC would write its own lines to stderr, also for clients that hang up
