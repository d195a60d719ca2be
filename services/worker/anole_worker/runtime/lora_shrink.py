"""The Triton kernel that takes a projection's inputs to the ranks of each token's adapter.

It runs over a step's tiles: consecutive tokens of one adapter, cut to at most `tile_tokens`. A
tile is three int64: the address of the adapter's table (see lora_table), the first token and the
number of tokens; no tokens is an unused tile. All else about an adapter is read from its table, at
`place`, so that one launch serves any mix of ranks and modules, and a recorded launch (a CUDA
graph) serves whatever adapters the tiles name when it is replayed.

A tile of one token, which is what decoding has, is multiplied and summed by all threads; more go
through the tensor cores, 32 or 16 ranks at a time. Only the weights of ranks that the adapter has
are read, and each once for a tile.

Sums are fp32. Where few tokens would leave most of the GPU idle, the inputs are split among
programs. Their partial sums stand side by side and are added by lora_expand in a fixed order,
without atomics, so that the same step gives the same bits.

Parameters are given by name but not declared to be: Triton 3.6 knows of no such ones.
"""

import triton
import triton.language as tl

from anole_worker.runtime.lora_dot import RANKS, dot


@triton.jit(do_not_specialize=["place", "blocks_per_split"])  # type: ignore[untyped-decorator]
def shrink(  # noqa: PLR0917
    x: tl.tensor,
    hidden: tl.tensor,
    tiles: tl.tensor,
    place: int,
    num_in: int,
    x_stride: int,
    hidden_stride: int,
    split_stride: int,
    blocks_per_split: int,
    tile_tokens: tl.constexpr,
    block_in: tl.constexpr,
    dot_in: tl.constexpr,
    is_aligned: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """hidden[split, token, rank] = x[token, inputs of the split] @ A[rank, inputs of the split].

    Grid: tiles, shares of the ranks, splits. block_in: inputs at a time of a single token, and
    what splits are multiples of; dot_in, which divides it: inputs at a time of several tokens.
    """
    tile = tiles + tl.program_id(0) * 3
    num_tokens = tl.load(tile + 2).to(tl.int32)
    if num_tokens == 0:
        return
    record = tl.load(tile).to(tl.pointer_type(tl.int64)) + place
    num_ranks = tl.load(record + 7).to(tl.int32)
    share = tl.cdiv(tl.cdiv(num_ranks, RANKS), tl.num_programs(1)) * RANKS
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, num_ranks)
    if first >= last:
        return
    a = tl.load(record).to(tl.pointer_type(x.dtype.element_ty))
    if is_aligned:
        a = tl.multiple_of(a, 16)
    begin = tl.load(tile + 1)
    x += begin * x_stride
    hidden += begin * hidden_stride + tl.program_id(2).to(tl.int64) * split_stride
    begin_in = tl.program_id(2) * blocks_per_split * block_in
    end_in = tl.minimum(begin_in + blocks_per_split * block_in, num_in)
    if num_tokens == 1:
        for rank in range(first, last, RANKS):
            _shrink_row(
                x=x, hidden=hidden, a=a, rank=rank, last=last, num_in=num_in,
                begin_in=begin_in, end_in=end_in, block_in=block_in,
            )  # fmt: skip
    else:
        _shrink_tile(
            x=x, hidden=hidden, a=a, first=first, last=last, num_in=num_in,
            begin_in=begin_in, end_in=end_in, x_stride=x_stride, hidden_stride=hidden_stride,
            num_tokens=num_tokens, tile_tokens=tile_tokens, dot_in=dot_in, widen=widen,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _shrink_row(  # noqa: PLR0917
    x: tl.tensor,
    hidden: tl.tensor,
    a: tl.tensor,
    rank: tl.tensor,
    last: tl.tensor,
    num_in: tl.tensor,
    begin_in: tl.tensor,
    end_in: tl.tensor,
    block_in: tl.constexpr,
) -> None:
    """RANKS ranks of one token."""
    ranks = rank + tl.arange(0, RANKS)
    is_rank = ranks < last
    products = tl.zeros((RANKS, block_in), tl.float32)
    for begin in tl.range(begin_in, end_in, block_in, num_stages=3):
        inputs = begin + tl.arange(0, block_in)
        is_in = inputs < num_in
        row = tl.load(x + inputs, mask=is_in, other=0).to(tl.float32)
        weights = tl.load(
            a + ranks[:, None] * num_in + inputs[None, :],
            mask=is_rank[:, None] & is_in[None, :],
            other=0,
        )
        products += weights.to(tl.float32) * row[None, :]
    tl.store(hidden + ranks, tl.sum(products, axis=1), mask=is_rank)


@triton.jit  # type: ignore[untyped-decorator]
def _shrink_tile(  # noqa: PLR0917
    x: tl.tensor,
    hidden: tl.tensor,
    a: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    num_in: tl.tensor,
    begin_in: tl.tensor,
    end_in: tl.tensor,
    x_stride: tl.tensor,
    hidden_stride: tl.tensor,
    num_tokens: tl.tensor,
    tile_tokens: tl.constexpr,
    dot_in: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """All ranks of several tokens: as many as possible at a time, for x is read each time."""
    rank = first
    while rank < last:
        if last - rank >= 2 * RANKS:
            _shrink_rows(
                x=x, hidden=hidden, a=a, rank=rank, last=last, num_in=num_in,
                begin_in=begin_in, end_in=end_in, x_stride=x_stride, hidden_stride=hidden_stride,
                num_tokens=num_tokens, tile_tokens=tile_tokens, num_ranks=2 * RANKS,
                dot_in=dot_in, widen=widen,
            )  # fmt: skip
            rank += 2 * RANKS
        else:
            _shrink_rows(
                x=x, hidden=hidden, a=a, rank=rank, last=last, num_in=num_in,
                begin_in=begin_in, end_in=end_in, x_stride=x_stride, hidden_stride=hidden_stride,
                num_tokens=num_tokens, tile_tokens=tile_tokens, num_ranks=RANKS,
                dot_in=dot_in, widen=widen,
            )  # fmt: skip
            rank += RANKS


@triton.jit  # type: ignore[untyped-decorator]
def _shrink_rows(  # noqa: PLR0917
    x: tl.tensor,
    hidden: tl.tensor,
    a: tl.tensor,
    rank: tl.tensor,
    last: tl.tensor,
    num_in: tl.tensor,
    begin_in: tl.tensor,
    end_in: tl.tensor,
    x_stride: tl.tensor,
    hidden_stride: tl.tensor,
    num_tokens: tl.tensor,
    tile_tokens: tl.constexpr,
    num_ranks: tl.constexpr,
    dot_in: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """num_ranks ranks of several tokens."""
    ranks = rank + tl.arange(0, num_ranks)
    tokens = tl.arange(0, tile_tokens)
    is_token, is_rank = tokens < num_tokens, ranks < last
    sums = tl.zeros((tile_tokens, num_ranks), tl.float32)
    for begin in range(begin_in, end_in, dot_in):
        inputs = begin + tl.arange(0, dot_in)
        is_in = inputs < num_in
        rows = tl.load(
            x + tokens[:, None] * x_stride + inputs[None, :],
            mask=is_token[:, None] & is_in[None, :],
            other=0,
        )
        weights = tl.load(
            a + ranks[None, :] * num_in + inputs[:, None],
            mask=is_rank[None, :] & is_in[:, None],
            other=0,
        )
        sums = dot(rows, weights, sums, widen)
    tl.store(
        hidden + tokens[:, None] * hidden_stride + ranks[None, :],
        sums,
        mask=is_token[:, None] & is_rank[None, :],
    )
