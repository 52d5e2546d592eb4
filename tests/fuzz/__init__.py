"""Bytes from an enemy: fuzz targets for every decoder and for sequences of messages.

A target is a function of bytes that must never raise: it calls what is tested, accepts the errors that its docstring
promises, and asserts what must be true of whatever was accepted. `python -m tests.fuzz` (or `make fuzz`) drives them
with atheris, which looks for inputs that reach new code; `test_corpus.py` plays the inputs that were found worth
keeping, and mutations of them, in the suite.
"""
