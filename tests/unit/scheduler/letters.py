"""Makers of messages and deliveries for the scheduler's shell."""

from typing import Any

from anole_shared.bus import Headers
from anole_shared.ids import GatewayId, RequestId, WorkerId
from anole_shared.messages import (
    FinishReason,
    Message,
    RequestSubmitted,
    Sampling,
    SequenceFinished,
    WorkerCapacity,
    WorkerReported,
)


def submitted(request_id: str = "r1", **fields: Any) -> RequestSubmitted:
    values = {
        "request_id": RequestId(request_id),
        "attempt": 0,
        "gateway_id": GatewayId("g1"),
        "adapter_id": None,
        "prompt_token_ids": (1, 2, 3),
        "max_tokens": 16,
        "sampling": Sampling(temperature=0.5, top_p=0.9, seed=7),
    }
    return RequestSubmitted(**(values | fields))


def reported(worker_id: str = "w1", **fields: Any) -> WorkerReported:
    values = {
        "worker_id": WorkerId(worker_id),
        "model": "tiny",
        "capacity": WorkerCapacity(
            max_num_seqs=2, block_size=16, block_bytes=10, memory_bytes=1000, max_model_len=1024
        ),
        "running": (),
        "num_free_blocks": 100,
        "resident": (),
    }
    return WorkerReported(**(values | fields))


def finished(request_id: str = "r1", worker_id: str = "w1", **fields: Any) -> SequenceFinished:
    values = {
        "worker_id": WorkerId(worker_id),
        "request_id": RequestId(request_id),
        "attempt": 0,
        "finish_reason": FinishReason.STOP,
        "num_prompt_tokens": 3,
        "num_output_tokens": 5,
    }
    return SequenceFinished(**(values | fields))


class Letter:
    """A delivery that counts how often it is acknowledged."""

    def __init__(
        self, message: Message, *, redelivered: bool = False, headers: Headers | None = None
    ) -> None:
        self.message = message
        self.headers: Headers = headers or {}
        self.redelivered = redelivered
        self.num_acks = 0

    async def ack(self) -> None:
        self.num_acks += 1

    async def requeue(self) -> None:
        raise AssertionError("the scheduler gives nothing back by itself")
