"""set_mempolicy(2): where a process, and whatever it starts, has its memory from.

Not a cpuset. In one that has movable memory only, Linux gives nothing that cannot be moved to
whoever asks in a program's name: writing to a pipe fails (ENOMEM). A memory policy is ignored there
instead. And who joins a cpuset takes along the pages that it has, those that it shares with others
too, such as the C library's; a policy is for pages to come.
"""

import ctypes
import os
import platform
from collections.abc import Callable

from anole_memd.errors import SandboxUnavailable

_MPOL_BIND = 2
_NUMBERS = {"x86_64": 238, "aarch64": 237}
_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
_LIBC = ctypes.CDLL(None, use_errno=True)


def binding(node: int) -> Callable[[], None]:
    """What to call, also between fork and exec, to have memory from this node alone from then on.

    What it returns raises OSError where the kernel refuses.

    Raises:
        SandboxUnavailable: this machine's system calls are not known here.
    """
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise SandboxUnavailable(
            f"programs cannot be bound to a NUMA node on {platform.machine()}: use the memfd "
            f"backend, or one of {', '.join(_NUMBERS)}"
        )
    mask = (ctypes.c_ulong * (node // _WORD_BITS + 1))()
    mask[node // _WORD_BITS] = 1 << node % _WORD_BITS
    num_bits = ctypes.c_ulong(len(mask) * _WORD_BITS + 1)  # one more than it looks at

    def bind() -> None:
        if _LIBC.syscall(number, _MPOL_BIND, mask, num_bits):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return bind
