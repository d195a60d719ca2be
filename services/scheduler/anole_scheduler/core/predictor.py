"""How long an answer will be, guessed from the answers that came before."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from math import log2
from typing import Protocol

from anole_scheduler.core.request import Request
from anole_shared.ids import AdapterId

MAX_KEYS = 16_384
"""Histograms that are kept, about 0.5 KB each; the one not learnt from for longest goes first."""

SHORT_TOKENS, MEDIUM_TOKENS = 141, 503
"""Ends of the classes short and medium, those of muServe's predictor that Chameleon uses: median
and 99th percentile of LMSYS-Chat's answers."""

_ENOUGH = 8
"""Answers before a histogram is believed; until then a more general one speaks."""
_FULL = 255
"""Answers after which a histogram's counts are halved: it fits a byte, and the past fades."""
_PER_OCTAVE = 4
"""Buckets in which an answer's length doubles: the error of a bucket is at most 9 %."""
_NUM_BUCKETS = 17 * _PER_OCTAVE
_MIDDLES = tuple(round(2 ** ((bucket + 0.5) / _PER_OCTAVE)) for bucket in range(_NUM_BUCKETS))
"""The length that stands for each bucket."""
_FINE, _COARSE = 8, 2
"""Buckets in which a prompt's length doubles. A trace of one product shows why fine ones: prompts
of nearly one length are one template, and its answers are alike."""
_HORIZON = 1024
"""Answers over which the accuracy is averaged, those before fading."""

_Key = tuple[AdapterId | None, int, int] | tuple[AdapterId | None, int]


class Predictor(Protocol):
    """Guesses the output length of requests."""

    def predict(self, request: Request) -> int:
        """Output tokens of this attempt, from 1 to its max_tokens."""
        ...

    def learn(self, request: Request, num_output_tokens: int, now: float) -> None:
        """A request has run to its end (it was not aborted or lost) with that many tokens."""
        ...


class MaxTokensPredictor:
    """Knows nothing: an answer may be as long as its client allows."""

    def predict(self, request: Request) -> int:
        return request.max_tokens

    def learn(self, request: Request, num_output_tokens: int, now: float) -> None:
        pass


@dataclass(slots=True, kw_only=True)
class Accuracy:
    """How good the guesses are: shares of recent answers, judged just before each was learnt."""

    num_learnt: int = 0
    in_class: float = 0.0
    """In the right one of three classes: up to 141 tokens, up to 503, longer. The classes of the
    80 % that Chameleon reports (section 4.3.1 of the paper)."""
    within_factor_2: float = 0.0
    """Between half and twice the true length."""

    def note(self, predicted: int, true: int) -> None:
        """Count one more guess."""
        self.num_learnt += 1
        weight = 1 / min(self.num_learnt, _HORIZON)
        self.in_class += weight * ((_class_of(predicted) == _class_of(true)) - self.in_class)
        is_near = true <= 2 * predicted and predicted <= 2 * true
        self.within_factor_2 += weight * (is_near - self.within_factor_2)


def _class_of(num_tokens: int) -> int:
    return (num_tokens > SHORT_TOKENS) + (num_tokens > MEDIUM_TOKENS)


class _Histogram:
    """Lengths of answers in logarithmic buckets, and the bucket that holds their median."""

    __slots__ = ("_below", "_counts", "median", "total")

    def __init__(self) -> None:
        self._counts = bytearray(_NUM_BUCKETS)
        self.total = 0
        self.median = 0
        self._below = 0
        """Answers in buckets below the median's."""

    def add(self, bucket: int) -> None:
        """Count an answer. The median moves by few buckets, so that this is O(1)."""
        counts = self._counts
        counts[bucket] += 1
        self.total = total = self.total + 1
        if total == 1:
            self.median = bucket
            return
        if bucket < self.median:
            self._below += 1
        if total == _FULL:
            self._halve()
            counts, total = self._counts, self.total
        half, below, median = total / 2, self._below, self.median
        if below < half <= below + counts[median]:
            return
        while below >= half:
            median -= 1
            below -= counts[median]
        while below + counts[median] < half:
            below += counts[median]
            median += 1
        self._below, self.median = below, median

    def _halve(self) -> None:
        self._counts = counts = bytearray(count // 2 for count in self._counts)
        self.total = sum(counts)
        self._below = sum(counts[: self.median])


class OnlinePredictor:
    """The median of what requests like this one were answered with.

    Alike are those of the same adapter, about the same max_tokens (which clients set to what they
    expect) and nearly the same prompt length; while too few of these have ended, those of roughly
    the same prompt length, then of any, then all requests; at the very start max_tokens. A call
    takes a few microseconds. docs/performance.md has its accuracy on production traces.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self.accuracy = Accuracy()
        self._max_keys = max_keys
        self._histograms: OrderedDict[_Key, _Histogram] = OrderedDict()
        """The one learnt from for longest first."""
        self._of_all = _Histogram()
        """Counts as a key, and is never forgotten, as every answer is added to it."""

    def __len__(self) -> int:
        return len(self._histograms) + (self._of_all.total > 0)

    def predict(self, request: Request) -> int:
        return self._guess(request, map(self._histograms.get, _keys(request)))

    def _guess(self, request: Request, alike: Iterable[_Histogram | None]) -> int:
        """By the first histogram that is to be believed."""
        for histogram in alike:
            if histogram is not None and histogram.total >= _ENOUGH:
                return min(_MIDDLES[histogram.median], request.max_tokens)
        if self._of_all.total >= _ENOUGH:
            return min(_MIDDLES[self._of_all.median], request.max_tokens)
        return request.max_tokens

    def learn(self, request: Request, num_output_tokens: int, now: float) -> None:  # noqa: ARG002
        """Only first attempts teach: a later one is the rest of an answer."""
        if request.attempt > 0 or num_output_tokens < 1:
            return
        alike = [*map(self._renew, _keys(request))]
        self.accuracy.note(self._guess(request, alike), num_output_tokens)
        bucket = min(int(_PER_OCTAVE * log2(num_output_tokens)), _NUM_BUCKETS - 1)
        for histogram in alike:
            histogram.add(bucket)
        self._of_all.add(bucket)
        while len(self._histograms) >= self._max_keys:
            self._histograms.popitem(last=False)

    def _renew(self, key: _Key) -> _Histogram:
        """The histogram of that key, which is the last now to be forgotten."""
        histogram = self._histograms.get(key)
        if histogram is None:
            self._histograms[key] = histogram = _Histogram()
        else:
            self._histograms.move_to_end(key)
        return histogram


def _keys(request: Request) -> tuple[_Key, ...]:
    """From the most specific to the most general."""
    adapter_id, allowed = request.adapter_id, request.max_tokens.bit_length()
    octaves = log2(request.num_prompt_tokens or 1)
    return (
        (adapter_id, allowed, int(_FINE * octaves)),
        (adapter_id, allowed, ~int(_COARSE * octaves)),
        (adapter_id, allowed),
    )
