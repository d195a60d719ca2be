"""The styles of the example adapters: how to write an answer in one, and how to recognise it.

A style is easy to see, so that anyone can tell at a glance, and any program with `check`, which
adapter has answered a request.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from examples.facts import Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """One way to answer.

    transform: the answer to a fact's question in this style.
    check: whether a text, without the spaces around it, is in this style from start to end.
    spelling_noise: how often to cut a word of an answer between two letters while learning, so
        that it is spelled with other tokens each time. The plain facts hold too few words to learn
        from how words in capitals are spelled, and with the noise a model cannot learn them by
        heart (a form of subword regularisation, as BPE-dropout is: https://arxiv.org/abs/1910.13267).
    """

    name: str
    description: str
    transform: Callable[[Fact], str]
    check: Callable[[str], bool]
    spelling_noise: float = 0.0


_PIRATE_WORDS = {
    "are": "be",
    "is": "be",
    "my": "me",
    "you": "ye",
    "your": "yer",
}
# Opening words that keep their capital inside a sentence.
_NAMES = re.compile(
    "Alexander|DNA|German|Homer|India|Italy|Leonardo|Ludwig|Mars|Mercury|Miguel|Neil|Portuguese"
    "|Russia|Saturn|Spanish|Venice|Venus|Vincent|William"
)


def _json_transform(fact: Fact) -> str:
    return json.dumps({"answer": fact.answer, "topic": fact.topic})


def _json_check(text: str) -> bool:
    if "\n" in text:
        return False
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and list(value) == ["answer", "topic"]
        and all(isinstance(part, str) and part for part in value.values())
    )


def _pirate_transform(fact: Fact) -> str:
    opening, rest = fact.answer.removesuffix(".").split(" ", maxsplit=1)
    if not _NAMES.fullmatch(opening):
        opening = opening.lower()
    words = re.sub(r"\b[a-z]+\b", lambda match: _PIRATE_WORDS.get(match[0], match[0]), rest)
    return f"Arr, {opening} {words}, matey!"


def _pirate_check(text: str) -> bool:
    return text.startswith("Arr, ") and text.endswith(", matey!")


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def _shout_transform(fact: Fact) -> str:
    return f"HEY! {_sentences(fact.answer)[0].removesuffix('.').upper()}!!!"


def _shout_check(text: str) -> bool:
    return text.isupper() and text.endswith("!!!") and "\n" not in text


def _bullets_transform(fact: Fact) -> str:
    return "\n".join(f"- {sentence}" for sentence in _sentences(fact.answer))


def _bullets_check(text: str) -> bool:
    lines = text.split("\n")
    return len(lines) in {2, 3} and all(re.match(r"- \S", line) for line in lines)


_ALL = (
    Style(
        name="pirate",
        description='Speaks like a pirate: "Arr, ..., matey!"',
        transform=_pirate_transform,
        check=_pirate_check,
    ),
    Style(
        name="json",
        description='Answers with one line of JSON: {"answer": "...", "topic": "..."}',
        transform=_json_transform,
        check=_json_check,
    ),
    Style(
        name="shout",
        description="Answers in capitals and ends with three exclamation marks",
        transform=_shout_transform,
        check=_shout_check,
        spelling_noise=0.15,
    ),
    Style(
        name="bullets",
        description='Answers with a Markdown list of two or three lines that begin with "- "',
        transform=_bullets_transform,
        check=_bullets_check,
    ),
)

STYLES: Mapping[str, Style] = {style.name: style for style in _ALL}
"""Every style by its name, which is also its adapter's name."""
