"""A worker that dies takes no answer with it, and a gateway its requests."""

import socket
import time
from collections.abc import Callable

import pytest
from openai import OpenAI

from tests.e2e.stack import BASE, Stack, is_ready
from tests.servers import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(180)]


def wait_until(is_so: Callable[[], bool], within_s: float, stack: Stack) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(0.3)


def wait_for_workers(stack: Stack, count: int) -> None:
    wait_until(lambda: len(stack.running_sequences()) == count, 60, stack)


def busy_worker(stack: Stack) -> str:
    """The name of the process that runs a sequence."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        busy = [worker for worker, count in stack.running_sequences().items() if count]
        for name, process in stack.processes.items():
            if f"{socket.gethostname()}-{process.pid}" in busy:
                return name
        time.sleep(0.1)
    raise AssertionError(f"no worker is busy:\n{stack.logs()}")


def test_a_stream_goes_on_when_its_worker_is_killed(processes: Stack) -> None:
    """The other worker goes on behind the tokens that the client has; none comes twice."""
    processes.spawn(["worker"], name="second worker")
    wait_for_workers(processes, 2)
    question = {"role": "user", "content": "Tell me about the sea."}
    request = {"model": BASE, "messages": [question], "max_tokens": 200, "temperature": 0}
    with OpenAI(base_url=f"{processes.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(  # type: ignore[call-overload]
            **request,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        pieces: list[str] = []
        usage = None
        is_killed = False
        for chunk in answer:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
            if len(pieces) > 20 and not is_killed:
                processes.kill(busy_worker(processes))
                is_killed = True
        assert is_killed
        assert usage is not None
        assert usage.completion_tokens == 200
        alone = client.chat.completions.create(  # type: ignore[call-overload]
            **request, extra_body={"ignore_eos": True}
        )
    text = "".join(pieces)
    assert text[:400] == alone.choices[0].message.content[:400]


def test_a_request_ends_soon_after_its_gateway_is_killed(processes: Stack) -> None:
    port = free_port()
    processes.spawn(["gateway"], name="second gateway", ANOLE_GATEWAY_PORT=str(port))
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: is_ready(url), 60, processes)
    with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        answer = client.completions.create(
            model=BASE,
            prompt="Once upon a time",
            max_tokens=1900,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(answer))
        wait_until(lambda: sum(processes.running_sequences().values()) == 1, 20, processes)
        processes.kill("second gateway")
    wait_until(lambda: sum(processes.running_sequences().values()) == 0, 15, processes)
    assert "nobody waits for its requests" in processes.log("scheduler")


def test_a_worker_that_is_drained_ends_its_stream_and_leaves(processes: Stack) -> None:
    """`anole drain`: no answer is handed in again, and the process ends well."""
    processes.spawn(["worker"], name="third worker")
    wait_for_workers(processes, 2)
    before = processes.metric("anole_gateway_requests_resubmitted_total")
    with OpenAI(base_url=f"{processes.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": "Tell me about the wind."}],
            max_tokens=60,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        usage = None
        drained = ""
        for chunk in answer:
            usage = chunk.usage or usage
            if not drained:
                drained = busy_worker(processes)
                worker = processes.processes[drained]
                processes.spawn(["drain", f"{socket.gethostname()}-{worker.pid}"])
    assert processes.processes.pop("drain").wait(30) == 0
    assert processes.processes.pop(drained).wait(60) == 0
    assert usage is not None
    assert usage.completion_tokens == 60
    assert processes.metric("anole_gateway_requests_resubmitted_total") == before
    wait_for_workers(processes, 1)
    assert processes.metric("anole_scheduler_predictor_answers_total") > 0
