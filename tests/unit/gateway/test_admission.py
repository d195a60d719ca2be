"""The door: how many may be in, and when it is closed."""

import asyncio

import pytest

from anole_gateway.admission import Admission
from anole_gateway.errors import TooManyRequests, Unavailable


async def test_no_more_than_the_limit_may_be_in() -> None:
    admission = Admission(max_concurrent=2, retry_after_s=3)
    with admission.enter(), admission.enter():
        with pytest.raises(TooManyRequests) as refused, admission.enter():
            pass
        assert refused.value.headers == {"Retry-After": "3"}
    with admission.enter():
        pass


async def test_nobody_enters_after_closing_but_those_inside_may_finish() -> None:
    admission = Admission(max_concurrent=2, retry_after_s=3)
    with admission.enter():
        admission.close()
        with pytest.raises(Unavailable), admission.enter():
            pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await admission.idle()
    await admission.idle()
