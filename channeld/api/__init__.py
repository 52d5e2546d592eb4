"""The gRPC API: services over a `NodeService`, TLS, the token, health and reflection. Start at `server.ApiServer`."""
