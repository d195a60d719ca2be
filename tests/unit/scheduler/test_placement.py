"""Filter, score, pick."""

from anole_scheduler.core.placement import Placement
from anole_scheduler.core.policies.best import Best
from anole_scheduler.core.request import Progress
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, waiting

WORKERS = [
    Worker(name, model="tiny", capacity=CAPACITY, admit_ahead=0, now=0.0)
    for name in ("w1", "w2", "w3")
]


class Only:
    def __init__(self, *names: str) -> None:
        self._names = names

    def passes(self, progress: Progress, worker: Worker) -> bool:
        return worker.worker_id in self._names


class Prefer:
    def __init__(self, *names: str) -> None:
        self._names = names

    def score(self, progress: Progress, worker: Worker) -> float:
        return float(worker.worker_id in self._names)


def chosen(filters: tuple[Only, ...], scorers: tuple[Prefer, ...]) -> str | None:
    placement = Placement(filters=filters, scorers=scorers, picker=Best())
    worker = placement.choose(waiting(), WORKERS)
    return worker.worker_id if worker else None


def test_a_worker_must_pass_every_filter() -> None:
    assert chosen((Only("w1", "w2"), Only("w2", "w3")), ()) == "w2"
    assert chosen((Only("w1"), Only("w2")), ()) is None


def test_a_later_scorer_decides_only_between_equals() -> None:
    assert chosen((), (Prefer("w2", "w3"), Prefer("w1", "w3"))) == "w3"
    assert chosen((), (Prefer("w2"), Prefer("w1", "w3"))) == "w2"


def test_of_equals_the_smallest_id_is_chosen() -> None:
    assert chosen((), (Prefer("w2", "w3"),)) == "w2"
    assert chosen((), ()) == "w1"
