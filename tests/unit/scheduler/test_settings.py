"""The scheduler's settings."""

import pytest

from anole_scheduler.settings import SchedulerSettings
from anole_shared.errors import ConfigurationError
from anole_shared.keys import RENEW_S
from anole_shared.settings import load


def test_a_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOLE_SCHEDULER_MAX_WAITING", "7")
    assert load(SchedulerSettings).max_waiting == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_waiting", 0),
        ("max_unfinished", 70_000),
        ("admit_ahead", -1),
        ("worker_timeout_s", 1.0),
        ("max_loads", 0),
        ("scheduler_id", "a b"),
        ("policy", "fifo"),
        ("slo_s", 0),
        ("max_classes", 5),
    ],
)
def test_a_value_out_of_bounds_stops_the_start(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"ANOLE_SCHEDULER_{name.upper()}"):
        load(SchedulerSettings, **{name: value})


@pytest.mark.parametrize(
    "name", ["worker_timeout_s", "lost_after_s", "orphan_timeout_s", "settle_s"]
)
def test_defaults_leave_time_for_two_reports(name: str) -> None:
    assert getattr(SchedulerSettings(), name) > 2 * RENEW_S


def test_every_setting_says_what_it_is_for() -> None:
    for field in SchedulerSettings.model_fields.values():
        assert field.description
