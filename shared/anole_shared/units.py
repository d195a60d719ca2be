"""Binary sizes and the rounding that goes with them."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

HUGE_PAGE_BYTES = 2 * MiB
"""Leased memory is whole huge pages: those are given back far faster than pages of 4 KiB."""


def div_ceil(amount: int, unit: int) -> int:
    """How many units hold the amount."""
    return -(-amount // unit)


def round_up(amount: int, unit: int) -> int:
    """The smallest multiple of unit that is at least amount."""
    return div_ceil(amount, unit) * unit
