"""After a memd was killed: which regions of its ledger are still there, and whose they are."""

import logging
from pathlib import Path

from anole_memd.backend import Backend, Plugged
from anole_memd.backends import processes
from anole_memd.books import Books
from anole_memd.core.lease import Holder, LeaseState
from anole_memd.core.ledger import Region
from anole_memd.core.records import LeaseMoved, Record, RegionMoved
from anole_memd.core.region import RegionState, Trouble
from anole_memd.errors import BackendSilent, PartialUnplug

log = logging.getLogger(__name__)


async def recover(
    books: Books, backend: Backend, *, timeout_s: float, proc: Path = processes.PROC
) -> tuple[Region, ...]:
    """Make the ledger true again; returns the regions that are vacated now.

    Every region is looked for by its token. One that is not there any more is absent, and its lease
    has ended; one whose holder lives stays leased, without a connection for now; the regions of
    holders that have ended are vacated.
    """
    known = books.ledger.regions
    for region in known:
        books.note(await _found(books, backend, region, timeout_s, proc))
    left = books.ledger.regions
    if known:
        log.info(
            "%d of %d regions of an earlier memd are there, %d leases stand",
            len(left),
            len(known),
            len(books.ledger.leases),
        )
    return tuple(region for region in left if region.state is RegionState.VACATED)


async def _found(
    books: Books, backend: Backend, region: Region, timeout_s: float, proc: Path
) -> list[Record]:
    lease = books.ledger.lease(region.lease_id) if region.lease_id else None
    is_held = lease is not None and _lives(lease.holder, proc)
    holder = lease.holder.pid if lease is not None and is_held else None
    trouble, detail = Trouble.SILENT, "memd was killed while it was plugged or unplugged"
    try:
        plugged = await backend.adopt(region.spec, region.token, holder, timeout_s=timeout_s)
    except PartialUnplug as fault:
        plugged = Plugged(num_bytes=fault.left_bytes, token=region.token)
        trouble, detail = Trouble.PARTIAL, str(fault)
    except BackendSilent as fault:
        plugged, detail = Plugged(num_bytes=region.num_bytes, token=region.token), str(fault)
    if lease is not None and plugged is not None and is_held:
        if lease.state is LeaseState.DETACHED:
            return []
        return [
            LeaseMoved(
                lease_id=lease.lease_id, state=LeaseState.DETACHED, expires_s=lease.expires_s
            )
        ]
    records: list[Record] = [] if lease is None else list(books.ledger.ending(lease))
    state = RegionState.VACATED if lease is not None else region.state
    if plugged is None:
        return [*records, *_to_absent(region, state)]
    if state in {RegionState.PLUGGING, RegionState.UNPLUGGING}:
        records.append(
            RegionMoved(
                region_id=region.region_id,
                state=RegionState.STUCK,
                trouble=trouble,
                detail=detail,
                num_bytes=plugged.num_bytes,
                token=plugged.token,
            )
        )
    return records


def _to_absent(region: Region, state: RegionState) -> list[Record]:
    moves = [RegionMoved(region_id=region.region_id, state=RegionState.ABSENT)]
    if state is RegionState.FREE:
        moves.insert(0, RegionMoved(region_id=region.region_id, state=RegionState.UNPLUGGING))
    return list(moves)


def _lives(holder: Holder, proc: Path) -> bool:
    return holder.pid != 0 and processes.is_alive(holder.pid, holder.started, proc)
