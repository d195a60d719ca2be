"""A machine is described by what matters, and named without telling whose it is."""

import pytest

from bench import machine


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("Intel(R) Xeon(R) Processor", "intel-xeon-processor-2-cores"),
        ("Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz", "intel-xeon-e5-2670-v3-2-cores"),
        ("AMD EPYC 7B13", "amd-epyc-7b13-2-cores"),
        ("", "machine-2-cores"),
    ],
)
def test_a_file_name_is_made_of_processor_and_cores(cpu: str, name: str) -> None:
    assert machine.name_of({"cpu": cpu, "cores": 2}) == name


def test_the_description_has_versions_and_no_host_name() -> None:
    found = machine.describe()
    assert found["versions"]["torch"].startswith("2.")
    assert found["versions"]["anole"] != "not installed"
    assert "node" not in found
    assert found["memory_bytes"] > 0
