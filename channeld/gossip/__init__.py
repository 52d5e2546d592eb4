"""BOLT 7: the network as others tell it. Checked, kept, passed on, and our own part of it announced."""
