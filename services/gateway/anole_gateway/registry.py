"""Which models exist: the base, and the adapters as the store lists them."""

import asyncio
import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from anole_gateway.errors import ModelNotFound, Unavailable
from anole_shared.clock import Clock
from anole_shared.codec import decode_record
from anole_shared.errors import MessageError, StoreUnavailable
from anole_shared.ids import AdapterId
from anole_shared.keys import Collection
from anole_shared.messages import AdapterRecord
from anole_shared.store import Store

log = logging.getLogger(__name__)

_MAX_AGE_S = 1.0
"""How old the view of the store may be when a request looks at it."""

Adapters = Mapping[AdapterId, AdapterRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The model below all adapters."""

    name: str
    context_length: int
    """Tokens of prompt and answer together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a request's `model` turned out to mean."""

    name: str
    """Its canonical name: the base's, or the adapter's id."""
    adapter: AdapterRecord | None
    """None is the base model alone."""


class Registry:
    """Finds models by name in a view of the store that is at most a second old.

    One read of the store is under way at a time. While the store is away the last view serves.
    """

    def __init__(self, base: BaseModel, *, store: Store, clock: Clock) -> None:
        self.base = base
        self._store = store
        self._clock = clock
        self._reading = asyncio.Lock()
        self._num_reads = 0
        self._read_at: float | None = None
        self._bodies: Mapping[str, bytes] = {}
        self._adapters: dict[AdapterId, AdapterRecord] = {}

    async def resolve(self, name: str) -> Model:
        """The model that name means: the base, an adapter's id, or "base:adapter".

        Raises:
            ModelNotFound: nothing has that name, or the adapter was refused (says why).
            Unavailable: it may be an adapter, but the store has never answered.
        """
        if name == self.base.name:
            return Model(name=name, adapter=None)
        wanted = AdapterId(name)
        within = AdapterId(name.removeprefix(f"{self.base.name}:"))
        adapters = await self.adapters()
        if wanted not in adapters and within not in adapters:
            adapters = await self._read(self._num_reads)
        record = adapters.get(wanted) or adapters.get(within)
        if record is None:
            raise self._not_found(name, adapters)
        if record.refused is not None:
            raise ModelNotFound(
                f"adapter {record.adapter_id!r} cannot be served: {record.refused}. Once that is "
                "mended, a restart of the worker reads the adapter folder again.",
                param="model",
            )
        return Model(name=record.adapter_id, adapter=record)

    async def adapters(self) -> Adapters:
        """Every adapter, those that were refused included.

        Raises:
            Unavailable: the store has never answered.
        """
        if self._read_at is not None and self._clock.now() - self._read_at <= _MAX_AGE_S:
            return self._adapters
        return await self._read(self._num_reads)

    async def _read(self, num_reads: int) -> Adapters:
        """Read the store, unless somebody did so since num_reads was looked at."""
        async with self._reading:
            if self._num_reads == num_reads:
                await self._read_store()
            if self._read_at is None:
                raise Unavailable("the list of adapters cannot be read: the store does not answer")
            return self._adapters

    async def _read_store(self) -> None:
        try:
            bodies = await self._store.all(Collection.ADAPTERS)
        except StoreUnavailable as fault:
            log.warning("adapters not read, the last view serves: %s", fault)
        else:
            self._adapters = self._decode(bodies)
            self._bodies = bodies
            self._read_at = self._clock.now()
        self._num_reads += 1

    def _decode(self, bodies: Mapping[str, bytes]) -> dict[AdapterId, AdapterRecord]:
        """Only what has changed is parsed: hundreds of records are read every second."""
        adapters = {}
        for key, body in bodies.items():
            adapter_id = AdapterId(key)
            if self._bodies.get(key) == body:
                if adapter_id in self._adapters:
                    adapters[adapter_id] = self._adapters[adapter_id]
                continue
            try:
                adapters[adapter_id] = decode_record(AdapterRecord, body)
            except MessageError as fault:
                log.warning("adapter %s in the store is unreadable: %s", key, fault)
        return adapters

    def _not_found(self, name: str, adapters: Adapters) -> ModelNotFound:
        served = [key for key, record in adapters.items() if record.refused is None]
        near = difflib.get_close_matches(name, [self.base.name, *served], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return ModelNotFound(
            f"the model {name!r} does not exist.{hint} GET /v1/models lists all.", param="model"
        )
