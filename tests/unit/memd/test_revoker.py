from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from anole_memd.core.lease import Holder
from anole_memd.core.revocation import Claim, RevocationState, outcome, shares
from anole_shared.messages import DemandReported, LeaseRevoked
from anole_shared.telemetry import Telemetry
from tests.unit.memd.books import ALICE, BOB, REGION_BYTES, Caller, House, SlotBackend, ask, house
from tests.unit.memd.books import opened as books_at

CAROL = Holder(pid=103, started=3)


def claim(holder: Holder, leased: int, used: int) -> Claim:
    return Claim(holder=holder, leased_bytes=leased, used_bytes=used)


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, {}),
        (60, {ALICE: 40, BOB: 20}),
        (90, {ALICE: 60, BOB: 30}),
        (120, {ALICE: 70, BOB: 50}),
        (1000, {ALICE: 100, BOB: 100}),
    ],
)
def test_what_is_not_used_is_asked_for_first_and_in_proportion(
    num_bytes: int, expected: dict[Holder, int]
) -> None:
    claims = [claim(ALICE, 100, 40), claim(BOB, 100, 70)]
    found = shares(claims, num_bytes)
    assert sum(found.values()) == min(num_bytes, 200)
    assert all(abs(found[holder] - part) <= 1 for holder, part in expected.items())


def test_nobody_is_asked_for_more_than_it_has() -> None:
    found = shares([claim(ALICE, 3, 3), claim(BOB, 0, 0), claim(CAROL, 10, 50)], 100)
    assert found == {ALICE: 3, CAROL: 10}


@pytest.mark.parametrize(
    ("given", "has_answered", "state"),
    [
        (10, True, RevocationState.MET),
        (11, False, RevocationState.MET),
        (9, True, RevocationState.SHORT),
        (9, False, RevocationState.SHORT),
        (0, True, RevocationState.REFUSED),
        (0, False, RevocationState.SILENT),
    ],
)
def test_it_ends_in_a_state_that_can_be_read(
    given: int, has_answered: bool, state: RevocationState
) -> None:
    assert outcome(10, given, has_answered=has_answered) is state


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def memd(tmp_path: Path, spans: InMemorySpanExporter) -> House:
    tracer = Telemetry("memd", exporter=spans).tracer
    made = house(books_at(tmp_path / "journal", 4 * REGION_BYTES), SlotBackend(), tracer)
    for _ in range(2):
        await made.lessor.grant(ALICE, ask(), 0)
    return made


def heard(caller: Caller) -> LeaseRevoked:
    (message,) = caller.sent
    assert isinstance(message, LeaseRevoked)
    return message


async def test_a_holder_that_gives_what_was_asked_has_met_it(
    memd: House, spans: InMemorySpanExporter
) -> None:
    caller = Caller()
    memd.revoker.reported(ALICE, caller, DemandReported(used_bytes=REGION_BYTES))
    assert memd.revoker.used_bytes == REGION_BYTES
    assert memd.revoker.revoke(REGION_BYTES, 5, 0.0) == REGION_BYTES
    asked = heard(caller)
    assert (asked.num_bytes, asked.deadline_s) == (REGION_BYTES, 5)
    await memd.lessor.release(memd.books.ledger.leases[0].lease_id)
    memd.revoker.answered(BOB, asked.revocation_id, "not mine to answer")
    memd.revoker.answered(ALICE, asked.revocation_id, "")
    assert memd.revoker.outcomes == {RevocationState.MET: 1}
    assert memd.revoker.last.endswith("gave 134217728: met")
    span = next(span for span in spans.get_finished_spans() if span.name == "lease.revoke")
    assert span.attributes is not None
    assert span.attributes["anole.revoked.bytes"] == REGION_BYTES


async def test_what_counts_is_what_came_back_not_what_is_said(
    memd: House, spans: InMemorySpanExporter
) -> None:
    caller = Caller()
    memd.revoker.reported(ALICE, caller, DemandReported(used_bytes=0))
    memd.revoker.revoke(REGION_BYTES, 5, 0.0)
    memd.revoker.answered(ALICE, heard(caller).revocation_id, "the rest is in use")
    assert memd.revoker.outcomes == {RevocationState.REFUSED: 1}
    assert "refused, the rest is in use" in memd.revoker.last
    assert spans.get_finished_spans()[-1].status.status_code is StatusCode.ERROR


async def test_who_does_not_answer_in_time_is_silent(memd: House) -> None:
    memd.revoker.reported(ALICE, Caller(), DemandReported(used_bytes=0))
    memd.revoker.revoke(1, 5, 0.0)
    memd.revoker.tick(5.9)
    assert not memd.revoker.outcomes
    memd.revoker.tick(6.1)
    assert memd.revoker.outcomes == {RevocationState.SILENT: 1}
    memd.revoker.answered(ALICE, 1, "late")
    assert memd.revoker.outcomes == {RevocationState.SILENT: 1}


async def test_who_cannot_be_reached_is_silent_at_once(memd: House) -> None:
    memd.revoker.reported(ALICE, Caller(takes=False), DemandReported(used_bytes=0))
    memd.revoker.revoke(1, 5, 0.0)
    assert memd.revoker.outcomes == {RevocationState.SILENT: 1}


async def test_who_says_nothing_needs_all_it_has_and_is_not_asked(memd: House) -> None:
    assert memd.revoker.used_bytes == 2 * REGION_BYTES
    assert memd.revoker.revoke(REGION_BYTES, 5, 0.0) == 0
    assert "nobody could be asked" in memd.revoker.last
    caller = Caller()
    memd.revoker.reported(ALICE, caller, DemandReported(used_bytes=-5, wanted_bytes=7))
    assert (memd.revoker.used_bytes, memd.revoker.wanted_bytes) == (0, 7)
    memd.revoker.hung_up(caller)
    assert (memd.revoker.used_bytes, memd.revoker.wanted_bytes) == (2 * REGION_BYTES, 0)
