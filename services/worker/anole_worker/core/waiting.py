"""The sequences that wait, and what they wait for."""

from collections.abc import Collection, Iterator

from anole_shared.ids import RequestId
from anole_worker.core.adapter import Adapter
from anole_worker.core.sequence import Sequence


class Waiting:
    """Sequences in the order in which this worker was given them.

    Which adapters they need is kept beside them: it is asked for with every block that is taken.
    """

    def __init__(self) -> None:
        self._sequences: dict[RequestId, Sequence] = {}
        self._adapters: dict[Adapter, int] = {}

    @property
    def adapters(self) -> Collection[Adapter]:
        """The adapters that are needed, the first needed first: a view, which changes with them."""
        return _Needed(self._adapters, self)

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._sequences

    def get(self, request_id: RequestId) -> Sequence | None:
        """The sequence of a request, if it waits."""
        return self._sequences.get(request_id)

    def add(self, sequence: Sequence) -> None:
        """Behind all others."""
        self._sequences[sequence.request_id] = sequence
        self._count(sequence.adapter)

    def put_back(self, sequence: Sequence) -> None:
        """At the place that it had."""
        self.add(sequence)
        in_order = sorted(self._sequences.values(), key=lambda s: s.order)
        self._sequences = {s.request_id: s for s in in_order}

    def remove(self, sequence: Sequence) -> None:
        """It waits no more."""
        del self._sequences[sequence.request_id]
        self._discount(sequence.adapter)

    def turn_to(self, adapter: Adapter, old: Adapter) -> list[Sequence]:
        """Let those that need the old content of an adapter need this one; returns them."""
        turned = [s for s in self._sequences.values() if s.adapter == old]
        for sequence in turned:
            self._discount(old)
            sequence.adapter = adapter
            sequence.digests.clear()
            self._count(adapter)
        return turned

    def _count(self, adapter: Adapter | None) -> None:
        if adapter is not None:
            self._adapters[adapter] = self._adapters.get(adapter, 0) + 1

    def _discount(self, adapter: Adapter | None) -> None:
        if adapter is not None:
            self._adapters[adapter] -= 1
            if not self._adapters[adapter]:
                del self._adapters[adapter]

    def check_invariants(self) -> None:
        """In order of arrival, and each adapter is counted as often as it is needed."""
        orders = [sequence.order for sequence in self._sequences.values()]
        assert orders == sorted(orders)
        needed = [s.adapter for s in self._sequences.values() if s.adapter is not None]
        assert self._adapters == {adapter: needed.count(adapter) for adapter in needed}


class _Needed(Collection[Adapter]):
    """What is in it is known at once; only their order takes a look at the whole line."""

    def __init__(self, counts: dict[Adapter, int], line: Waiting) -> None:
        self._counts = counts
        self._line = line

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[Adapter]:
        return iter(dict.fromkeys(s.adapter for s in self._line if s.adapter is not None))
