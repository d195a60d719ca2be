from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anole_worker.model_shape import SITES
from anole_worker.runtime.lora import AdaptedTokens, SiteDelta, SitePart, add_deltas
from tests.unit.worker.peft_folders import SHAPE

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def random_factors(modules: Sequence[str], ranks: Sequence[int]) -> Factors:
    dims = SHAPE.module_dims
    return {
        module: (torch.randn(rank, dims[module][0]), torch.randn(dims[module][1], rank))
        for module, rank in zip(modules, ranks, strict=True)
    }


def site_delta(factors: Factors) -> SiteDelta | None:
    if not factors:
        return None
    parts, rank = [], 0
    for module, (_, up) in factors.items():
        ranks = slice(rank, rank + up.shape[1])
        parts.append(SitePart(columns=SHAPE.columns(module), ranks=ranks, up=up.t().contiguous()))
        rank = ranks.stop
    down = torch.cat([down for down, _ in factors.values()])
    return SiteDelta(down=down.t(), parts=tuple(parts))


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, list[str], list[int]]]]:
    """A site, a number of base tokens, and for each adapter its tokens, modules and their ranks."""
    site = draw(st.integers(0, len(SITES) - 1))
    segments = []
    for _ in range(draw(st.integers(0, 5))):
        modules = draw(st.lists(st.sampled_from(SITES[site]), unique=True))
        modules.sort(key=SITES[site].index)
        ranks = draw(st.lists(st.integers(1, 64), min_size=len(modules), max_size=len(modules)))
        segments.append((draw(st.integers(1, 5)), modules, ranks))
    return site, draw(st.integers(0, 3)), segments


@settings(max_examples=150, deadline=None)
@given(batches(), st.integers(0, 1000))
def test_each_adapter_is_added_to_its_own_tokens_and_modules(
    batch: tuple[int, int, list[tuple[int, list[str], list[int]]]], seed: int
) -> None:
    torch.manual_seed(seed)
    site, num_base, segments = batch
    dims = SHAPE.module_dims
    num_tokens = num_base + sum(count for count, _, _ in segments)
    x = torch.randn(num_tokens, dims[SITES[site][0]][0])
    y = torch.randn(num_tokens, sum(dims[module][1] for module in SITES[site]))
    expected = y.clone()
    adapted, begin = [], num_base
    for count, modules, ranks in segments:
        factors = random_factors(modules, ranks)
        own = slice(begin, begin + count)
        for module, (down, up) in factors.items():
            expected[own, SHAPE.columns(module)] += x[own] @ (up @ down).t()
        layer = tuple(site_delta(factors) if n == site else None for n in range(len(SITES)))
        adapted.append(AdaptedTokens(begin=begin, end=own.stop, layers=((None,) * 4, layer)))
        begin = own.stop
    add_deltas(y, x, adapted, 1, site)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(y[:num_base], expected[:num_base])


def test_a_layer_that_an_adapter_leaves_alone_is_left_alone() -> None:
    y = torch.zeros(2, 96)
    delta = site_delta(random_factors(["q_proj"], [4]))
    tokens = AdaptedTokens(begin=0, end=2, layers=((None,) * 4, (delta, None, None, None)))
    add_deltas(y, torch.ones(2, 32), [tokens], 0, 0)
    assert not y.any()
    add_deltas(y, torch.ones(2, 32), [tokens], 1, 0)
    assert y.any()
