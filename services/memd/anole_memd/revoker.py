"""Revoker: asks holders for memory back, and sees what comes of it."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from anole_memd.core.lease import Holder
from anole_memd.core.ledger import Ledger
from anole_memd.core.revocation import Claim, RevocationState, outcome, shares
from anole_shared.messages import DemandReported, LeaseRevoked, MemoryMessage
from anole_shared.telemetry import Attribute, SpanName

log = logging.getLogger(__name__)

_GRACE_S = 1.0
"""How long after its deadline an answer still counts."""


class Listener(Protocol):
    """The connection on which a holder can be asked."""

    def send(self, message: MemoryMessage) -> bool:
        """Whether it was handed over."""
        ...


@dataclass(slots=True)
class _Demand:
    listener: Listener
    used_bytes: int
    wanted_bytes: int


@dataclass(slots=True)
class _Asked:
    holder: Holder
    num_bytes: int
    leased_before: int
    ends_s: float
    span: Span
    state: RevocationState = field(default=RevocationState.ASKED)


class Revoker:
    """Knows what each holder says it needs. A holder that says nothing needs all it has."""

    def __init__(self, ledger: Ledger, tracer: Tracer) -> None:
        self.outcomes: Counter[RevocationState] = Counter()
        """How revocations have ended."""
        self.last = ""
        """What came of the last one, for people."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when one has ended."""
        self._ledger = ledger
        self._tracer = tracer
        self._demands: dict[Holder, _Demand] = {}
        self._asked: dict[int, _Asked] = {}
        self._numbers = count(1)

    def reported(self, holder: Holder, listener: Listener, demand: DemandReported) -> None:
        """A holder says how much it needs, and where it can be asked."""
        total = self._ledger.total_bytes
        used, wanted = (
            max(0, min(num_bytes, total)) for num_bytes in (demand.used_bytes, demand.wanted_bytes)
        )
        self._demands[holder] = _Demand(listener, used, wanted)

    def hung_up(self, listener: Listener) -> None:
        """A connection is gone."""
        self._demands = {
            holder: demand
            for holder, demand in self._demands.items()
            if demand.listener is not listener
        }

    @property
    def used_bytes(self) -> int:
        """Of all leases, what is used."""
        return sum(claim.used_bytes for claim in self._claims())

    @property
    def wanted_bytes(self) -> int:
        """What holders could use besides."""
        return sum(demand.wanted_bytes for demand in self._demands.values())

    def _claims(self) -> list[Claim]:
        claims = []
        for holder in self._ledger.holders:
            leased, demand = self._ledger.leased_bytes_of(holder), self._demands.get(holder)
            used = leased if demand is None else min(leased, demand.used_bytes)
            claims.append(Claim(holder=holder, leased_bytes=leased, used_bytes=used))
        return claims

    def revoke(self, num_bytes: int, deadline_s: float, now: float) -> int:
        """Ask for so many bytes; how many bytes holders were asked for, as far as any listen."""
        claims = [claim for claim in self._claims() if claim.holder in self._demands]
        asked = shares(claims, num_bytes)
        if not asked:
            self.last = f"nobody could be asked for {num_bytes} bytes: no holder reports demand"
            log.warning("%s", self.last)
        for holder, part in asked.items():
            self._ask(holder, part, deadline_s, now)
        return sum(asked.values())

    def _ask(self, holder: Holder, num_bytes: int, deadline_s: float, now: float) -> None:
        number = next(self._numbers)
        span = self._tracer.start_span(SpanName.REVOKE, context=Context(), kind=SpanKind.CLIENT)
        self._asked[number] = _Asked(
            holder=holder,
            num_bytes=num_bytes,
            leased_before=self._ledger.leased_bytes_of(holder),
            ends_s=now + deadline_s + _GRACE_S,
            span=span,
        )
        message = LeaseRevoked(revocation_id=number, num_bytes=num_bytes, deadline_s=deadline_s)
        log.info("%d bytes asked back of process %d", num_bytes, holder.pid)
        if not self._demands[holder].listener.send(message):
            self._end(number, 0, has_answered=False, reason="it does not listen any more")

    def answered(self, holder: Holder, number: int, reason: str) -> None:
        """A holder has given what it gives."""
        asked = self._asked.get(number)
        if asked is not None and asked.holder == holder:
            self._end(number, self._given(asked), has_answered=True, reason=reason)

    def _given(self, asked: _Asked) -> int:
        """What has come back, whatever the holder says."""
        return max(0, asked.leased_before - self._ledger.leased_bytes_of(asked.holder))

    def tick(self, now: float) -> None:
        """End what is too late."""
        for number, asked in list(self._asked.items()):
            if now >= asked.ends_s:
                reason = "it has not answered in time"
                self._end(number, self._given(asked), has_answered=False, reason=reason)

    def _end(self, number: int, given_bytes: int, *, has_answered: bool, reason: str) -> None:
        asked = self._asked.pop(number)
        state = outcome(asked.num_bytes, given_bytes, has_answered=has_answered)
        self.outcomes[state] += 1
        self.last = (
            f"process {asked.holder.pid} was asked for {asked.num_bytes} bytes and gave "
            f"{given_bytes}: {state}{', ' + reason if reason else ''}"
        )
        asked.span.set_attribute(Attribute.REVOKED_BYTES, given_bytes)
        if state is RevocationState.MET:
            log.info("%s", self.last)
        else:
            log.warning("%s", self.last)
            asked.span.set_status(StatusCode.ERROR, self.last)
        asked.span.end()
        self.on_change()
