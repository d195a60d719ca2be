"""The four services' settings, in the order in which the services lean on each other."""

from anole_gateway.settings import GatewaySettings
from anole_memd.settings import MemdSettings
from anole_scheduler.settings import SchedulerSettings
from anole_shared.settings import Settings
from anole_worker.settings import WorkerSettings

GROUPS: dict[str, type[Settings]] = {
    "memd": MemdSettings,
    "worker": WorkerSettings,
    "scheduler": SchedulerSettings,
    "gateway": GatewaySettings,
}
