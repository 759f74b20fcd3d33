"""Figures as a person reads them, and texts that a terminal can show."""

from __future__ import annotations

import re

_BYTE_UNITS = ("bytes", "KB", "MB", "GB", "TB")
# A terminal obeys these wherever they come from.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def readable_duration(seconds: float) -> str:
    """Whole seconds as "0:42", "12:03" or "3:05:09"; from four days on as "4.2 days"."""
    if seconds >= 4 * 86400:
        return f"{seconds / 86400:.1f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def readable_bytes(count: float) -> str:
    """A size with three digits: "17 bytes", "4.21 MB", "1.03 TB"; a KB has 1,000 bytes."""
    unit = 0
    while count >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    digits = 0 if unit == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:,.{digits}f} {_BYTE_UNITS[unit]}"


def printable(text: str) -> str:
    """The text on one line, with a mark in place of every character that a terminal would obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
