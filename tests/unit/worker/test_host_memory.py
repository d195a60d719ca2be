import gc

import numpy as np

from anole_worker.runtime.host_memory import HugePages


def test_pieces_share_no_line_and_keep_what_is_written() -> None:
    pages = HugePages(stretch_bytes=4096)
    pieces = [pages.piece(size) for size in (1, 64, 100, 4000, 9000, 5)]
    for number, piece in enumerate(pieces):
        assert piece.ctypes.data % 64 == 0
        piece[:] = number
    for number, piece in enumerate(pieces):
        assert (piece == number).all()
    lines = [
        set(range(piece.ctypes.data // 64, (piece.ctypes.data + len(piece) - 1) // 64 + 1))
        for piece in pieces
    ]
    assert sum(len(own) for own in lines) == len(set().union(*lines))


def test_a_piece_outlives_who_handed_it_out() -> None:
    piece = HugePages().piece(1 << 20)
    gc.collect()
    piece[:] = 7
    assert int(piece.astype(np.int64).sum()) == 7 << 20
