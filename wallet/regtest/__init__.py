"""A regtest layer 1 in Python packages alone: Bitcoin Core's consensus, a mempool, a miner, bitcoind's JSON-RPC.

`regtestd` on the command line; `wallet.regtest.server.RegtestServer` inside a test.
"""
