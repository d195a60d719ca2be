"""How well output lengths are predicted, on traces of production: no model, no worker, no GPU.

    python -m bench.predictor azure2023_conv.csv.gz sharegpt_lengths.csv.gz [--out FILE]

A trace is a CSV file, gzipped or not, whose columns input_tokens and output_tokens (or, as Azure
calls them, ContextTokens and GeneratedTokens) are the lengths of one request a line, in order of
arrival. docs/performance.md says where to get some. Where there are several, they are also run
together, in an order drawn by seed, each as one adapter.
"""

import argparse
import csv
import gzip
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from anole_scheduler.core.predictor import (
    Accuracy,
    MaxTokensPredictor,
    OnlinePredictor,
    Predictor,
)
from anole_scheduler.core.request import Request
from anole_shared.ids import AdapterId, GatewayId, RequestId
from bench.table import Column, Record, Table

_UNDER_WAY = 50
"""Requests that have arrived and not ended: what they teach comes so much later."""
_LONGEST = 5000
"""Requests of each trace where several are run together."""
_SEED = 1
_OURS, _AZURE = ("input_tokens", "output_tokens"), ("ContextTokens", "GeneratedTokens")


class GlobalMedian:
    """The median of all answers so far, whoever asked."""

    def __init__(self) -> None:
        self._inner = OnlinePredictor()

    def predict(self, request: Request) -> int:
        return self._inner.predict(_anybody(request))

    def learn(self, request: Request, num_output_tokens: int, now: float) -> None:
        self._inner.learn(_anybody(request), num_output_tokens, now)


PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "max_tokens": MaxTokensPredictor,
    "global median": GlobalMedian,
    "online": OnlinePredictor,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request of a trace."""

    request: Request
    num_output_tokens: int


def read(path: Path, max_tokens: int) -> list[Line]:
    """The trace in the file."""
    body = path.read_bytes()
    text = gzip.decompress(body) if path.suffix == ".gz" else body
    rows = csv.DictReader(text.decode().splitlines())
    names = _AZURE if _AZURE[0] in (rows.fieldnames or ()) else _OURS
    return [
        Line(
            request=_request(path.name.split(".")[0], int(row[names[0]]), max_tokens),
            num_output_tokens=min(max(int(row[names[1]]), 1), max_tokens),
        )
        for row in rows
    ]


def _request(trace: str, num_prompt_tokens: int, max_tokens: int) -> Request:
    return Request(
        request_id=RequestId("r"),
        attempt=0,
        gateway_id=GatewayId("g"),
        adapter_id=AdapterId(trace),
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=max_tokens,
    )


def _anybody(request: Request) -> Request:
    return _request("", 1, request.max_tokens)


def together(traces: Sequence[list[Line]]) -> list[Line]:
    """All of them, mixed, each in its own order."""
    parts = [trace[:_LONGEST] for trace in traces]
    order = [number for number, part in enumerate(parts) for _ in part]
    random.Random(_SEED).shuffle(order)  # noqa: S311 - not a secret
    lines = [iter(part) for part in parts]
    return [next(lines[number]) for number in order]


def judge(predictor: Predictor, lines: Iterable[Line]) -> tuple[Accuracy, float]:
    """Over the whole trace; and the mean error in tokens."""
    under_way: deque[Line] = deque()
    count = in_class = within = 0
    error = 0
    for line in lines:
        one = Accuracy()
        predicted = predictor.predict(line.request)
        one.note(predicted, line.num_output_tokens)
        count += 1
        in_class += round(one.in_class)
        within += round(one.within_factor_2)
        error += abs(predicted - line.num_output_tokens)
        under_way.append(line)
        if len(under_way) > _UNDER_WAY:
            ended = under_way.popleft()
            predictor.learn(ended.request, ended.num_output_tokens, now=0.0)
    whole = Accuracy(num_learnt=count, in_class=in_class / count, within_factor_2=within / count)
    return whole, error / count


def measure(traces: dict[str, list[Line]]) -> Table:
    """Each trace with each predictor."""
    rows: list[Record] = []
    for name, lines in traces.items():
        for predictor, make in PREDICTORS.items():
            begin = time.process_time()
            accuracy, error = judge(make(), lines)
            rows.append(
                {
                    "trace": name,
                    "requests": accuracy.num_learnt,
                    "predictor": predictor,
                    "in_class": accuracy.in_class,
                    "within": accuracy.within_factor_2,
                    "error": error,
                    "each_us": (time.process_time() - begin) / len(lines) * 1e6,
                }
            )
    return Table(
        name="predictor",
        title="Predicted output lengths against true ones",
        columns=(
            Column(key="trace", title="trace"),
            Column(key="requests", title="requests"),
            Column(key="predictor", title="predictor"),
            Column(key="in_class", title="right class of three", form=".1%"),
            Column(key="within", title="within factor 2", form=".1%"),
            Column(key="error", title="mean error, tokens", form=".0f"),
            Column(key="each_us", title="CPU us each", form=".1f"),
        ),
        rows=tuple(rows),
        note=(
            "Classes: up to 141 tokens, up to 503, longer. What a request teaches comes "
            f"{_UNDER_WAY} requests later. CPU time is of predicting, learning and judging."
        ),
    )


def main() -> int:
    """Read, judge, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.predictor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument(
        "--max-tokens", type=int, default=1024, help="what clients allow (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="for python -m bench.report")
    given = parser.parse_args()
    traces = {path.name.split(".")[0]: read(path, given.max_tokens) for path in given.traces}
    if len(traces) > 1:
        traces["all, as adapters"] = together(list(traces.values()))
    table = measure(traces)
    print(table.markdown())
    if given.out is not None:
        result = {"sections": {"predictor": {"tables": [table.to_json()]}}}
        given.out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
