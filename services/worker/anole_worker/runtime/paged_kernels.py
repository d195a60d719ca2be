"""Triton kernels over keys and values that lie in blocks anywhere in a GPU's memory.

Blocks are given by address (see kv_blocks), on 16 bytes. `plane` is the distance of two heads
within a block, `layer_size` that of two layers; all distances are in numbers, not bytes. A row's
table is a column of `tables` [blocks, rows]: so the part of it that is in use is one piece of
memory, whatever the longest row needs.

Sums are fp32. What is beyond a row's length is never read, so memory may hold anything there.
"""

import triton
import triton.language as tl

from anole_worker.runtime.lora_dot import dot

LEAST_HEADS = tl.constexpr(16)
"""Query heads that a program takes at least: the least that tensor cores take."""


@triton.jit(do_not_specialize=["layer"])  # type: ignore[untyped-decorator]
def store(  # noqa: PLR0917
    keys_values: tl.tensor,
    places: tl.tensor,
    layer: int,
    layer_size: int,
    token_stride: int,
    plane: int,
    num_planes: tl.constexpr,
    head_dim: tl.constexpr,
    block_planes: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:
    """Write each token's [2 * kv_heads, head_dim] to its place. Grid: tokens."""
    token = tl.program_id(0).to(tl.int64)
    planes, dims = tl.arange(0, block_planes), tl.arange(0, block_dim)
    is_here = (planes < num_planes)[:, None] & (dims < head_dim)[None, :]
    source = keys_values + token * token_stride + planes[:, None] * head_dim + dims[None, :]
    numbers = tl.load(source, mask=is_here, other=0)
    place = tl.load(places + token).to(tl.pointer_type(keys_values.dtype.element_ty))
    place = tl.multiple_of(place, 16) + layer * layer_size
    tl.store(place + planes[:, None] * plane + dims[None, :], numbers, mask=is_here)


@triton.jit(do_not_specialize=["layer", "num_tokens"])  # type: ignore[untyped-decorator]
def gather(  # noqa: PLR0917
    found: tl.tensor,
    table: tl.tensor,
    layer: int,
    layer_size: int,
    num_tokens: int,
    plane: int,
    block_size: int,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:
    """found[head, token] = the key or value of a sequence's token, keys first.

    Grid: blocks of tokens, 2 * kv_heads.
    """
    head = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * block_tokens + tl.arange(0, block_tokens)
    dims = tl.arange(0, block_dim)
    is_token = tokens < num_tokens
    is_here = is_token[:, None] & (dims < head_dim)[None, :]
    address = tl.load(table + tokens // block_size, mask=is_token, other=0)
    row = tl.multiple_of(address.to(tl.pointer_type(found.dtype.element_ty)), [16])
    row += layer * layer_size + head * plane + (tokens % block_size) * head_dim
    numbers = tl.load(row[:, None] + dims[None, :], mask=is_here, other=0)
    target = found + (head * num_tokens + tokens)[:, None] * head_dim + dims[None, :]
    tl.store(target, numbers, mask=is_here)


@triton.jit(do_not_specialize=["layer", "num_rows"])  # type: ignore[untyped-decorator]
def attend(  # noqa: PLR0917
    queries: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    sums: tl.tensor,
    weights: tl.tensor,
    layer: int,
    layer_size: int,
    num_rows: int,
    query_stride: int,
    plane: int,
    block_size: int,
    scale: float,
    num_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_group: tl.constexpr,
    block_tokens: tl.constexpr,
    block_dim: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """One token a row to a part of its sequence. Grid: rows, kv_heads, splits.

    sums [rows, heads, splits, head_dim] are of values by weight, weights [rows, heads, splits, 2]
    the largest score and the weights' sum: 0 where a split has no tokens, and then no sums.
    """
    row, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, num_splits = tl.program_id(2), tl.num_programs(2)
    length = tl.load(lengths + row).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, num_splits), block_tokens) * block_tokens
    first, last = split * share, tl.minimum((split + 1) * share, length)
    heads, dims = tl.arange(0, block_group), tl.arange(0, block_dim)
    is_head, is_dim = heads < group, dims < head_dim
    result = (row * num_kv_heads * group + kv_head * group + heads) * num_splits + split
    if first >= last:
        _note(weights + result * 2, float("-inf"), 0.0, is_head)
        return
    is_query = is_head[:, None] & is_dim[None, :]
    own = queries + row * query_stride + (kv_head * group + heads)[:, None] * head_dim
    query = tl.load(own + dims[None, :], mask=is_query, other=0)
    largest = tl.full((block_group,), float("-inf"), tl.float32)
    total = tl.zeros((block_group,), tl.float32)
    sum_ = tl.zeros((block_group, block_dim), tl.float32)
    own_plane = layer * layer_size + kv_head * plane
    for begin in range(first, last, block_tokens):
        tokens = begin + tl.arange(0, block_tokens)
        is_token = tokens < last
        table = tables + row + (tokens // block_size).to(tl.int64) * num_rows
        block = tl.load(table, mask=is_token, other=0)
        place = tl.multiple_of(block.to(tl.pointer_type(queries.dtype.element_ty)), [16])
        place = (place + own_plane + (tokens % block_size) * head_dim)[:, None] + dims[None, :]
        is_here = is_token[:, None] & is_dim[None, :]
        keys = tl.load(place, mask=is_here, other=0)
        values = tl.load(place + num_kv_heads * plane, mask=is_here, other=0)
        scores = tl.zeros((block_group, block_tokens), tl.float32)
        scores = dot(query, tl.trans(keys), scores, widen) * scale
        scores = tl.where(is_token[None, :], scores, float("-inf"))
        largest, total, sum_ = _weigh(scores, values, largest, total, sum_, widen)
    tl.store(sums + result[:, None] * head_dim + dims[None, :], sum_, mask=is_query)
    _note(weights + result * 2, largest, total, is_head)


@triton.jit  # type: ignore[untyped-decorator]
def _note(place: tl.tensor, largest: tl.tensor, total: tl.tensor, is_head: tl.tensor) -> None:
    tl.store(place, largest, mask=is_head)
    tl.store(place + 1, total, mask=is_head)


@triton.jit  # type: ignore[untyped-decorator]
def _weigh(  # noqa: PLR0917
    scores: tl.tensor,
    values: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    sum_: tl.tensor,
    widen: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The largest score, the weights' sum and the values' with some more values taken in."""
    larger = tl.maximum(largest, tl.max(scores, axis=1))
    faded = tl.exp(largest - larger)
    weight = tl.exp(scores - larger[:, None])
    sum_ = dot(weight.to(values.dtype), values, sum_ * faded[:, None], widen)
    return larger, total * faded + tl.sum(weight, axis=1), sum_


@triton.jit  # type: ignore[untyped-decorator]
def combine(  # noqa: PLR0917
    attended: tl.tensor,
    sums: tl.tensor,
    weights: tl.tensor,
    num_splits: tl.constexpr,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:
    """Add up what the splits of one head of one row have found. Grid: rows * heads.

    attended is [rows, heads, head_dim].
    """
    head = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, num_splits), tl.arange(0, block_dim)
    is_dim = dims < head_dim
    place = head * num_splits + splits
    largest, total = tl.load(weights + place * 2), tl.load(weights + place * 2 + 1)
    factor = tl.exp(largest - tl.max(largest, axis=0))
    is_part = (total > 0)[:, None] & is_dim[None, :]
    parts = tl.load(sums + place[:, None] * head_dim + dims[None, :], mask=is_part, other=0)
    found = tl.sum(parts * factor[:, None], axis=0) / tl.sum(total * factor, axis=0)
    tl.store(attended + head * head_dim + dims, found.to(attended.dtype.element_ty), mask=is_dim)
