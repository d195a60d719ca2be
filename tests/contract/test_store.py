"""What anole_shared.store promises, checked on both implementations."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from anole_shared.errors import ConfigurationError, StoreUnavailable
from anole_shared.keys import Collection, Role
from anole_shared.store import MAX_CHANGES, Change, Store
from anole_shared.store_memory import MemoryStore
from anole_shared.store_redis import RedisStore
from tests.clocks import HandClock
from tests.servers import Redis, free_port, serving
from tests.wire import Wire

PATIENCE_S = 20.0
TTL_S = 0.2
WORKERS, ADAPTERS = Collection.WORKERS, Collection.ADAPTERS
SCHEDULER = Role.SCHEDULER


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
async def store(request: pytest.FixtureRequest, clock: HandClock) -> AsyncIterator[Store]:
    if request.param == "memory":
        store: Store = MemoryStore(clock)
    else:
        store = RedisStore(request.getfixturevalue("fresh_redis_url"))
    yield store
    await store.close()


@pytest.fixture
def until_lapsed(store: Store, clock: HandClock) -> Callable[[str], Awaitable[None]]:
    """Returns once a record that was put with TTL_S has lapsed."""

    async def until_lapsed(record_id: str) -> None:
        clock.time_s += TTL_S
        async with asyncio.timeout(PATIENCE_S):
            while await store.get(WORKERS, record_id) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    return until_lapsed


async def test_a_record_is_read_as_it_was_written(store: Store) -> None:
    record = bytes(range(256))
    await store.put(WORKERS, "w1", record)
    assert await store.get(WORKERS, "w1") == record


async def test_a_record_that_was_never_written_is_none(store: Store) -> None:
    assert await store.get(WORKERS, "w1") is None
    assert await store.all(WORKERS) == {}


async def test_writing_again_replaces(store: Store) -> None:
    await store.put(WORKERS, "w1", b"old")
    await store.put(WORKERS, "w1", b"")
    assert await store.get(WORKERS, "w1") == b""
    assert await store.all(WORKERS) == {"w1": b""}


async def test_all_gives_every_record_of_one_collection(store: Store) -> None:
    expected = {f"w{number}": str(number).encode() for number in range(50)}
    for record_id, record in expected.items():
        await store.put(WORKERS, record_id, record)
    await store.put(ADAPTERS, "a1", b"adapter")
    assert await store.all(WORKERS) == expected
    assert await store.all(ADAPTERS) == {"a1": b"adapter"}


async def test_a_deleted_record_is_gone(store: Store) -> None:
    await store.put(WORKERS, "w1", b"1")
    await store.put(WORKERS, "w2", b"2")
    await store.delete(WORKERS, "w1")
    await store.delete(WORKERS, "never written")
    assert await store.get(WORKERS, "w1") is None
    assert await store.all(WORKERS) == {"w2": b"2"}


@pytest.mark.parametrize(
    "record_id",
    ["gateway:g1", "a:b*?[c]{d}", "with space\nand line", "日本語/アダプタ", "x" * 300, ""],
)
async def test_any_string_is_an_id(store: Store, record_id: str) -> None:
    await store.put(WORKERS, record_id, b"1")
    await store.put(WORKERS, record_id + ":longer", b"2")
    assert await store.get(WORKERS, record_id) == b"1"
    assert await store.all(WORKERS) == {record_id: b"1", record_id + ":longer": b"2"}
    await store.delete(WORKERS, record_id)
    assert await store.all(WORKERS) == {record_id + ":longer": b"2"}


async def test_a_record_lapses_after_its_time_and_others_stay(
    store: Store, until_lapsed: Callable[[str], Awaitable[None]]
) -> None:
    await store.put(WORKERS, "long", b"1", ttl_s=3600)
    await store.put(WORKERS, "for good", b"2")
    await store.put(WORKERS, "short", b"3", ttl_s=TTL_S)
    assert await store.get(WORKERS, "short") == b"3"
    await until_lapsed("short")
    assert await store.all(WORKERS) == {"long": b"1", "for good": b"2"}


async def test_a_lapsed_record_can_be_written_again(
    store: Store, until_lapsed: Callable[[str], Awaitable[None]]
) -> None:
    await store.put(WORKERS, "w1", b"old", ttl_s=TTL_S)
    await until_lapsed("w1")
    assert await store.all(WORKERS) == {}
    await store.put(WORKERS, "w1", b"new", ttl_s=3600)
    assert await store.all(WORKERS) == {"w1": b"new"}


async def test_writing_again_renews_or_lifts_the_time(
    store: Store, until_lapsed: Callable[[str], Awaitable[None]]
) -> None:
    await store.put(WORKERS, "renewed", b"1", ttl_s=TTL_S)
    await store.put(WORKERS, "lifted", b"2", ttl_s=TTL_S)
    await store.put(WORKERS, "short", b"3", ttl_s=TTL_S)
    await store.put(WORKERS, "renewed", b"1", ttl_s=3600)
    await store.put(WORKERS, "lifted", b"2")
    await until_lapsed("short")
    assert await store.all(WORKERS) == {"renewed": b"1", "lifted": b"2"}


async def test_many_calls_at_once_are_all_answered(store: Store) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(store.put(WORKERS, f"w{number}", b"1"))
    assert len(await store.all(WORKERS)) == 100


def put(record_id: str, record: bytes, ttl_s: float | None = None) -> Change:
    return Change(collection=WORKERS, record_id=record_id, record=record, ttl_s=ttl_s)


def gone(record_id: str) -> Change:
    return Change(collection=WORKERS, record_id=record_id, record=None)


async def test_a_term_is_later_than_all_before(store: Store) -> None:
    terms = [await store.claim(SCHEDULER) for _ in range(5)]
    assert terms == sorted(set(terms))
    assert terms[0] > 0


async def test_changes_are_written_together(
    store: Store, until_lapsed: Callable[[str], Awaitable[None]]
) -> None:
    await store.put(WORKERS, "removed", b"1")
    term = await store.claim(SCHEDULER)
    adapter = Change(collection=ADAPTERS, record_id="a1", record=bytes(range(256)))
    changes = [gone("removed"), gone("never"), adapter, put("w:1", b""), put("short", b"2", TTL_S)]
    assert await store.write(changes, SCHEDULER, term)
    assert await store.all(ADAPTERS) == {"a1": bytes(range(256))}
    assert (await store.all(WORKERS)).keys() == {"w:1", "short"}
    await until_lapsed("short")
    assert await store.all(WORKERS) == {"w:1": b""}
    assert await store.write([put("w:1", b"3"), gone("w:1")], SCHEDULER, term), "in order"
    assert await store.all(WORKERS) == {}


async def test_whoever_held_the_role_before_changes_nothing(store: Store) -> None:
    before = await store.claim(SCHEDULER)
    assert await store.write([put("w1", b"before")], SCHEDULER, before)
    after = await store.claim(SCHEDULER)
    assert not await store.write([gone("w1"), put("w2", b"late")], SCHEDULER, before)
    assert await store.all(WORKERS) == {"w1": b"before"}
    assert await store.write([put("w1", b"after")], SCHEDULER, after)
    assert await store.all(WORKERS) == {"w1": b"after"}


async def test_as_many_changes_as_are_allowed_are_written(store: Store) -> None:
    term = await store.claim(SCHEDULER)
    changes = [put(f"w{number}", b"1") for number in range(MAX_CHANGES)]
    assert await store.write(changes, SCHEDULER, term)
    assert len(await store.all(WORKERS)) == MAX_CHANGES


async def test_no_reader_sees_half_of_what_is_written_together(store: Store) -> None:
    term = await store.claim(SCHEDULER)
    most = 0

    async def read() -> None:
        nonlocal most
        for _ in range(50):
            most = max(most, len(set((await store.all(WORKERS)).values())))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        for number in range(50):
            record = str(number).encode()
            changes = [put(f"w{index}", record) for index in range(20)]
            assert await store.write(changes, SCHEDULER, term)
    assert most == 1


@pytest.mark.integration
async def test_a_redis_that_lost_its_data_learns_the_term_again(fresh_redis_url: str) -> None:
    store = RedisStore(fresh_redis_url)
    first = await store.claim(SCHEDULER)
    term = await store.claim(SCHEDULER)
    await store._redis.flushdb()
    assert await store.write([put("w1", b"1")], SCHEDULER, term)
    assert not await store.write([gone("w1")], SCHEDULER, first)
    assert await store.claim(SCHEDULER) > term
    await store.close()


async def test_a_store_that_answers_is_pinged_in_silence(store: Store) -> None:
    await store.ping()


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    await store.close()
    await store.close()
    for call in calls(store):
        with pytest.raises(StoreUnavailable):
            await call


def calls(store: Store) -> list[Awaitable[object]]:
    return [
        store.ping(),
        store.get(WORKERS, "w1"),
        store.all(WORKERS),
        store.put(WORKERS, "w1", b"1", ttl_s=1),
        store.delete(WORKERS, "w1"),
        store.claim(SCHEDULER),
        store.write([put("w1", b"1")], SCHEDULER, 1),
    ]


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A Redis that the test may stop: that of the session has records of others."""
    with serving(Redis) as server:
        yield server


@pytest.mark.integration
async def test_a_stopped_redis_is_unavailable_and_used_again_when_it_is_back(
    own_redis: Redis,
) -> None:
    store = RedisStore(own_redis.url)
    await store.put(WORKERS, "w1", b"1")
    own_redis.stop()
    for call in calls(store):
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{own_redis.port}.*ANOLE_REDIS_URL"):
            await call
    own_redis.start()
    await store.put(WORKERS, "w2", b"2")
    assert await store.all(WORKERS) == {"w2": b"2"}
    await store.close()


@pytest.mark.integration
async def test_a_redis_that_does_not_answer_is_unavailable_in_time(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Wire(redis.port) as wire:
        store = RedisStore(f"redis://127.0.0.1:{wire.port}/0")
        await store.put(WORKERS, "w1", b"1")
        wire.hold()
        with monkeypatch.context() as shortened:
            shortened.setattr("anole_shared.store_redis.ANSWER_TIMEOUT_S", 0.1)
            for call in calls(store):
                with pytest.raises(StoreUnavailable):
                    await call
        wire.release()
        await store.put(WORKERS, "w1", b"after")
        assert await store.get(WORKERS, "w1") == b"after"
        await store.close()


@pytest.mark.integration
async def test_a_lapsed_record_leaves_nothing_behind_in_redis(fresh_redis_url: str) -> None:
    store = RedisStore(fresh_redis_url)
    for number in range(5):
        await store.put(WORKERS, f"w{number}", b"1", ttl_s=0.001)
    async with asyncio.timeout(PATIENCE_S):
        while await store.all(WORKERS):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await store._redis.keys("*") == []
    await store.close()


async def test_a_password_is_never_in_the_error() -> None:
    store = RedisStore(f"redis://:sesame@127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreUnavailable) as caught:
        await store.ping()
    assert "sesame" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize("url", ["http://:sesame@host:80/", "redis://:sesame@host:port/", "sesame"])
def test_an_address_of_something_else_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ANOLE_REDIS_URL") as caught:
        RedisStore(url)
    assert "sesame" not in str(caught.value)
