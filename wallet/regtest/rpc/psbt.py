"""RPC methods about partially signed transactions (BIP 174)."""
