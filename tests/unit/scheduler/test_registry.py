"""Which adapters exist."""

from anole_scheduler.core.registry import Registry
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, adapter


def worker(name: str, *adapters: str) -> Worker:
    known = Worker(name, model="tiny", capacity=CAPACITY, admit_ahead=0, now=0.0)
    known.folder = {adapter_id: adapter(adapter_id) for adapter_id in adapters}
    return known


def test_what_is_known_already_is_no_news() -> None:
    registry = Registry([adapter("a")])
    assert registry.learn([adapter("a"), adapter("b")], []) == [adapter("b")]
    assert registry.learn([adapter("a"), adapter("b")], []) == []


def test_a_refusal_is_news_where_nobody_serves_the_adapter() -> None:
    registry = Registry([adapter("a")])
    refused = adapter("a", refused="torn")
    assert registry.learn([refused], [worker("w1", "b")]) == [refused]
    assert registry.get("a") == refused


def test_a_refusal_is_no_news_while_another_worker_serves_the_adapter() -> None:
    registry = Registry([adapter("a")])
    assert registry.learn([adapter("a", refused="torn")], [worker("w1", "a")]) == []
    assert registry.get("a") == adapter("a")


def test_nothing_is_missing_until_every_worker_has_told_its_folder() -> None:
    registry = Registry([adapter("a"), adapter("b"), adapter("c")])
    silent = worker("w2")
    silent.folder = None
    assert registry.forget_missing([worker("w1", "b"), silent]) == []
    assert registry.forget_missing([worker("w1", "b"), worker("w2")]) == ["a", "c"]
    assert registry.get("a") is None
