"""BOLT 4: onions for payments and messages, the failures that come back, blinded paths.

| module | what |
|---|---|
| `payment` | payloads of a payment's hops, building its onion, reading it at a node |
| `messages` | the same for onion messages |
| `sphinx` | the packet underneath: build and peel |
| `failures` | every failure message as a value |
| `returns` | error onions: create, relay, read at the sender |
| `attribution` | who damaged a failure, and how long each hop held the HTLC |
| `blinding` | blinded paths: create, decrypt, next path key |
"""
