"""The highest load at which a promise is kept."""

from collections.abc import Callable
from dataclasses import replace

from anole_sim.metrics import TOKEN_GAP_SLO_S, Summary
from anole_sim.simulate import Case, simulate

Keeps = Callable[[Summary], bool]


def keeps_ttft(found: Summary) -> bool:
    """The paper's SLO: the first token within five mean executions, for 99 of 100."""
    return found.unfinished == 0 and found.ttft_p99 <= found.ttft_slo


def keeps_both(found: Summary) -> bool:
    """That, and 150 ms between tokens for 99 requests of 100."""
    return keeps_ttft(found) and found.tpot_p99 <= TOKEN_GAP_SLO_S


def highest_rate(case: Case, keeps: Keeps, *, low: float, high: float, steps: int = 6) -> float:
    """Requests a second, by halving; low if not even that, high if all."""
    if keeps(_at(case, high)):
        return high
    if not keeps(_at(case, low)):
        return low
    for _ in range(steps):
        middle = (low + high) / 2
        if keeps(_at(case, middle)):
            low = middle
        else:
            high = middle
    return low


def _at(case: Case, rate: float) -> Summary:
    return simulate(replace(case, plan=replace(case.plan, rate=rate)))
