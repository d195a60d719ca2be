from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from anole_shared.errors import ConfigurationError
from anole_shared.units import MiB
from anole_worker.runtime import accelerator
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


def in_places(blocks: KvBlocks, monkeypatch: pytest.MonkeyPatch, places: list[int | None]) -> None:
    """Have memory for blocks taken there, one after the other; None: there is none left."""
    slots = torch.zeros(20, *blocks._size, dtype=blocks.dtype)
    found = iter(places)

    def new() -> torch.Tensor:
        place = next(found)
        if place is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return slots[place]

    monkeypatch.setattr(blocks, "_new", new)


def test_blocks_move_below_with_what_is_in_them(
    blocks: KvBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_places(blocks, monkeypatch, [3, 9, 7, 12, 1, 8, 10, None])
    places = blocks.addresses([0, 1, 2, 3])
    for block, own in blocks._blocks.items():
        own.fill_(block + 1)
    assert blocks.compact() == 2, "12 goes to 1 and 9 to 8, but 7 not to 10"
    moved = blocks.addresses([0, 1, 2, 3])
    bytes_apart = blocks._blocks[0].nbytes
    assert ((places - moved) // bytes_apart).tolist() == [0, 1, 0, 11]
    for block, own in blocks._blocks.items():
        assert own.data_ptr() == moved[block]
        assert own.unique().tolist() == [block + 1]
    assert blocks.num_with_memory == 4


def test_nothing_moves_where_all_that_is_free_lies_above(
    blocks: KvBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_places(blocks, monkeypatch, [0, 1] + [5] * 100)
    places = blocks.addresses([0, 1])
    assert blocks.compact() == 0
    assert blocks.addresses([0, 1]).tolist() == places.tolist()


@pytest.fixture
def small_gpu() -> Iterator[torch.device]:
    """A GPU of which 600 MiB more than what is in use can be had."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda", 0)
    accelerator.take(device)
    torch.cuda.empty_cache()
    num_bytes = torch.cuda.get_device_properties(device).total_memory
    most = torch.cuda.memory_reserved(device) + 600 * MiB
    torch.cuda.set_per_process_memory_fraction(most / num_bytes, device)
    yield device
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.gpu
def test_what_was_free_in_pieces_becomes_one(small_gpu: torch.device) -> None:
    block_size = 2 * MiB // KvCache.bytes_per_token(SHAPE, torch.bfloat16)
    blocks = KvBlocks(SHAPE, block_size, dtype=torch.bfloat16, device=small_gpu)
    blocks.addresses(range(250))
    for block, own in blocks._blocks.items():
        own.fill_(block)
    blocks.give_back(range(0, 250, 2))
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(150 * MiB, dtype=torch.uint8, device=small_gpu)
    assert blocks.compact() > 0
    torch.empty(150 * MiB, dtype=torch.uint8, device=small_gpu)
    for block, own in blocks._blocks.items():
        assert (own == block).all()
