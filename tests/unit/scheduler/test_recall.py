"""What a scheduler starts from, besides what workers say."""

from anole_scheduler.core.events import Recalled, WorkerSeen
from tests.unit.scheduler.playbook import CAPACITY, Playbook, adapter, kinds, placed


def recorded(worker_id: str, *, model: str = "tiny", **adapters: tuple[str, ...]) -> WorkerSeen:
    return WorkerSeen(
        worker_id=worker_id,
        model=model,
        capacity=CAPACITY,
        running=(),
        num_free_blocks=100,
        **({"resident": ()} | adapters),
    )


def recalled(play: Playbook, *workers: WorkerSeen) -> None:
    assert play.hear(Recalled(adapters=(adapter("a", size_bytes=7),), workers=workers)) == []


def test_a_request_goes_where_its_adapter_was_before_any_worker_has_reported() -> None:
    play = Playbook()
    recalled(play, recorded("w1"), recorded("w2", resident=("a",)))
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w2")]


def test_after_a_take_over_workers_still_speak_first() -> None:
    play = Playbook(settle_s=5)
    recalled(play, recorded("w1"))
    assert play.arrive("r1", redelivered=True) == []
    assert kinds(play.later(1).seen("w1", running=("r1",))) == ["Adopt"]


def test_what_a_worker_has_said_is_newer_than_what_is_recalled() -> None:
    play = Playbook()
    play.seen("w1", resident=())
    play.seen("w2", resident=("a",))
    recalled(play, recorded("w1", resident=("a",)))
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w2")]


def test_a_recalled_worker_that_stays_silent_is_lost() -> None:
    play = Playbook(worker_timeout_s=10)
    play.tick()
    recalled(play, recorded("w1"))
    assert kinds(play.wait(11)) == ["ForgetWorker"]


def test_a_recalled_worker_with_another_base_model_is_refused() -> None:
    play = Playbook()
    play.seen("w2")
    refused = Recalled(adapters=(), workers=(recorded("w1", model="other"),))
    assert kinds(play.hear(refused)) == ["RefuseWorker"]


def test_recalled_adapters_are_known_until_a_worker_says_otherwise() -> None:
    play = Playbook()
    recalled(play)
    assert play.scheduler._registry.get("a") == adapter("a", size_bytes=7)
    play.found(adapter("a", size_bytes=8))
    play.seen("w1")
    recalled(play)
    assert play.scheduler._registry.get("a") == adapter("a", size_bytes=8)


def test_a_load_that_the_scheduler_before_has_expected_is_asked_for_anew() -> None:
    play = Playbook(policy="anole", max_prefetch=0)
    recalled(play, recorded("w1", loading=("a",)))
    assert kinds(play.arrive("r1", adapter_id="a")) == ["Prefetch"]
