"""What may go wrong in a wallet: each error's text is a sentence for its owner."""

from __future__ import annotations


class WalletError(Exception):
    """Base of all errors that the wallet's owner can do something about."""


class InsufficientFunds(WalletError):
    """The coins that may be spent do not cover amounts and fee; all figures in satoshi."""

    def __init__(self, have_sat: int, need_sat: int, fee_sat: int, held_back_sat: int = 0, note: str = "") -> None:
        needed = f"{need_sat:,} sat and a fee of {fee_sat:,} sat are needed"
        text = f"not enough funds: {needed}, {have_sat:,} sat can be spent"
        if held_back_sat:
            text += f" ({held_back_sat:,} sat are kept back as a reserve)"
        super().__init__(text + (f"; {note}" if note else ""))
        self.have_sat = have_sat
        self.need_sat = need_sat
        self.fee_sat = fee_sat
        self.held_back_sat = held_back_sat


class DustOutput(WalletError):
    """An output below what the network relays."""

    def __init__(self, value_sat: int, threshold_sat: int, where: str) -> None:
        super().__init__(f"{value_sat} sat to {where} is dust: the network relays at least {threshold_sat} sat there")
        self.value_sat = value_sat
        self.threshold_sat = threshold_sat


class InvalidAmount(WalletError):
    """An amount that is zero, negative, or more than there will ever be."""


class InvalidFeeRate(WalletError):
    """A fee rate below what is relayed, or so high that it can only be a mistake."""


class TransactionTooLarge(WalletError):
    """Too many coins would be needed for one transaction that the network relays."""


class FeeTooHigh(WalletError):
    """The fee is more than the caller would pay."""

    def __init__(self, fee_sat: int, max_fee_sat: int) -> None:
        super().__init__(f"a fee of {fee_sat} sat is more than the {max_fee_sat} sat it is worth")
        self.fee_sat = fee_sat
        self.max_fee_sat = max_fee_sat


class CannotBump(WalletError):
    """This transaction's fee cannot be raised; the text says why."""


class UnknownTransaction(WalletError):
    """No transaction of this wallet has that id."""


class UnknownReservation(WalletError):
    """No coins are reserved under that number."""


class CoinUnavailable(WalletError):
    """A coin that was asked for by name cannot be spent; the text says why."""


class BroadcastRejected(WalletError):
    """The network refuses the transaction for good; it was taken back and its coins are free again."""


class WrongSeed(WalletError):
    """The database belongs to another seed than the one given."""


class OutOfStep(WalletError):
    """A block event that does not continue the chain which the wallet has processed."""


class PsbtError(WalletError):
    """A partially signed transaction that cannot be read, signed or completed."""
