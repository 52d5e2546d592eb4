"""Coins set aside for transactions that are being made, until they are released, spent, or the time is up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wallet import store
from wallet.bitcoin import OutPoint
from wallet.errors import UnknownReservation
from wallet.store import ReservedCoin, Write


class Reservations:
    """Which coins are set aside, by number. Times are Unix seconds. Methods that change return the writes."""

    def __init__(self) -> None:
        self._by_outpoint: dict[OutPoint, ReservedCoin] = {}
        self._next = 1

    def restore(self, reserved: Iterable[ReservedCoin]) -> None:
        """What was persisted."""
        for coin in reserved:
            self._by_outpoint[coin.outpoint] = coin
            self._next = max(self._next, coin.reservation + 1)

    def holds(self, outpoint: OutPoint) -> bool:
        """Whether the coin is set aside. Call `expire` first."""
        return outpoint in self._by_outpoint

    def outpoints(self, reservation: int) -> list[OutPoint]:
        """The coins under a number; empty if there is no such reservation."""
        return [coin.outpoint for coin in self._by_outpoint.values() if coin.reservation == reservation]

    def all(self) -> dict[int, list[OutPoint]]:
        """All reservations."""
        grouped: dict[int, list[OutPoint]] = {}
        for coin in self._by_outpoint.values():
            grouped.setdefault(coin.reservation, []).append(coin.outpoint)
        return grouped

    def add(self, outpoints: Sequence[OutPoint], expires_at_seconds: int | None) -> tuple[int, list[Write]]:
        """Set coins aside, for ever or until a time. Returns the number."""
        assert not any(outpoint in self._by_outpoint for outpoint in outpoints)
        number = self._next
        self._next += 1
        coins = [ReservedCoin(outpoint, number, expires_at_seconds) for outpoint in outpoints]
        self._by_outpoint.update((coin.outpoint, coin) for coin in coins)
        return number, [store.insert_reserved(coin) for coin in coins]

    def release(self, reservation: int) -> list[Write]:
        """Free the coins. Raises UnknownReservation."""
        outpoints = self.outpoints(reservation)
        if not outpoints:
            raise UnknownReservation(f"no coins are reserved under number {reservation}")
        for outpoint in outpoints:
            del self._by_outpoint[outpoint]
        return [store.delete_reservation(reservation)]

    def hold_again(self, reservation: int, outpoints: Iterable[OutPoint]) -> None:
        """Undo `release`, if its writes are not going to be committed."""
        self.restore(ReservedCoin(outpoint, reservation, None) for outpoint in outpoints)

    def release_if_held(self, reservation: int | None) -> list[Write]:
        """Free the coins, if the reservation is still there."""
        return self.release(reservation) if reservation is not None and self.outpoints(reservation) else []

    def expire(self, now_seconds: float) -> list[Write]:
        """Free what is past its time."""
        late = {
            coin.reservation
            for coin in self._by_outpoint.values()
            if coin.expires_at_seconds is not None and coin.expires_at_seconds <= now_seconds
        }
        return [write for reservation in sorted(late) for write in self.release(reservation)]
