"""The line of waiting requests."""

from anole_scheduler.core.policies.fcfs import FirstComeFirstServed
from anole_scheduler.core.policy import Key
from anole_scheduler.core.queues import WaitingQueue
from anole_scheduler.core.request import Progress
from tests.unit.scheduler.playbook import request


def waiting(name: str, arrived_s: float = 0.0, **fields: int) -> Progress:
    return Progress(request=request(name, **fields), arrived_s=arrived_s, redelivered=False)


class ShortestFirst:
    def key(self, progress: Progress) -> Key:
        return (progress.request.max_tokens,)


def names(progresses: list[Progress]) -> list[str]:
    return [progress.request.request_id for progress in progresses]


def test_an_empty_queue_has_no_head() -> None:
    queue = WaitingQueue(FirstComeFirstServed())
    assert queue.head() is None
    assert queue.first(3) == []
    assert not queue


def test_the_ordering_decides_who_is_next() -> None:
    queue = WaitingQueue(ShortestFirst())
    for name, max_tokens in (("long", 90), ("short", 10), ("middle", 50), ("also", 10)):
        queue.push(waiting(name, max_tokens=max_tokens))
        queue.check_invariants()
    assert names(queue.first(9)) == ["also", "short", "middle", "long"]


def test_a_request_can_be_taken_out_of_the_middle() -> None:
    queue = WaitingQueue(FirstComeFirstServed())
    for number in range(5):
        queue.push(waiting(f"r{number}", arrived_s=float(number)))
    queue.remove("r2")
    queue.remove("r0")
    queue.check_invariants()
    assert names(queue.first(2)) == ["r1", "r3"]
    assert "r2" not in queue
    assert len(queue) == 3
