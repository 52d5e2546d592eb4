"""bitcoind's JSON-RPC: the methods, their parameters' types and errors, and the HTTP server that carries them."""
