"""Anonymous memory of this process: zero at first, taken as it is written, returned by the page."""

import mmap

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LINE_BYTES = 64


class HostMemory:
    """One stretch of memory, held for as long as this object lives.

    numpy's and torch's own memory begins anywhere and is given back as they like; this begins on a
    page, which vector loads want, and on huge pages where asked, which spares the processor most of
    its address look-ups.
    """

    def __init__(self, num_bytes: int, *, has_huge_pages: bool = False) -> None:
        """Takes address space; the memory itself as it is written."""
        self.num_bytes = num_bytes
        self._map = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if has_huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)[:num_bytes]

    @property
    def address(self) -> int:
        return int(self.bytes.ctypes.data)

    def tensor(self, begin: int, dtype: torch.dtype, size: tuple[int, ...]) -> Tensor:
        """A view of a part; it must not outlive this object."""
        count = int(np.prod(size)) * dtype.itemsize
        return torch.from_numpy(self.bytes[begin : begin + count]).view(dtype).view(size)

    def give_back(self, begin: int, end: int) -> None:
        """Return the pages that lie wholly between two offsets; what they held is zero again."""
        begin, end = (
            -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE,
            end // mmap.PAGESIZE * mmap.PAGESIZE,
        )
        if begin < end:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


class HugePages:
    """Hands out memory on huge pages in pieces of any size: large reads are faster there.

    (Weights of a model, a row at a time: 10 ms on pages of 4 KiB, 8 on huge ones, on a Zen 4.)
    """

    def __init__(self, stretch_bytes: int = 32 << 20) -> None:
        """stretch_bytes: taken at a time, as address space."""
        self._stretch_bytes = stretch_bytes
        self._left: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def piece(self, num_bytes: int) -> NDArray[np.uint8]:
        """So much memory, on no other's line; it is held for as long as the array is."""
        if num_bytes > len(self._left):
            size = max(num_bytes, self._stretch_bytes)
            self._left = HostMemory(size, has_huge_pages=True).bytes
        whole = -(-num_bytes // _LINE_BYTES) * _LINE_BYTES
        found, self._left = self._left[:num_bytes], self._left[whole:]
        return found
