"""What happens to a channel on chain (BOLT 5), as pure functions: no clock, no I/O, no randomness.

`known` is what a channel knows of its commitments, `classify` says which one ended it, `outputs` what each of its
outputs is and who may take it when, `plans` what to do about that now and at what fee, `build` makes transactions of
it, `outcomes` tells what became of HTLCs, and `resolution` folds the chain's facts into a state that can be stored.
"""
