import pytest

from anole_memd.core.lease import LeaseTable
from anole_memd.errors import BadRegionSize, OverBudget, TooManyLeases
from anole_shared.ids import LeaseId
from anole_shared.units import HUGE_PAGE_BYTES, PAGE_BYTES


def table_of(pages: int, max_leases: int = 100) -> LeaseTable:
    return LeaseTable(budget_bytes=pages * HUGE_PAGE_BYTES, max_leases_per_owner=max_leases)


def test_a_lease_is_rounded_up_to_whole_pages() -> None:
    table = table_of(4)
    assert table.grant(1, 1).num_bytes == PAGE_BYTES
    assert table.grant(1, HUGE_PAGE_BYTES - 1).num_bytes == HUGE_PAGE_BYTES
    assert table.leased_bytes == HUGE_PAGE_BYTES + PAGE_BYTES
    assert table.num_leases == 2


@pytest.mark.parametrize("num_bytes", [0, -1, -HUGE_PAGE_BYTES])
def test_a_size_that_is_not_positive_is_refused_for_good(num_bytes: int) -> None:
    with pytest.raises(BadRegionSize, match="at least 1") as refusal:
        table_of(4).grant(1, num_bytes)
    assert not refusal.value.retryable


def test_a_size_over_the_whole_budget_is_refused_for_good() -> None:
    with pytest.raises(BadRegionSize, match="raise ANOLE_MEMD_BUDGET_BYTES") as refusal:
        table_of(4).grant(1, 10**4000)
    assert not refusal.value.retryable


def test_the_whole_budget_can_be_leased_and_not_a_page_more() -> None:
    table = table_of(4)
    table.grant(1, 4 * HUGE_PAGE_BYTES)
    with pytest.raises(OverBudget, match=f"0 of memd's {4 * HUGE_PAGE_BYTES} bytes") as refusal:
        table.grant(2, 1)
    assert refusal.value.retryable
    table.check_invariants()


def test_a_release_makes_room() -> None:
    table = table_of(1)
    first = table.grant(1, 1)
    assert table.release(1, first.lease_id) == first
    assert table.grant(2, 1).lease_id != first.lease_id


def test_a_lease_is_released_once_and_by_its_owner_only() -> None:
    table = table_of(1)
    lease = table.grant(1, 1)
    assert table.release(2, lease.lease_id) is None
    assert table.leased_bytes == PAGE_BYTES
    assert table.release(1, lease.lease_id) == lease
    assert table.release(1, lease.lease_id) is None
    assert table.release(1, LeaseId("never granted")) is None
    assert table.leased_bytes == 0


def test_one_owner_cannot_take_every_lease() -> None:
    table = table_of(4, max_leases=1)
    table.grant(1, 1)
    with pytest.raises(TooManyLeases, match="ANOLE_MEMD_MAX_LEASES_PER_CONNECTION"):
        table.grant(1, 1)
    assert table.grant(2, 1).owner == 2


def test_a_holder_that_is_gone_leaves_nothing_and_others_keep_theirs() -> None:
    table = table_of(4)
    gone = [table.grant(1, 1), table.grant(1, 1)]
    kept = table.grant(2, 1)
    assert table.holder_gone(1) == gone
    assert table.holder_gone(1) == []
    assert table.leased_bytes == kept.num_bytes
    table.check_invariants()


def test_the_invariants_notice_a_table_that_was_tampered_with() -> None:
    table = table_of(4)
    table.grant(1, 1)
    table._leased_bytes -= 1
    with pytest.raises(AssertionError):
        table.check_invariants()
