"""Attention of a packed step's tokens to their own sequences, over the KV pool on a CPU.

Single tokens are a compiled loop's, which reads keys and values where they are; chunks are as well
in bfloat16. Else they are torch's: the keys that query heads share are viewed once per query head,
without a copy.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from anole_worker.runtime import cpu_attention
from anole_worker.runtime.cpu_heads import DIMS
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.packed_step import LoopRows, PackedStep, PromptChunk
from anole_worker.runtime.projection import elements, has_loops


def attend(
    queries: Tensor, keys_values: Tensor, cache: KvCache, layer: int, packed: PackedStep
) -> Tensor:
    """Attend to all keys and values up to each token's own, which are in the cache already.

    queries is [tokens, heads, head_dim], keys_values [tokens, 2 * kv_heads, head_dim], both with
    their positions applied. Gives [tokens, heads * head_dim].
    """
    result = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    if packed.loop_rows is not None:
        _attend_rows(result, queries, cache, layer, packed.loop_rows)
    for chunk in packed.chunks:
        part = slice(chunk.begin, chunk.end)
        result[part] = _attend_chunk(queries[part], keys_values[part], cache, layer, chunk)
    return result


def has_loop(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether chunks of such heads are the loop's, too.

    Measured on a Zen 4: of a step of 256 tokens torch's attention takes 75 ms, the loop's 31.
    """
    return has_loops(dtype) and head_dim % DIMS == 0


def _attend_rows(
    result: Tensor, queries: Tensor, cache: KvCache, layer: int, rows: LoopRows
) -> None:
    is_narrow = result.dtype == torch.bfloat16 and queries.shape[2] % DIMS == 0
    attend_each = cpu_attention.attend_narrow if is_narrow else cpu_attention.attend
    pool = elements(cache.layer(layer))
    heads = (cache.num_kv_heads, cache.block_size)
    attend_each(elements(result), elements(queries), pool, *heads, rows.rows, rows.slots)


def _attend_chunk(
    queries: Tensor, keys_values: Tensor, cache: KvCache, layer: int, chunk: PromptChunk
) -> Tensor:
    """From queries [tokens, heads, head_dim] to [tokens, heads * head_dim]."""
    if chunk.slots is None:
        keys, values = keys_values.transpose(0, 1).chunk(2)
    else:
        keys, values = cache.read(layer, chunk.slots)
    return attend_to(queries, keys, values, chunk.mask)


def attend_to(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """From queries [tokens, heads, head_dim] to [tokens, heads * head_dim].

    keys and values are [kv_heads, all tokens, head_dim]; mask [tokens, all tokens] as torch's
    attention takes it. None: causal by itself, without a past.
    """
    num_tokens, num_heads, head_dim = queries.shape
    num_kv_heads, num_all, _ = keys.shape
    shared = (num_kv_heads, num_heads // num_kv_heads, num_all, head_dim)
    attended = scaled_dot_product_attention(
        queries.view(num_tokens, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3),
        keys.unsqueeze(1).expand(shared),
        values.unsqueeze(1).expand(shared),
        attn_mask=mask,
        is_causal=mask is None,
    )
    return attended.permute(2, 0, 1, 3).reshape(num_tokens, -1)
