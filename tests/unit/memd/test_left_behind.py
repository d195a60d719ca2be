import asyncio
import threading
import time

import pytest

from anole_memd.backends.left_behind import in_time
from anole_memd.errors import BackendSilent


async def test_what_a_call_returns_or_raises_comes_through() -> None:
    assert await in_time(lambda: 7, timeout_s=5, what="a call") == 7
    with pytest.raises(ZeroDivisionError):
        await in_time(lambda: 1 // 0, timeout_s=5, what="a call")


def test_a_call_that_hangs_holds_up_neither_its_caller_nor_the_end_of_the_loop() -> None:
    hangs = threading.Event()

    async def wait() -> None:
        with pytest.raises(BackendSilent, match=r"offlining: .* within 0\.05 s"):
            await in_time(hangs.wait, timeout_s=0.05, what="offlining")

    begin = time.monotonic()
    asyncio.run(wait())
    assert time.monotonic() - begin < 5
    hangs.set()  # it comes back when nobody listens any more
    for thread in threading.enumerate():
        if thread.name == "memd.kernel":
            thread.join(5)
            assert not thread.is_alive()
