"""The store in Redis.

A record is a string under anole:<collection>:<id>, with Redis' own expiry. The set
anole:<collection> holds the ids of that collection, so that reading all of it scans no keyspace;
ids whose record has lapsed leave the set when the collection is next read. The number under
anole:term:<role> is the role's latest term.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as RedisClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from anole_shared.errors import ConfigurationError, StoreUnavailable
from anole_shared.keys import Collection, Role
from anole_shared.store import MAX_CHANGES, Change

ANSWER_TIMEOUT_S = 2.0
"""How long a call may take, connecting included."""

MAX_CONNECTIONS = 8

# Scripts, because record and set change together: KEYS are the set and the record's key.
_PUT = """
redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[3] then
    return redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
end
return redis.call('SET', KEYS[2], ARGV[2])
"""

_DELETE = """
redis.call('DEL', KEYS[2])
return redis.call('SREM', KEYS[1], ARGV[1])
"""

_READ_ALL = """
local live = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local record = redis.call('GET', KEYS[1] .. ':' .. id)
    if record then
        live[#live + 1] = {id, record}
    else
        redis.call('SREM', KEYS[1], id)
    end
end
return live
"""

# A term is the time in milliseconds, so that terms also rise after Redis has lost its data.
_CLAIM = """
local now = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
local term = math.max(last + 1, now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('SET', KEYS[1], string.format('%.0f', term))
return term
"""

# KEYS: the term's key, then set and record's key of each change. ARGV: the term, then of each
# change id, time to live in ms (0: for good, -1: remove it) and record.
_WRITE = """
local last, term = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])
if last > term then
    return 0
end
if last < term then
    redis.call('SET', KEYS[1], ARGV[1])
end
for i = 1, (#KEYS - 1) / 2 do
    local set, key = KEYS[2 * i], KEYS[2 * i + 1]
    local id, ttl, record = ARGV[3 * i - 1], tonumber(ARGV[3 * i]), ARGV[3 * i + 1]
    if ttl < 0 then
        redis.call('DEL', key)
        redis.call('SREM', set, id)
    else
        redis.call('SADD', set, id)
        if ttl > 0 then
            redis.call('SET', key, record, 'PX', ttl)
        else
            redis.call('SET', key, record)
        end
    end
end
return 1
"""


class RedisStore:
    """A client of one Redis; connects at first use, and again whenever it has to."""

    def __init__(self, url: str) -> None:
        """url: redis://, rediss:// or unix://.

        Raises:
            ConfigurationError: it is none of these.
        """
        self._address = _address(url)
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=ANSWER_TIMEOUT_S,
            # Once more, for a connection that went stale in the pool.
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = RedisClient.from_pool(pool)
        self._put = self._redis.register_script(_PUT)
        self._delete = self._redis.register_script(_DELETE)
        self._read_all = self._redis.register_script(_READ_ALL)
        self._claim = self._redis.register_script(_CLAIM)
        self._write = self._redis.register_script(_WRITE)
        self._is_closed = False

    async def put(
        self, collection: Collection, record_id: str, record: bytes, *, ttl_s: float | None = None
    ) -> None:
        keys = [_index(collection), _key(collection, record_id)]
        ttl_ms = [] if ttl_s is None else [_milliseconds(ttl_s)]
        async with self._answer():
            await self._put(keys=keys, args=[record_id, record, *ttl_ms])

    async def get(self, collection: Collection, record_id: str) -> bytes | None:
        async with self._answer():
            return cast("bytes | None", await self._redis.get(_key(collection, record_id)))

    async def all(self, collection: Collection) -> Mapping[str, bytes]:
        async with self._answer():
            records = await self._read_all(keys=[_index(collection)])
        return {record_id.decode(): record for record_id, record in records}

    async def delete(self, collection: Collection, record_id: str) -> None:
        keys = [_index(collection), _key(collection, record_id)]
        async with self._answer():
            await self._delete(keys=keys, args=[record_id])

    async def claim(self, role: Role) -> int:
        async with self._answer():
            return int(await self._claim(keys=[_term_key(role)]))

    async def write(self, changes: Sequence[Change], role: Role, term: int) -> bool:
        assert len(changes) <= MAX_CHANGES
        keys = [_term_key(role)]
        args: list[int | str | bytes] = [term]
        for change in changes:
            keys += [_index(change.collection), _key(change.collection, change.record_id)]
            args += [change.record_id, *_fate(change)]
        async with self._answer():
            return bool(await self._write(keys=keys, args=args))

    async def ping(self) -> None:
        async with self._answer():
            await self._redis.ping()

    async def close(self) -> None:
        self._is_closed = True
        await self._redis.aclose()

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[None]:
        if self._is_closed:
            raise StoreUnavailable("the store is closed: this process is stopping")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                yield
        except (RedisError, OSError) as fault:
            raise StoreUnavailable(
                f"no answer from Redis at {self._address} ({str(fault) or type(fault).__name__}): "
                "is Redis running? check ANOLE_REDIS_URL"
            ) from fault


def _index(collection: Collection) -> str:
    return f"anole:{collection}"


def _key(collection: Collection, record_id: str) -> str:
    return f"anole:{collection}:{record_id}"


def _term_key(role: Role) -> str:
    return f"anole:term:{role}"


def _fate(change: Change) -> tuple[int, bytes]:
    """Time to live and record, as the script takes them."""
    if change.record is None:
        return -1, b""
    return 0 if change.ttl_s is None else _milliseconds(change.ttl_s), change.record


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _address(url: str) -> str:
    """Where url points to, to be shown to people: the whole holds a password."""
    try:
        parts = urlsplit(url)
        default_port = {"redis": 6379, "rediss": 6379, "unix": 0}[parts.scheme]
        port = parts.port or default_port
    except (KeyError, ValueError):
        raise ConfigurationError(
            "ANOLE_REDIS_URL is no address of a Redis: write redis://:password@host:6379/0 "
            "(rediss:// for TLS, unix:///path/to/socket for a socket)"
        ) from None
    return f"{parts.hostname or 'localhost'}:{port}" if port else parts.path
