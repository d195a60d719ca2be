"""Constraints made ready for workers: compiled and tried in a process that may die of them."""

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import orjson

from anole_gateway.constraints import Constraint
from anole_gateway.errors import (
    ApiError,
    InternalFailure,
    InvalidRequest,
    Unavailable,
    UnsupportedParameter,
)

log = logging.getLogger(__name__)

_MAX_KNOWN = 64
"""Grammars that are kept; each with its constraint is at most a third of a megabyte."""
_MAX_WAITING = 64
_MAX_LINE_BYTES = 4 * 1024 * 1024
_START_S = 30.0
_PATIENCE_S = 10.0
"""Wall-clock time for one constraint; the process itself has a limit of CPU time, which is less."""

_TOO_COSTLY = "it takes too much time or memory to compile; make it simpler"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    constraint: Constraint
    verdict: asyncio.Future["_Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """A grammar, or why there is none."""

    grammar: str | None = None
    fault: str | None = None


class Grammars:
    """Compiles constraints one after the other, and remembers those that were good."""

    def __init__(self, model_dir: Path) -> None:
        """model_dir: the base model's folder; a grammar is tried with its vocabulary."""
        self._tokenizer_file = model_dir / "tokenizer.json"
        self._known: OrderedDict[Constraint, str] = OrderedDict()
        self._orders: asyncio.Queue[_Order] = asyncio.Queue(_MAX_WAITING)
        self._process: Process | None = None

    async def compile(self, constraint: Constraint, *, param: str) -> str:
        """The constraint as a grammar for llguidance.

        Raises:
            InvalidRequest: it is wrong, not supported or too costly; names param and says why.
            UnsupportedParameter: no answer of this model can be constrained.
            Unavailable: too many wait already.
            InternalFailure: nothing can be compiled here.
        """
        known = self._known.get(constraint)
        if known is not None:
            self._known.move_to_end(constraint)
            return known
        order = _Order(constraint=constraint, verdict=asyncio.get_running_loop().create_future())
        try:
            self._orders.put_nowait(order)
        except asyncio.QueueFull:
            raise Unavailable("too many constraints wait to be compiled", retry_after_s=1) from None
        verdict = await order.verdict
        if verdict.grammar is None:
            raise InvalidRequest(f"{param}: {verdict.fault}", param=param)
        return verdict.grammar

    async def run(self) -> None:
        """Compile what is asked for, until cancelled."""
        try:
            while True:
                order = await self._orders.get()
                try:
                    verdict = await self._verdict_of(order.constraint)
                except ApiError as fault:
                    if not order.verdict.done():
                        order.verdict.set_exception(fault)
                else:
                    if not order.verdict.done():
                        order.verdict.set_result(verdict)
        finally:
            await self._end()

    async def _verdict_of(self, constraint: Constraint) -> _Verdict:
        if constraint in self._known:  # compiled while this one waited
            return _Verdict(grammar=self._known[constraint])
        process = self._process or await self._start()
        line = orjson.dumps({"language": constraint.language, "source": constraint.source})
        answer = await self._ask(process, line + b"\n", _PATIENCE_S)
        if answer is None:
            log.warning("a constraint of %d bytes was too costly to compile", len(line))
            return _Verdict(fault=_TOO_COSTLY)
        verdict = _Verdict(**orjson.loads(answer))
        if verdict.grammar is not None:
            self._known[constraint] = verdict.grammar
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return verdict

    async def _start(self) -> Process:
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "anole_gateway.grammar_process",
                str(self._tokenizer_file),
                stdin=PIPE,
                stdout=PIPE,
                limit=_MAX_LINE_BYTES,
                start_new_session=True,
            )
        except OSError as fault:
            log.exception("no process for constraints can be started")
            raise InternalFailure("constraints cannot be compiled here") from fault
        greeting = await self._ask(process, b"", _START_S)
        if greeting is None:
            raise InternalFailure(
                "constraints cannot be compiled here; the gateway's standard error says why"
            )
        why_not = orjson.loads(greeting).get("fault")
        if why_not is not None:
            await self._end()
            raise UnsupportedParameter(f"this model's answers cannot be constrained: {why_not}")
        return process

    async def _ask(self, process: Process, line: bytes, patience_s: float) -> bytes | None:
        """The answer to line; None where the process died of it or took too long."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(patience_s):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await process.stdout.readline()
        except (TimeoutError, ConnectionError):
            answer = b""
        if not answer.endswith(b"\n"):
            await self._end()
            return None
        return answer

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
