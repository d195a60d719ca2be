import errno
import platform

import pytest

from anole_memd.backends import mempolicy
from anole_memd.errors import SandboxUnavailable


def test_a_machine_whose_system_calls_are_not_known_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(SandboxUnavailable, match=r"on pdp11: .* x86_64, aarch64"):
        mempolicy.binding(1)


def test_what_the_kernel_says_of_a_node_that_there_cannot_be_is_raised() -> None:
    with pytest.raises(OSError, match="Invalid argument") as fault:
        mempolicy.binding(5000)()
    assert fault.value.errno == errno.EINVAL
