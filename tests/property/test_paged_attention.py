"""Wherever a row's blocks lie, each token attends to its own sequence up to itself."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.interpreter import interpreting
from tests.property import paged_cases
from tests.property.paged_cases import Case, reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Weights are rounded to the type before they meet the values."""

Run = Callable[[Case], NDArray[np.float64]]


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield lambda case: paged_cases.run(case, "cuda")
    elif torch.cuda.is_available():
        pytest.skip("the kernels run on the CUDA device")
    else:
        with interpreting() as processes:
            yield lambda case: processes.submit(paged_cases.run, case, "cpu").result()


LENGTHS = st.tuples(
    st.one_of(st.integers(0, 20), st.sampled_from([63, 64, 65, 127, 200])),
    st.sampled_from([1, 1, 1, 2, 9]),
)
CASES = st.builds(
    Case,
    num_kv_heads=st.sampled_from([1, 3]),
    group=st.sampled_from([1, 3, 17]),
    head_dim=st.sampled_from([16, 24]),
    block_size=st.sampled_from([1, 5, 16, 128]),
    dtype=st.sampled_from(list(TOLERANCE)),
    lengths=st.lists(LENGTHS, min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 1000),
).filter(lambda case: sum(-(-sum(own) // case.block_size) + 1 for own in case.lengths) < 200)


@pytest.mark.timeout(300)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=CASES)
def test_each_token_attends_to_its_own_sequence_up_to_itself(run: Run, case: Case) -> None:
    tolerance = TOLERANCE[case.dtype]
    np.testing.assert_allclose(run(case), reference(case), rtol=0, atol=tolerance)
