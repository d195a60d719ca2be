"""The Triton kernel that takes what lora_shrink made of the tokens to the projection's outputs.

It runs over the same tiles. Every output of every token is one program's, which adds up the splits
and all ranks in fp32 before it touches y: each element of y is read and written once.
"""

import triton
import triton.language as tl

from anole_worker.runtime.lora_dot import RANKS, dot


@triton.jit(do_not_specialize=["place"])  # type: ignore[untyped-decorator]
def expand(  # noqa: PLR0917
    y: tl.tensor,
    hidden: tl.tensor,
    tiles: tl.tensor,
    place: int,
    out_0: int,
    out_1: int,
    out_2: int,
    y_stride: int,
    hidden_stride: int,
    split_stride: int,
    tile_tokens: tl.constexpr,
    block_out: tl.constexpr,
    num_splits: tl.constexpr,
    is_aligned: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """y[token, outputs of a module] += sum over splits of hidden[token, its ranks] @ B[rank, out].

    Grid: tiles, blocks of outputs, module by module. out_0, out_1, out_2: the modules' outputs, 0
    for modules that the projection does not have.
    """
    tile = tiles + tl.program_id(0) * 3
    num_tokens = tl.load(tile + 2).to(tl.int32)
    if num_tokens == 0:
        return
    block = tl.program_id(1)
    blocks_0 = tl.cdiv(out_0, block_out)
    blocks_1 = tl.cdiv(out_1, block_out) + blocks_0
    module, begin_out, num_out = 0, 0, out_0
    if block >= blocks_1:
        module, begin_out, num_out, block = 2, out_0 + out_1, out_2, block - blocks_1
    elif block >= blocks_0:
        module, begin_out, num_out, block = 1, out_0, out_1, block - blocks_0
    record = tl.load(tile).to(tl.pointer_type(tl.int64)) + place
    first = tl.load(record + 4 + module).to(tl.int32)
    last = tl.load(record + 5 + module).to(tl.int32)
    if first == last:
        return
    b = tl.load(record + 1 + module).to(tl.pointer_type(y.dtype.element_ty))
    if is_aligned:
        b = tl.multiple_of(b, 16)
        begin_out, num_out = tl.multiple_of(begin_out, 16), tl.multiple_of(num_out, 16)
    begin = tl.load(tile + 1)
    y += begin * y_stride + begin_out
    hidden += begin * hidden_stride
    outputs = block * block_out + tl.arange(0, block_out)
    if num_tokens == 1:
        _expand_row(
            y=y, hidden=hidden, b=b, first=first, last=last, outputs=outputs, num_out=num_out,
            split_stride=split_stride, block_out=block_out, num_splits=num_splits,
        )  # fmt: skip
    else:
        _expand_rows(
            y=y, hidden=hidden, b=b, first=first, last=last, outputs=outputs, num_out=num_out,
            y_stride=y_stride, hidden_stride=hidden_stride, split_stride=split_stride,
            num_tokens=num_tokens, tile_tokens=tile_tokens, block_out=block_out,
            num_splits=num_splits, widen=widen,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _expand_row(  # noqa: PLR0917
    y: tl.tensor,
    hidden: tl.tensor,
    b: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    outputs: tl.tensor,
    num_out: tl.tensor,
    split_stride: tl.tensor,
    block_out: tl.constexpr,
    num_splits: tl.constexpr,
) -> None:
    """Some outputs of one token."""
    is_out = outputs < num_out
    products = tl.zeros((RANKS, block_out), tl.float32)
    for rank in tl.range(first, last, RANKS, num_stages=3):
        ranks = rank + tl.arange(0, RANKS)
        is_rank = ranks < last
        sums = tl.zeros((RANKS,), tl.float32)
        for split in tl.static_range(num_splits):
            sums += tl.load(hidden + split * split_stride + ranks, mask=is_rank, other=0)
        weights = tl.load(
            b + (ranks - first)[:, None] * num_out + outputs[None, :],
            mask=is_rank[:, None] & is_out[None, :],
            other=0,
        )
        products += sums[:, None] * weights.to(tl.float32)
    row = tl.load(y + outputs, mask=is_out, other=0).to(tl.float32) + tl.sum(products, axis=0)
    tl.store(y + outputs, row.to(y.dtype.element_ty), mask=is_out)


@triton.jit  # type: ignore[untyped-decorator]
def _expand_rows(  # noqa: PLR0917
    y: tl.tensor,
    hidden: tl.tensor,
    b: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    outputs: tl.tensor,
    num_out: tl.tensor,
    y_stride: tl.tensor,
    hidden_stride: tl.tensor,
    split_stride: tl.tensor,
    num_tokens: tl.tensor,
    tile_tokens: tl.constexpr,
    block_out: tl.constexpr,
    num_splits: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """Some outputs of several tokens."""
    tokens = tl.arange(0, tile_tokens)
    is_token, is_out = tokens < num_tokens, outputs < num_out
    deltas = tl.zeros((tile_tokens, block_out), tl.float32)
    for rank in range(first, last, RANKS):
        ranks = rank + tl.arange(0, RANKS)
        is_rank = ranks < last
        sums = tl.zeros((tile_tokens, RANKS), tl.float32)
        for split in tl.static_range(num_splits):
            sums += tl.load(
                hidden + split * split_stride + tokens[:, None] * hidden_stride + ranks[None, :],
                mask=is_token[:, None] & is_rank[None, :],
                other=0,
            )
        weights = tl.load(
            b + (ranks - first)[:, None] * num_out + outputs[None, :],
            mask=is_rank[:, None] & is_out[None, :],
            other=0,
        )
        deltas = dot(sums.to(weights.dtype), weights, deltas, widen)
    places = y + tokens[:, None] * y_stride + outputs[None, :]
    is_place = is_token[:, None] & is_out[None, :]
    rows = tl.load(places, mask=is_place, other=0).to(tl.float32) + deltas
    tl.store(places, rows.to(y.dtype.element_ty), mask=is_place)
