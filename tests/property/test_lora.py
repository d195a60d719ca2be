"""Whatever a batch mixes, each implementation adds to it what the plain reference does."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anole_worker.model_shape import SITES
from anole_worker.runtime.lora import LoopDeltas
from anole_worker.runtime.lora_rows import RowsBackend
from anole_worker.runtime.lora_table import make_table
from tests.interpreter import interpreting
from tests.property import lora_on_triton
from tests.property.lora_cases import (
    ALIGNED,
    MAX_MODULES,
    UNALIGNED,
    WHOLE,
    Batch,
    Case,
    Segment,
    adapted_tokens,
    added,
    layers_of,
    make_batch,
    reference,
)
from tests.property.lora_on_triton import Launch

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""With values of about 1; the ranks' sums are rounded to the type on their way."""

Implementation = Callable[[Case, Launch], Tensor]


def on_loop(case: Case, _: Launch, batch: Batch | None = None) -> Tensor:
    batch = batch or make_batch(case)
    layers = layers_of(case, batch, CPU)
    adapted = adapted_tokens(case, layers, [None] * len(layers))
    return added(case, batch, LoopDeltas(adapted), CPU)


def on_rows(case: Case, _: Launch, batch: Batch | None = None) -> Tensor:
    assume(RowsBackend.knows(case.dtype))
    batch = batch or make_batch(case)
    layers = layers_of(case, batch, CPU)
    tables = [make_table(own, case.shape) for own in layers]
    deltas = RowsBackend(case.shape, case.dtype).deltas(adapted_tokens(case, layers, tables))
    return added(case, batch, deltas, CPU)


def on_interpreter(processes: ProcessPoolExecutor, case: Case, launch: Launch) -> Tensor:
    return torch.from_numpy(processes.submit(lora_on_triton.run, case, launch, "cpu").result())


def on_cuda(case: Case, launch: Launch) -> Tensor:
    return torch.from_numpy(lora_on_triton.run(case, launch, "cuda"))


@pytest.fixture(scope="module", params=["loop", "rows", "triton-interpreter", "triton-cuda"])
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    if request.param == "loop":
        yield on_loop
    elif request.param == "rows":
        yield on_rows
    elif request.param == "triton-cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield on_cuda
    elif torch.cuda.is_available():
        pytest.skip("the kernels run on the CUDA device")
    else:
        with interpreting() as processes:
            yield partial(on_interpreter, processes)


RANKS = st.one_of(st.sampled_from([1, 8, 16, 17, 32, 33, 48, 256]), st.integers(1, 256))
LENGTHS = st.one_of(st.just(1), st.just(1), st.integers(2, 18), st.sampled_from([64, 65]))


STORED = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SCALES = st.one_of(st.sampled_from([0.0, 1.0, 2.0, -0.5, 1 / 3]), st.floats(-3, 3, width=32))


@st.composite
def cases(draw: st.DrawFn, *, keeps: bool = False) -> Case:
    """keeps: for a float32 model, with adapters of all types, whose scales are apart."""
    stored, scales = (STORED, SCALES) if keeps else (st.none(), st.just(1.0))
    site = draw(st.integers(0, len(SITES) - 1))
    segments = []
    for _ in range(draw(st.integers(0, 4))):
        modules = [module for module in SITES[site] if draw(st.booleans())]
        ranks = tuple((module, draw(RANKS)) for module in modules)
        segments.append(
            Segment(
                num_tokens=draw(LENGTHS),
                ranks=ranks,
                scales=tuple(draw(scales) for _ in range(MAX_MODULES)),
                stored=draw(stored),
            )
        )
    return Case(
        shape=draw(st.sampled_from([ALIGNED, UNALIGNED, WHOLE])),
        dtype=torch.float32 if keeps else draw(st.sampled_from(list(TOLERANCE))),
        site=site,
        num_base=draw(st.integers(0, 3)),
        segments=tuple(segments),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), launch=st.builds(Launch, is_small=..., is_recordable=...))
def test_every_implementation_adds_what_the_reference_adds(
    implementation: Implementation, case: Case, launch: Launch
) -> None:
    y, expected = implementation(case, launch), reference(case)
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(y, expected, rtol=torch.finfo(case.dtype).eps, atol=tolerance)
    unchanged = slice(0, case.num_base)
    assert torch.equal(y[unchanged], expected[unchanged])


LAUNCH = Launch(is_small=False, is_recordable=False)
FEW = 8


@pytest.mark.parametrize("run", [on_loop, on_rows])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(keeps=True))
def test_adapters_of_16_bits_beside_others_add_what_they_would_in_32(
    run: Callable[[Case, Launch, Batch], Tensor], case: Case
) -> None:
    batch = make_batch(case)
    y = run(case, LAUNCH, batch)
    torch.testing.assert_close(y, reference(case), rtol=1e-6, atol=TOLERANCE[torch.float32] * 3)
    widened = tuple(
        {module: (a.float(), b.float()) for module, (a, b) in factors.items()}
        for factors in batch.factors
    )
    assert torch.equal(y, run(case, LAUNCH, replace(batch, factors=widened)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(keeps=True))
def test_few_tokens_get_the_same_in_company_as_alone(case: Case) -> None:
    batch = make_batch(case)
    y = on_rows(case, LAUNCH, batch)
    begin = case.num_base
    for segment, factors in zip(case.segments, batch.factors, strict=True):
        rows = slice(begin, begin + segment.num_tokens)
        begin = rows.stop
        if segment.num_tokens <= FEW:
            alone = replace(case, num_base=0, segments=(segment,))
            own = Batch(x=batch.x[rows], y=batch.y[rows], factors=(factors,))
            assert torch.equal(on_rows(alone, LAUNCH, own), y[rows])
