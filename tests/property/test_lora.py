"""Whatever a batch mixes, each implementation adds to it what the plain reference does."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
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
    UNALIGNED,
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


def on_loop(case: Case, _: Launch) -> Tensor:
    batch = make_batch(case)
    layers = layers_of(case, batch, CPU)
    adapted = adapted_tokens(case, layers, [None] * len(layers))
    return added(case, batch, LoopDeltas(adapted), CPU)


def on_rows(case: Case, _: Launch) -> Tensor:
    assume(RowsBackend.knows(case.dtype))
    batch = make_batch(case)
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


@st.composite
def cases(draw: st.DrawFn) -> Case:
    site = draw(st.integers(0, len(SITES) - 1))
    segments = []
    for _ in range(draw(st.integers(0, 4))):
        modules = [module for module in SITES[site] if draw(st.booleans())]
        ranks = tuple((module, draw(RANKS)) for module in modules)
        segments.append(Segment(num_tokens=draw(LENGTHS), ranks=ranks))
    return Case(
        shape=draw(st.sampled_from([ALIGNED, UNALIGNED])),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
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
