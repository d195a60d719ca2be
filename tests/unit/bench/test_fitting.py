"""Constants of a profile out of timed steps."""

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anole_sim.profile import Link, Profile
from bench.fitting import (
    KNOTS,
    FitFailed,
    Limits,
    Step,
    StepFit,
    Timed,
    TimedLoad,
    errors_of,
    fit_link,
    non_negative,
    split,
)

LIMITS = Limits(kv_bytes=46_080, rank_bytes=1_200_000, memory_bytes=2**31, max_num_seqs=32)
TRUE = Profile(
    name="true",
    source="made up",
    linear=tuple(zip(KNOTS, (0.04, 0.043, 0.06, 0.09, 0.15, 0.5), strict=True)),
    host_s=0.003,
    row_s=0.0012,
    head_s=0.0,
    context_s=6e-6,
    attention_s=5e-7,
    lora_step_s=0.004,
    lora_rank_s=7e-5,
    lora_token_s=1e-5,
    lora_token_rank_s=6e-6,
    kv_bytes=LIMITS.kv_bytes,
    rank_bytes=LIMITS.rank_bytes,
    memory_bytes=LIMITS.memory_bytes,
    max_num_seqs=LIMITS.max_num_seqs,
)
DEVICE_ROW_S = 0.0009
"""Of a row's cost what is the device's own; the rest is the loop's."""


def truly(step: Step) -> float:
    whole = TRUE.mixed_s(
        num_rows=step.rows,
        context=step.context,
        ranks=step.ranks,
        prompts=step.prompts,
        prompt_tokens=step.prompt_tokens,
        squares=step.squares,
        lora_tokens=step.lora_tokens,
        token_ranks=step.token_ranks,
    )
    if step.is_in_loop:
        return whole
    return whole - TRUE.host_s - (TRUE.row_s - DEVICE_ROW_S) * (step.rows + step.prompts)


def design() -> list[Step]:
    decodes = [
        Step(rows=rows, context=rows * context, ranks=ranks)
        for rows, context, ranks in product((1, 2, 4, 8, 16, 24, 32), (64, 256), (0, 64, 300))
    ]
    prompts = [
        Step(
            prompts=1,
            prompt_tokens=tokens,
            squares=(before + tokens) ** 2 - before**2,
            lora_tokens=tokens if rank else 0,
            token_ranks=tokens * rank,
        )
        for tokens, rank, before in product((8, 16, 32, 64, 128, 256), (0, 8, 64), (0, 256))
    ]
    loops = [
        Step(rows=rows, context=44 * rows, is_in_loop=True) for rows in (1, 2, 4, 8, 16, 24, 32)
    ]
    return [*decodes, *prompts, *loops]


def test_the_fit_finds_the_constants_that_the_steps_were_made_of() -> None:
    fit = StepFit([Timed("any", step, truly(step)) for step in design()])
    found = fit.profile("found", "synthetic", LIMITS)
    for name in ("host_s", "row_s", "context_s", "attention_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-4), name
    for name in ("lora_step_s", "lora_rank_s", "lora_token_s", "lora_token_rank_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-4), name
    for tokens in (1, 3, 16, 20, 64, 200, 256):
        assert found.linear_s(tokens) == pytest.approx(TRUE.linear_s(tokens), rel=1e-4)


def test_a_profile_says_of_steps_in_the_loop_what_the_fit_says() -> None:
    fit = StepFit([Timed("any", step, truly(step)) for step in design()])
    found = fit.profile("found", "synthetic", LIMITS)
    step = Step(rows=5, context=700, ranks=72, is_in_loop=True)
    assert found.decode_s(5, 700, 72) == pytest.approx(fit.seconds(step))


def test_a_third_that_is_not_fitted_comes_out_of_noisy_steps_within_the_noise() -> None:
    draw = Random("noise")  # noqa: S311 - not a secret
    timed = [Timed("any", step, truly(step) * draw.uniform(0.95, 1.05)) for step in design()]
    known, held = split(timed)
    assert len(held) == len(timed) // 3
    assert not {one.step for one in known} & {one.step for one in held}
    fit = StepFit(known)
    errors = errors_of([fit.seconds(one.step) for one in held], [one.seconds for one in held])
    assert errors.points == len(held)
    assert errors.median < 0.05
    assert errors.p90 < 0.10


def test_a_link_is_found_from_loads_and_one_that_knows_no_size_is_refused() -> None:
    link = Link(name="true", base_s=0.02, bytes_per_s=7e8)
    sizes = [10_000_000, 40_000_000, 150_000_000]
    found = fit_link([TimedLoad(size, link.seconds(size)) for size in sizes])
    assert found.base_s == pytest.approx(link.base_s)
    assert found.bytes_per_s == pytest.approx(link.bytes_per_s)
    with pytest.raises(FitFailed, match="measure again while nothing else runs"):
        fit_link([TimedLoad(size, 1 / size) for size in sizes])


def test_errors_are_shares_of_what_was_measured() -> None:
    errors = errors_of([1.1, 0.8, 1.0], [1.0, 1.0, 1.0])
    assert (errors.median, errors.p90) == (pytest.approx(0.1), pytest.approx(0.2))
    assert errors.mean == pytest.approx(-0.1 / 3)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 8))
def test_no_other_constants_without_a_negative_one_are_better(seed: int, columns: int) -> None:
    """The conditions of Karush, Kuhn and Tucker hold of the answer, and of no other."""
    draw = np.random.default_rng(seed)
    rows, wanted = draw.normal(size=(20, columns)), draw.normal(size=20)
    found = non_negative(rows, wanted)
    gradient = rows.T @ (rows @ found - wanted)
    assert (found >= 0).all()
    assert (gradient >= -1e-8).all()
    assert np.abs(found * gradient).max() < 1e-8
