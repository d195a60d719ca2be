import psutil
import torch

from anole_shared.units import MiB
from anole_worker.runtime.kv_cache import KvCache
from tests.unit.worker.peft_folders import SHAPE


def test_slots_follow_the_block_table() -> None:
    cache = KvCache(SHAPE, num_blocks=8, block_size=4)
    assert cache.slots((5, 0, 7), 0, 10).tolist() == [20, 21, 22, 23, 0, 1, 2, 3, 28, 29]
    assert cache.slots((5, 0, 7), 3, 5).tolist() == [23, 0]


def test_what_is_written_is_read_in_the_order_that_is_asked_for() -> None:
    cache = KvCache(SHAPE, num_blocks=4, block_size=4)
    torch.manual_seed(0)
    written = torch.randn(3, 2 * SHAPE.num_kv_heads, SHAPE.head_dim)
    cache.write(1, torch.tensor([9, 2, 5]), written)
    keys, values = cache.read(1, torch.tensor([5, 9]))
    expected = written[[2, 0]].transpose(0, 1)
    assert torch.equal(keys, expected[: SHAPE.num_kv_heads])
    assert torch.equal(values, expected[SHAPE.num_kv_heads :])
    assert not cache.read(0, torch.tensor([9]))[0].any()


def test_bytes_per_token_is_what_the_pool_takes() -> None:
    cache = KvCache(SHAPE, num_blocks=3, block_size=4)
    keys, values = cache.read(0, torch.arange(12))
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
    slots = torch.arange(num_blocks * 128)
    ones = torch.ones(len(slots), 2 * SHAPE.num_kv_heads, SHAPE.head_dim)
    for layer in range(SHAPE.num_layers):
        cache.write(layer, slots, ones)
    before = resident_bytes()
    cache.give_back(range(1, num_blocks - 1))
    assert before - resident_bytes() > 60 * MiB
    for block in (0, num_blocks - 1):
        kept = torch.arange(block * 128, (block + 1) * 128)
        for layer in range(SHAPE.num_layers):
            keys, values = cache.read(layer, kept)
            assert bool((keys == 1).all())
            assert bool((values == 1).all())


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
