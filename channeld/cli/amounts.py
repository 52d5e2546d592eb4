"""Amounts, feerates and times as people write and read them."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal

MAX_SAT = 21_000_000 * 100_000_000
MSAT_PER_UNIT = {"msat": Decimal(1), "sat": Decimal(1000), "btc": Decimal(100_000_000_000)}
SECONDS_PER_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
WEIGHT_UNITS_PER_VBYTE = 4

_AMOUNT = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:_\d{3})+|\d*)(?:\.\d+)?)\s*(?P<unit>[a-z]*)", re.ASCII | re.IGNORECASE
)
_DURATION = re.compile(r"(?P<number>\d+)\s*(?P<unit>[smhdw]?)", re.IGNORECASE)
_UNITS = {"": "sat", "sat": "sat", "sats": "sat", "msat": "msat", "msats": "msat", "btc": "btc"}


class FormatError(ValueError):
    """Text that is not what it should be; the message is a sentence that says what it should be."""


def count(number: int, noun: str) -> str:
    """`1 channel`, `2,000 channels`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def parse_msat(text: str) -> int:
    """An amount in msat from `1000` (sat), `1,000sat`, `0.01btc` or `5000msat`. A comma stands between groups of three
    digits only, and in no amount in btc: for many people it is the decimal point. Raises `FormatError`."""
    match = _AMOUNT.fullmatch(text.strip())
    unit = _UNITS.get(match["unit"].lower()) if match else None
    number = match["number"].replace(",", "").replace("_", "") if match else ""
    if "," in text and (unit is None or unit == "btc"):
        raise FormatError(f"{text!r} may mean two amounts; write a fraction with a point, as 0.01btc, and no comma.")
    if unit is None or not number:
        raise FormatError(f"{text!r} is not an amount; write it as 1000sat, 0.01btc or 5000msat (no unit means sat).")
    msat = Decimal(number) * MSAT_PER_UNIT[unit]
    if msat != int(msat):
        raise FormatError(f"{text!r} is finer than a millisatoshi.")
    if msat > MAX_SAT * 1000:
        raise FormatError(f"{text!r} is more than there can ever be.")
    return int(msat)


def parse_positive_msat(text: str) -> int:
    """The same, and more than nothing."""
    msat = parse_msat(text)
    if msat == 0:
        raise FormatError("The amount must be more than nothing.")
    return msat


def parse_sat(text: str) -> int:
    """A whole number of sat, more than nothing, written in the same ways. Raises `FormatError`."""
    msat = parse_positive_msat(text)
    if msat % 1000:
        raise FormatError(f"{text!r} is not a whole number of satoshi, which is the least that can be on chain.")
    return msat // 1000


def parse_feerate(text: str) -> int:
    """Satoshi per 1000 weight units from satoshi per virtual byte (`2`, `2.5`). Raises `FormatError`."""
    try:
        rate = float(text)
    except ValueError:
        raise FormatError(f"{text!r} is not a feerate; write satoshi per virtual byte, as 2 or 2.5.") from None
    per_kw = round(rate * 1000 / WEIGHT_UNITS_PER_VBYTE) if 0 < rate <= 100_000 else 0
    if per_kw == 0:
        raise FormatError(f"A feerate of {text} sat/vB is too low or too high; 1 sat/vB is the least that nodes relay.")
    return per_kw


def parse_duration(text: str) -> int:
    """Seconds from `90`, `90s`, `30m`, `12h`, `7d` or `2w`. Raises `FormatError`."""
    match = _DURATION.fullmatch(text.strip())
    seconds = int(match["number"]) * SECONDS_PER_UNIT[match["unit"].lower()] if match else 0
    if not 0 < seconds < 2**32:
        raise FormatError(f"{text!r} is not a time; write it as 90s, 30m, 12h or 7d (no unit means seconds).")
    return seconds


def sat(amount_sat: int) -> str:
    """`1,000 sat`"""
    return f"{amount_sat:,} sat"


def msat(amount_msat: int) -> str:
    """`1,000 sat`, or `1,000.500 sat` when there is a fraction."""
    whole, fraction = divmod(abs(amount_msat), 1000)
    sign = "-" if amount_msat < 0 else ""
    return f"{sign}{whole:,}.{fraction:03} sat" if fraction else f"{sign}{whole:,} sat"


def feerate(per_kw: int) -> str:
    """Satoshi per 1000 weight units as `2.5 sat/vB`."""
    return f"{per_kw * WEIGHT_UNITS_PER_VBYTE / 1000:g} sat/vB"


def duration(seconds: int) -> str:
    """`2 d 3 h`, `5 min`, `12 s`: the two largest parts."""
    parts = []
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def minute(seconds: float) -> str:
    """Local time for tables, `2026-01-31 12:00`."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def point_in_time(seconds: float) -> str:
    """Local time, `2026-01-31 12:00:00`."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
