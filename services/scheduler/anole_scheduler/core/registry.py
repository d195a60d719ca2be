"""Which adapters exist, according to the workers' folders."""

from collections.abc import Iterable, Sequence

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId


class Registry:
    """Every adapter that was found, the refused ones included; outlives the workers."""

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        self._adapters = {adapter.adapter_id: adapter for adapter in adapters}

    def get(self, adapter_id: AdapterId) -> Adapter | None:
        return self._adapters.get(adapter_id)

    def learn(self, folder: Iterable[Adapter], workers: Sequence[Worker]) -> list[Adapter]:
        """Take in what one worker has found; returns what is new or has changed.

        A refusal does not count while another worker serves the adapter.
        """
        changed = []
        for adapter in folder:
            if self._adapters.get(adapter.adapter_id) == adapter:
                continue
            if adapter.refused is not None and _is_served(adapter.adapter_id, workers):
                continue
            self._adapters[adapter.adapter_id] = adapter
            changed.append(adapter)
        return changed

    def recall(self, adapters: Iterable[Adapter]) -> None:
        """Take over what an earlier scheduler knew; what was heard since is newer."""
        for adapter in adapters:
            self._adapters.setdefault(adapter.adapter_id, adapter)

    def forget_missing(self, workers: Sequence[Worker]) -> list[AdapterId]:
        """Drop and return the adapters that nobody has, once every worker has said what it has."""
        found: set[AdapterId] = set()
        for worker in workers:
            if worker.folder is None:
                return []
            found |= worker.folder.keys()
        missing = sorted(self._adapters.keys() - found)
        for adapter_id in missing:
            del self._adapters[adapter_id]
        return missing


def _is_served(adapter_id: AdapterId, workers: Iterable[Worker]) -> bool:
    """Whether some worker has said that it has the adapter and does not refuse it."""
    folders = (worker.folder or {} for worker in workers)
    found = (folder.get(adapter_id) for folder in folders)
    return any(adapter is not None and adapter.refused is None for adapter in found)
