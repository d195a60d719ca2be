"""CUDA graphs, which need a GPU."""

import pytest
import torch

from anole_worker.model_shape import QKV
from tests.property.lora_cases import (
    ALIGNED,
    LAYER,
    Case,
    Segment,
    adapted_tokens,
    layers_of,
    make_batch,
    reference,
)

BUCKET = 8
SEGMENTS = {
    "one": (Segment(num_tokens=1, ranks=(("q_proj", 8),)),),
    "shared": (Segment(num_tokens=7, ranks=(("k_proj", 33), ("v_proj", 5))),),
    "base": (),
    "mixed": tuple(Segment(num_tokens=1, ranks=(("q_proj", rank),)) for rank in (256, 1, 17)),
}


def case_of(segments: tuple[Segment, ...], seed: int) -> Case:
    num_base = BUCKET - sum(segment.num_tokens for segment in segments)
    return Case(
        shape=ALIGNED,
        dtype=torch.bfloat16,
        site=QKV,
        num_base=num_base,
        segments=segments,
        seed=seed,
    )


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_a_recorded_graph_serves_adapters_that_it_was_not_recorded_with(
    device: torch.device,
) -> None:
    from anole_worker.runtime.lora_table import make_table
    from anole_worker.runtime.lora_triton import TritonBackend

    backend = TritonBackend(ALIGNED, dtype=torch.bfloat16, device=device, max_tokens=BUCKET)
    deltas = backend.recordable(BUCKET)
    cases = [case_of(segments, seed) for seed, segments in enumerate(SEGMENTS.values())]
    x, y = (tensor.to(device) for tensor in (make_batch(cases[0]).x, make_batch(cases[0]).y))
    deltas.add(y, x, LAYER, QKV)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        deltas.add(y, x, LAYER, QKV)
    for case in cases:
        batch = make_batch(case)
        layers = layers_of(case, batch, device)
        tables = [make_table(own, ALIGNED).to(device) for own in layers]
        x.copy_(batch.x)
        y.copy_(batch.y)
        deltas.set(adapted_tokens(case, layers, tables))
        graph.replay()
        torch.testing.assert_close(y.cpu().double(), reference(case), rtol=0.01, atol=0.08)
