"""What steps cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anole_sim.profile import A40_7B, FIT, PCIE, PROFILES, SLOW, Profile


@pytest.mark.parametrize(
    ("rank", "seconds"), [(8, 0.074), (16, 0.078), (32, 0.088), (64, 0.107), (128, 0.144)]
)
def test_the_first_token_by_rank_is_that_of_chameleons_figure_2(rank: int, seconds: float) -> None:
    load_s = PCIE.seconds(A40_7B.adapter_bytes(rank))
    assert load_s + A40_7B.prefill_s(400, rank) == pytest.approx(seconds, rel=0.05)


def test_a_mean_request_of_the_scaled_trace_takes_a_second_alone() -> None:
    assert A40_7B.isolated_s(189, 34, 50) == pytest.approx(1.0, rel=0.1)


def test_links_take_what_they_are_named_for() -> None:
    rank_32 = A40_7B.adapter_bytes(32)
    found = [link.seconds(rank_32) for link in (PCIE, SLOW, FIT)]
    assert found == pytest.approx([0.0077, 0.049, 0.095], rel=0.03)


def test_the_linear_layers_follow_their_table_and_go_on_behind_it() -> None:
    assert A40_7B.linear_s(1) == 0.0239
    assert A40_7B.linear_s(1024) == pytest.approx(0.137)
    assert A40_7B.linear_s(768) == pytest.approx((0.071 + 0.137) / 2)
    assert A40_7B.linear_s(16_384) == pytest.approx(2 * A40_7B.linear_s(8192), rel=0.1)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
@given(tokens=st.integers(1, 20_000), more=st.integers(0, 5000), rank=st.integers(0, 128))
def test_more_is_never_faster(profile: Profile, tokens: int, more: int, rank: int) -> None:
    assert profile.prefill_s(tokens + more, rank) >= profile.prefill_s(tokens, rank)
    assert profile.prefill_s(tokens, rank) >= profile.prefill_s(tokens, 0)


def test_what_is_published_of_an_h100_makes_a_step_of_some_milliseconds() -> None:
    step_s = PROFILES["h100-8b"].decode_s(1, 1000, 0)
    assert 0.005 < step_s < 0.012
