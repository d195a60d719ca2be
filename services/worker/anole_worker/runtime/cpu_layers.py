"""All layers of a step in one compiled call on a CPU, in bfloat16.

What it computes, and how it rounds, is Network's pass over the same loops. Between two of a layer's
dozen loops, Python would take as long as a row's whole product with a small matrix, and its lock.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray
from numpy.typing import NDArray

from anole_worker.model_shape import DOWN, GATE_UP, OUTPUT, QKV
from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.cpu_attention import attend_narrow
from anole_worker.runtime.cpu_deltas import add_narrow_deltas
from anole_worker.runtime.cpu_dots import WIDTH
from anole_worker.runtime.cpu_kernels import activate, add, normalise, rotate
from anole_worker.runtime.cpu_numbers import pointer
from anole_worker.runtime.cpu_products import multiply

ATTENTION_NORM, QK_NORM, MLP_NORM, WEIGHTS, BIASES = 0, 1, 2, 3, 7
"""Where a layer's addresses are: of its norms, and of each site's packed weight and bias; 0 for
what it has not."""
_QKV, _OUTPUT, _GATE_UP, _DOWN = (np.int64(site) for site in (QKV, OUTPUT, GATE_UP, DOWN))
"""For each of Python's own numbers _project() would be compiled anew."""


class Layers(NamedTuple):
    """The model, as the loops know it."""

    addresses: NDArray[np.int64]
    """[layers, ATTENTION_NORM and so on]"""
    heads: int
    kv_heads: int
    head_dim: int
    pool: NDArray[np.generic]
    """[rows, head_dim]: keys and values, as KvCache has them."""
    block_size: int
    """Of the pool."""
    epsilon: float
    """Of the norms."""
    columns: NDArray[np.int64]
    """[SITES, modules]: where each module's columns of its site's output begin."""
    sizes: NDArray[np.int64]
    """[SITES, modules]: how many they are."""
    record: int
    """Numbers that an adapter's table has of a site (see lora_table)."""


class Tokens(NamedTuple):
    """A step's tokens, all rows' one after the other."""

    cos: NDArray[np.generic]
    """[tokens, head_dim]"""
    sin: NDArray[np.generic]
    """[tokens, head_dim], its first half negated."""
    places: NDArray[np.int64]
    """[tokens]: the slots that their keys and values go to."""
    rows: NDArray[np.int64]
    """[rows, 4], as attend_narrow() takes them."""
    slots: NDArray[np.int64]
    """[...]: as well."""
    tiles: NDArray[np.int64]
    """[tiles, 3]: their adapters, as add_narrow_deltas() takes them."""
    room: NDArray[np.float32]
    """For add_narrow_deltas()."""
    normed: NDArray[np.uint16]
    """[tokens, hidden], to work in, as all that follow."""
    qkv: NDArray[np.uint16]
    """[tokens, heads + 2 * kv_heads, head_dim]"""
    attended: NDArray[np.uint16]
    """[tokens, heads * head_dim]"""
    gate_up: NDArray[np.uint16]
    """[tokens, 2 * intermediate]"""
    activated: NDArray[np.uint16]
    """[tokens, intermediate]"""


@compiled
def run(x: Any, layers: Any, tokens: Any) -> None:
    """Take x, float32 [tokens, hidden], from the embeddings to the states behind the last layer."""
    for layer in range(len(layers.addresses)):
        write(x, layer, layers, tokens)
        finish(x, layer, layers, tokens)


@compiled
def write(x: Any, layer: int, layers: Any, tokens: Any) -> None:
    """Make a layer's queries, keys and values, and store the last two in its pool."""
    heads, kv_heads, size = layers.heads, layers.kv_heads, layers.head_dim
    addresses, normed, qkv = layers.addresses[layer], tokens.normed, tokens.qkv
    normalise(normed, x, _array(addresses[ATTENTION_NORM], x.shape[1]), layers.epsilon)
    side_by_side = (len(x), (heads + 2 * kv_heads) * size)
    flat = carray(pointer(qkv.ctypes.data, np.uint16), side_by_side)
    _project(flat, normed, layer, _QKV, layers, tokens)
    count = heads + kv_heads
    has_norm = addresses[QK_NORM] != 0
    norm = carray(pointer(addresses[QK_NORM], np.uint16), (count if has_norm else 0, size))
    rotate(qkv, count, norm, tokens.cos, tokens.sin, layers.epsilon)
    pool = _pool(layer, layers)
    for row in range(len(x)):
        for head in range(2 * kv_heads):
            place = pool[head * layers.block_size + tokens.places[row]]
            new = qkv[row, heads + head]
            for dim in range(size):  # numba checks shapes otherwise, and takes seconds to learn it
                place[dim] = new[dim]


@compiled
def finish(x: Any, layer: int, layers: Any, tokens: Any) -> None:
    """Add to x what the rest of the layer makes of them, its MLP included."""
    normed = tokens.normed
    attend_narrow(
        tokens.attended,
        tokens.qkv,
        _pool(layer, layers),
        layers.kv_heads,
        layers.block_size,
        tokens.rows,
        tokens.slots,
    )
    _project(normed, tokens.attended, layer, _OUTPUT, layers, tokens)
    add(x, normed)
    normalise(normed, x, _array(layers.addresses[layer, MLP_NORM], x.shape[1]), layers.epsilon)
    _project(tokens.gate_up, normed, layer, _GATE_UP, layers, tokens)
    activate(tokens.activated, tokens.gate_up)
    _project(normed, tokens.activated, layer, _DOWN, layers, tokens)
    add(x, normed)


@compiled
def _pool(layer: int, layers: Any) -> Any:
    """The pool, from where a layer's part of the first block begins."""
    return layers.pool[layer * 2 * layers.kv_heads * layers.block_size :]


@compiled
def _project(y: Any, x: Any, layer: int, site: int, layers: Any, tokens: Any) -> None:
    """Y is what the base model and each row's adapter make of x at a site."""
    blocks = (y.shape[1] + WIDTH - 1) // WIDTH
    address = layers.addresses[layer, WEIGHTS + site]
    weight = carray(pointer(address, np.uint16), (blocks, x.shape[1] // 2, WIDTH, 2))
    multiply(y, x, weight, _array(layers.addresses[layer, BIASES + site], y.shape[1]))
    record = (layer * len(layers.columns) + site) * layers.record
    columns, sizes = layers.columns[site], layers.sizes[site]
    add_narrow_deltas(y, x, tokens.tiles, record, columns, sizes, tokens.room)


@compiled
def _array(address: int, size: int) -> Any:
    """So many numbers there; none where there is no address."""
    return carray(pointer(address, np.uint16), (size if address != 0 else 0,))
