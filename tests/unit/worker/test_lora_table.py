import torch

from anole_worker.model_shape import MODULE_PATHS, SITES
from anole_worker.runtime.lora import LayerDelta, SiteDelta, SitePart
from anole_worker.runtime.lora_table import RECORD, is_aligned, make_table
from tests.property.lora_cases import ALIGNED, UNALIGNED
from tests.unit.worker.peft_folders import SHAPE

NOTHING: LayerDelta = (None,) * len(SITES)


def part(module: str, begin: int, rank: int) -> SitePart:
    columns = SHAPE.columns(module)
    up = torch.zeros(rank, columns.stop - columns.start)
    return SitePart(columns=columns, ranks=slice(begin, begin + rank), up=up, scale=rank / 3)


def test_a_record_says_where_each_module_is_and_which_ranks_are_its_own() -> None:
    q, v, down = part("q_proj", 0, 5), part("v_proj", 5, 3), part("down_proj", 0, 2)
    qkv = SiteDelta(down=torch.zeros(32, 8), parts=(q, v))
    last = SiteDelta(down=torch.zeros(64, 2), parts=(down,))
    table = make_table([NOTHING, (qkv, None, None, last)], SHAPE)
    assert table.shape == (2, len(SITES), RECORD)
    assert not table[0].any()
    assert not table[1, 1:3].any()
    addresses = [tensor.data_ptr() for tensor in (qkv.down, q.up, v.up, last.down, down.up)]
    assert table[1, 0, :8].tolist() == [addresses[0], addresses[1], 0, addresses[2], 0, 5, 5, 8]
    assert table[1, 3, :8].tolist() == [addresses[3], addresses[4], 0, 0, 0, 2, 2, 2]


def test_a_record_says_of_which_type_the_numbers_are_and_how_they_are_scaled() -> None:
    q, v = part("q_proj", 0, 5), part("v_proj", 5, 3)
    for dtype, kind in ((torch.float32, 4), (torch.float16, 3), (torch.bfloat16, 2)):
        delta = SiteDelta(down=torch.zeros(32, 8, dtype=dtype), parts=(q, v))
        record = make_table([(delta, None, None, None)], SHAPE)[0, 0]
        assert record[8] == kind
        scales = record[9:].int().view(torch.float32)
        assert scales.tolist() == torch.tensor([5 / 3, 0, 1]).tolist()


def test_a_model_is_aligned_when_all_its_modules_are() -> None:
    assert is_aligned(ALIGNED)
    assert not is_aligned(UNALIGNED)
    assert all(size % 16 for dims in UNALIGNED.module_dims.values() for size in dims)
    assert ALIGNED.module_dims.keys() == MODULE_PATHS.keys()
