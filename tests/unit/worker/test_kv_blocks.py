from dataclasses import replace

import pytest
import torch

from anole_shared.errors import ConfigurationError
from anole_worker.runtime.kv_blocks import KvBlocks
from anole_worker.runtime.kv_cache import KvCache
from tests.unit.worker.peft_folders import SHAPE


@pytest.fixture
def blocks() -> KvBlocks:
    return KvBlocks(SHAPE, 4, dtype=torch.bfloat16, device=torch.device("cpu"))


def test_a_block_takes_the_bytes_that_the_ledger_counts(blocks: KvBlocks) -> None:
    blocks.addresses([7])
    assert blocks._blocks[7].nbytes == 4 * KvCache.bytes_per_token(SHAPE, torch.bfloat16)


def test_blocks_take_memory_when_they_are_first_asked_for(blocks: KvBlocks) -> None:
    assert blocks.num_with_memory == 0
    first = blocks.addresses([5, 2])
    assert blocks.num_with_memory == 2
    assert len({*first.tolist(), blocks.scratch}) == 3
    again = blocks.addresses([2, 9, 5])
    assert blocks.num_with_memory == 3
    assert again[[2, 0]].tolist() == first.tolist()


def test_what_is_given_back_takes_memory_anew(blocks: KvBlocks) -> None:
    kept, _ = blocks.addresses([0, 1])
    blocks.give_back([1, 3])
    assert blocks.num_with_memory == 1
    assert blocks.addresses([0]).tolist() == [kept]
    assert blocks.addresses([1]).all()
    assert blocks.num_with_memory == 2


def test_places_follow_the_block_table(blocks: KvBlocks) -> None:
    addresses = blocks.addresses([8, 3])
    row = SHAPE.head_dim * 2
    assert blocks.places(addresses, 3, 6).tolist() == [
        addresses[0] + 3 * row,
        addresses[1],
        addresses[1] + row,
    ]


def test_no_blocks_have_no_addresses(blocks: KvBlocks) -> None:
    assert blocks.addresses([]).tolist() == []


def test_heads_that_kernels_cannot_read_are_refused() -> None:
    shape = replace(SHAPE, head_dim=9)
    with pytest.raises(ConfigurationError, match="18 bytes a token"):
        KvBlocks(shape, 4, dtype=torch.bfloat16, device=torch.device("cpu"))
