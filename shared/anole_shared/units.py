"""Binary sizes and the rounding that goes with them."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

PAGE_BYTES = 4 * KiB
HUGE_PAGE_BYTES = 2 * MiB
_MAX_WASTE = 64


def div_ceil(amount: int, unit: int) -> int:
    """How many units hold the amount."""
    return -(-amount // unit)


def round_up(amount: int, unit: int) -> int:
    """The smallest multiple of unit that is at least amount."""
    return div_ceil(amount, unit) * unit


def region_bytes(num_bytes: int) -> int:
    """The size of the region of leased memory that holds num_bytes.

    Whole huge pages, which are given back far faster than small ones, where at most a 64th of them
    is left over; else whole pages, so that small adapters do not pay for it.
    """
    whole = round_up(num_bytes, HUGE_PAGE_BYTES)
    has_little_left = (whole - num_bytes) * _MAX_WASTE <= num_bytes
    return whole if has_little_left else round_up(num_bytes, PAGE_BYTES)
