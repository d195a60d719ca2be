"""What Prometheus can read of memd; served on a port of its own, where one is set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from anole_memd.core.controller import Pressure
from anole_memd.core.ledger import Ledger
from anole_memd.core.region import RegionState
from anole_memd.core.revocation import RevocationState
from anole_shared.errors import ConfigurationError


class Metrics(Collector):
    """Read off the ledger when asked; only what has no state there is counted."""

    def __init__(
        self,
        ledger: Ledger,
        outcomes: Callable[[RevocationState], int],
        num_given_up: Callable[[], int],
        pressure: Callable[[], Pressure],
    ) -> None:
        self.registry = CollectorRegistry()
        self.unplugs: dict[str, int] = {}
        """By outcome: done, or the trouble."""
        self._ledger = ledger
        self._outcomes = outcomes
        self._num_given_up = num_given_up
        self._pressure = pressure
        self.registry.register(self)

    def count_unplug(self, outcome: str) -> None:
        """An unplug has ended so."""
        self.unplugs[outcome] = self.unplugs.get(outcome, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Everything, now. On the metrics server's thread: copies are made of what changes."""
        yield self._sizes()
        regions = GaugeMetricFamily("anole_memd_regions", "Regions.", labels=["state"])
        states = [region.state for region in self._ledger.regions]
        for state in RegionState:
            if state is not RegionState.ABSENT:
                regions.add_metric([state], states.count(state))
        yield regions
        yield GaugeMetricFamily(
            "anole_memd_given_up_regions",
            "Stuck regions that are not tried again unless somebody asks.",
            value=self._num_given_up(),
        )
        yield GaugeMetricFamily(
            "anole_memd_leases", "Leases that stand.", value=len(self._ledger.leases)
        )
        unplugs = CounterMetricFamily(
            "anole_memd_unplugs", "Regions given back, or why not.", labels=["outcome"]
        )
        for outcome, number in dict(self.unplugs).items():
            unplugs.add_metric([outcome], number)
        yield unplugs
        revocations = CounterMetricFamily(
            "anole_memd_revocations", "Times memory was asked back.", labels=["outcome"]
        )
        for kind in RevocationState:
            if kind is not RevocationState.ASKED:
                revocations.add_metric([kind], self._outcomes(kind))
        yield revocations
        yield GaugeMetricFamily(
            "anole_memd_pressure",
            "How short of memory the host is: 0 not, 1 some, 2 full.",
            value=list(Pressure).index(self._pressure()),
        )

    def _sizes(self) -> GaugeMetricFamily:
        sizes = self._ledger.sizes
        family = GaugeMetricFamily("anole_memd_bytes", "Memory by size.", labels=["size"])
        for name in ("total", "requested", "plugged", "leased"):
            family.add_metric([name], getattr(sizes, name))
        return family


@contextmanager
def served(metrics: Metrics, port: int | None) -> Iterator[None]:
    """Serve them on a loopback port while this lasts; None: not at all.

    Raises:
        ConfigurationError: the port is taken.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, "127.0.0.1", metrics.registry)
    except OSError as fault:
        raise ConfigurationError(
            f"memd cannot serve metrics on port {port} ({fault.strerror}): set "
            "ANOLE_MEMD_METRICS_PORT to one that is free"
        ) from fault
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
