from collections.abc import Sequence

import psutil
import torch
from torch import Tensor

from anole_shared.units import MiB
from anole_worker.runtime.kv_cache import KvCache
from tests.unit.worker.peft_folders import SHAPE


def test_slots_follow_the_block_table() -> None:
    cache = KvCache(SHAPE, num_blocks=8, block_size=4)
    block = SHAPE.num_layers * 2 * SHAPE.num_kv_heads * 4
    expected = [table * block + offset for table in (5, 0, 7) for offset in range(4)]
    assert cache.slots((5, 0, 7), 0, 10).tolist() == expected[:10]
    assert cache.slots((5, 0, 7), 3, 5).tolist() == expected[3:5]


def test_what_is_written_is_read_in_the_order_that_is_asked_for() -> None:
    cache = KvCache(SHAPE, num_blocks=4, block_size=4)
    torch.manual_seed(0)
    slots = slots_of(cache, range(4))[torch.randperm(16)]
    written = torch.randn(SHAPE.num_layers, 16, 2 * SHAPE.num_kv_heads, SHAPE.head_dim)
    for layer, keys_values in enumerate(written):
        cache.write(layer, slots, keys_values)
    for layer, keys_values in enumerate(written):
        keys, values = cache.read(layer, slots[[5, 9]])
        expected = keys_values[[5, 9]].transpose(0, 1)
        assert torch.equal(keys, expected[: SHAPE.num_kv_heads])
        assert torch.equal(values, expected[SHAPE.num_kv_heads :])


def test_what_was_never_written_is_zero() -> None:
    cache = KvCache(SHAPE, num_blocks=4, block_size=4)
    cache.write(1, slots_of(cache, [2]), torch.ones(4, 2 * SHAPE.num_kv_heads, SHAPE.head_dim))
    for layer, block in ((0, 2), (1, 1), (1, 3)):
        keys, values = cache.read(layer, slots_of(cache, [block]))
        assert not keys.any()
        assert not values.any()


def test_bytes_per_token_is_what_the_pool_takes() -> None:
    cache = KvCache(SHAPE, num_blocks=3, block_size=4)
    keys, values = cache.read(0, slots_of(cache, range(3)))
    assert KvCache.bytes_per_token(SHAPE) * 12 == SHAPE.num_layers * (keys.nbytes + values.nbytes)
    assert KvCache.bytes_per_token(SHAPE, torch.bfloat16) * 2 == KvCache.bytes_per_token(SHAPE)


def test_a_pool_takes_memory_only_as_it_is_written() -> None:
    before = resident_bytes()
    pool_bytes = 512 * MiB
    num_blocks = pool_bytes // (KvCache.bytes_per_token(SHAPE) * 16)
    cache = KvCache(SHAPE, num_blocks=num_blocks, block_size=16)
    assert resident_bytes() - before < pool_bytes / 10
    assert cache.num_blocks == num_blocks


def test_blocks_give_their_memory_back_and_others_keep_theirs() -> None:
    num_blocks = 64 * MiB // (KvCache.bytes_per_token(SHAPE) * 128)
    cache = KvCache(SHAPE, num_blocks=num_blocks, block_size=128)
    slots = slots_of(cache, range(num_blocks))
    ones = torch.ones(len(slots), 2 * SHAPE.num_kv_heads, SHAPE.head_dim)
    for layer in range(SHAPE.num_layers):
        cache.write(layer, slots, ones)
    before = resident_bytes()
    cache.give_back(range(1, num_blocks - 1))
    assert before - resident_bytes() > 60 * MiB
    for block in (0, num_blocks - 1):
        kept = slots_of(cache, [block])
        for layer in range(SHAPE.num_layers):
            keys, values = cache.read(layer, kept)
            assert bool((keys == 1).all())
            assert bool((values == 1).all())


def test_a_block_among_others_in_use_gives_all_of_its_memory_back() -> None:
    num_blocks = 32 * MiB // (KvCache.bytes_per_token(SHAPE) * 128)
    cache = KvCache(SHAPE, num_blocks=num_blocks, block_size=128)
    cache.rows.fill_(1)
    before = resident_bytes()
    cache.give_back(range(1, num_blocks, 2))
    assert before - resident_bytes() > 15 * MiB
    assert bool((cache.read(0, slots_of(cache, range(0, num_blocks, 2)))[0] == 1).all())


def slots_of(cache: KvCache, blocks: Sequence[int]) -> Tensor:
    return torch.from_numpy(cache.slots(blocks, 0, len(blocks) * cache.block_size))


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
