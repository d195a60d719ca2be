"""Where the loaded adapters of one device are, tier by tier.

On a CPU the leased region is the device's memory. A GPU has memory of its own: there an adapter is
read into a region, uploaded out of it, and the region kept for as long as the host's budget allows,
so that the next load is an upload alone.
"""

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anole_shared.ids import AdapterId
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from anole_worker.core.host_tier import HostTier
from anole_worker.errors import DeviceMemoryFull
from anole_worker.leases import LeaseRefused, Region, RegionClient
from anole_worker.runtime.adapters import LoadedAdapter, load
from anole_worker.runtime.packing import Packing

log = logging.getLogger(__name__)


class AdapterMemory(Protocol):
    """Blocking calls, all on the loader's thread but for `loaded` and `host_adapters`."""

    def load(self, adapter: Adapter, file: AdapterFile, headers: Mapping[str, str]) -> None: ...

    def drop(self, adapter: Adapter) -> None: ...

    def loaded(self, adapter: Adapter) -> LoadedAdapter:
        """As a step needs it; it is on the device."""

    def spare(self, num_bytes: int) -> int | None:
        """Let so many bytes of copies in host memory go; how many went.

        None where the device's memory is the host's: there is no copy.
        """

    @property
    def host_adapters(self) -> tuple[AdapterId, ...]:
        """Those that have a copy in host memory beside, or instead of, the device's."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Copy:
    """An adapter in a leased region."""

    weights: LoadedAdapter
    region: Region

    def release(self) -> None:
        self.weights.release()
        self.region.release()


def _read(
    regions: RegionClient, file: AdapterFile, packing: Packing, headers: Mapping[str, str]
) -> _Copy:
    """Lease a region and read the adapter into it.

    Raises:
        AnoleError: memd gives no region, or the files are no longer what was validated.
    """
    region = regions.lease(packing.num_bytes(file), purpose=file.adapter_id, headers=headers)
    try:
        weights = load(file, region.buffer, packing)
    except BaseException:
        region.release()
        raise
    return _Copy(weights, region)


class RegionAdapters:
    """Two tiers, region and disk: steps read the adapters where they were loaded."""

    def __init__(self, regions: RegionClient, packing: Packing) -> None:
        self._regions = regions
        self._packing = packing
        self._copies: dict[Adapter, _Copy] = {}

    def load(self, adapter: Adapter, file: AdapterFile, headers: Mapping[str, str]) -> None:
        self._copies[adapter] = _read(self._regions, file, self._packing, headers)

    def drop(self, adapter: Adapter) -> None:
        self._copies.pop(adapter).release()

    def loaded(self, adapter: Adapter) -> LoadedAdapter:
        return self._copies[adapter].weights

    def spare(self, num_bytes: int) -> int | None:  # noqa: ARG002
        """None: what is loaded is all there is."""
        return None

    @property
    def host_adapters(self) -> tuple[AdapterId, ...]:
        """None beside the device's own."""
        return ()

    def close(self) -> None:
        for adapter in list(self._copies):
            self.drop(adapter)


class Mover(Protocol):
    """Moves bytes from host memory to a device."""

    def pin(self, arena: Tensor) -> None: ...

    def unpin(self, arena: Tensor) -> None: ...

    def upload(self, adapter: LoadedAdapter) -> LoadedAdapter:
        """A copy on the device, once it is whole. Raises torch.OutOfMemoryError."""


class TieredAdapters:
    """Three tiers: device, region, disk. What the device drops keeps its region for a while."""

    def __init__(
        self,
        regions: RegionClient,
        packing: Packing,
        tier: HostTier,
        mover: Mover,
        now: Callable[[], float],
    ) -> None:
        """now: seconds, for how recently a copy was used."""
        self._regions = regions
        self._packing = packing
        self._tier = tier
        self._mover = mover
        self._now = now
        self._copies: dict[Adapter, _Copy] = {}
        self._on_device: dict[Adapter, LoadedAdapter] = {}
        self._host_adapters: tuple[AdapterId, ...] = ()

    def load(self, adapter: Adapter, file: AdapterFile, headers: Mapping[str, str]) -> None:
        """Read it from disk where there is no copy in host memory, then upload it.

        Raises:
            AnoleError: memd gives no region even once all idle copies have gone, the files are no
                longer what was validated, or the device is full.
        """
        is_copied = adapter in self._tier
        self._release(self._tier.begin(adapter, self._now()))
        if not is_copied:
            try:
                self._copies[adapter] = self._pinned(self._read(file, headers))
            except BaseException:
                self._tier.failed(adapter)
                self._note()
                raise
            self._tier.read(adapter)
        try:
            self._on_device[adapter] = self._mover.upload(self._copies[adapter].weights)
        except torch.OutOfMemoryError as fault:
            raise DeviceMemoryFull(
                f"the device has no {adapter.num_bytes} bytes left: lower "
                "ANOLE_WORKER_MEMORY_FRACTION or ANOLE_WORKER_MEMORY_BYTES"
            ) from fault
        finally:
            self._release(self._tier.end(adapter, self._now()))
            self._note()

    def _read(self, file: AdapterFile, headers: Mapping[str, str]) -> _Copy:
        """As _read does, at the cost of idle copies where memd has no room for one more region."""
        while True:
            try:
                return _read(self._regions, file, self._packing, headers)
            except LeaseRefused:
                spared = self._tier.spare(self._now())
                if spared is None:
                    raise
                self._release((spared,))

    def _pinned(self, copy: _Copy) -> _Copy:
        try:
            self._mover.pin(copy.weights.arena)
        except BaseException as error:
            # The frame that failed has a view of the region.
            traceback.clear_frames(error.__traceback__)
            copy.release()
            raise
        return copy

    def _release(self, adapters: Iterable[Adapter]) -> None:
        """One that stays, since the driver or a view holds it, keeps no other from going."""
        for adapter in adapters:
            copy = self._copies.pop(adapter)
            try:
                self._mover.unpin(copy.weights.arena)
                copy.release()
            except Exception:
                log.exception("the copy of %s stays in host memory", adapter.adapter_id)

    def spare(self, num_bytes: int) -> int:
        """The copies that are worth least go first, whether the device has the adapter or not."""
        spared_bytes = 0
        while spared_bytes < num_bytes:
            spared = self._tier.spare(self._now())
            if spared is None:
                break
            spared_bytes += self._copies[spared].region.num_bytes
            self._release((spared,))
        self._note()
        return spared_bytes

    def _note(self) -> None:
        self._host_adapters = tuple(sorted({copy.adapter_id for copy in self._tier.adapters}))

    def drop(self, adapter: Adapter) -> None:
        """Give the device's memory back; the copy in host memory stays."""
        self._on_device.pop(adapter).release()

    def loaded(self, adapter: Adapter) -> LoadedAdapter:
        return self._on_device[adapter]

    @property
    def host_adapters(self) -> tuple[AdapterId, ...]:
        return self._host_adapters

    def close(self) -> None:
        for adapter in list(self._on_device):
            self.drop(adapter)
        self._release(list(self._copies))
