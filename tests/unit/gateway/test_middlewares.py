"""What happens around every route."""

from pathlib import Path

import pytest

from tests.unit.gateway.backend import saying
from tests.unit.gateway.harness import CHAT, TEXT, chat, serving, text


async def test_unknown_paths_and_methods_are_answered_in_openais_shape(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        nowhere = await gateway.get("/v2/nothing")
        wrong = await gateway.get(CHAT)
    assert (nowhere.status, nowhere.error["code"]) == (404, "not_found")
    assert "/v1/chat/completions" in nowhere.error["message"]
    assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert wrong.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_sane_request_id_comes_back(model_dir: Path, *, stream: bool) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        headers = {"x-request-id": "my id/1"}
        answer = await gateway.post(CHAT, chat(stream=stream), headers=headers)
    assert answer.headers["x-request-id"] == "my id/1"


@pytest.mark.parametrize("given", ["", "x" * 129, "h\u00e9", "a\tb"])
async def test_any_other_is_replaced(model_dir: Path, given: str) -> None:
    async with serving(model_dir) as gateway:
        answer = await gateway.request("GET", "/health", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] not in {"", given}
    assert answer.headers["x-request-id"].isalnum()


async def test_answers_are_counted_by_route_model_and_status(model_dir: Path) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        await gateway.post(TEXT, text())
        await gateway.post(TEXT, text(model="made up"))
        await gateway.post(TEXT, b"{")
        await gateway.get("/health")
        await gateway.get("/v1/models/whatever")
        await gateway.get("/made/up")
        lines = (await gateway.get("/metrics")).body.decode().splitlines()
    counted = {line for line in lines if line.startswith("anole_gateway_requests_total{")}
    assert counted == {
        'anole_gateway_requests_total{model="tiny",route="/v1/completions",status="200"} 1.0',
        'anole_gateway_requests_total{model="",route="/v1/completions",status="404"} 1.0',
        'anole_gateway_requests_total{model="",route="/v1/completions",status="400"} 1.0',
        'anole_gateway_requests_total{model="",route="/health",status="200"} 1.0',
        'anole_gateway_requests_total{model="",route="/v1/models/{model}",status="404"} 1.0',
        'anole_gateway_requests_total{model="",route="unmatched",status="404"} 1.0',
    }
