"""The process that turns constraints into grammars: a program of its own, run by Grammars.

A constraint of a few kilobytes can make the library allocate gigabytes or overflow the stack, which
ends its process. So that is not the gateway, but this one, under limits of its own. Whatever
passes here costs a worker little.

Says {} when it is ready, or {"fault"} and ends. Then reads a JSON object a line ({"language",
"source"}) and answers each with one ({"grammar"} or {"fault"}). Ends when its input does.
"""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from anole_gateway.constraints import Language

_MAX_MEMORY_BYTES = 512 * 1024**2
_MAX_STACK_BYTES = 4 * 1024**2
"""Half of what threads have elsewhere, so that a worker has room to spare."""
_MAX_CPU_S = 1
"""For each constraint, rounded up to a whole second."""

MAX_GRAMMAR_BYTES = 256 * 1024

_MAX_FAULT_CHARS = 240

_DEAD_END = "NoExtension"
"""How the library says that no token can come next."""


def _of_schema(source: str) -> str:
    # Without white space: small models are prone to go on with it for ever.
    return LLMatcher.grammar_from_json_schema(source, defaults={"whitespace_flexible": False})


def _of_grammar(source: str) -> str:
    return LLMatcher.grammar_from_lark(any_to_lark(source))


_COMPILE: dict[str, Callable[[str], str]] = {
    Language.JSON_SCHEMA: _of_schema,
    Language.REGEX: LLMatcher.grammar_from_regex,
    Language.GRAMMAR: _of_grammar,
}


def compiled(tokenizer: LLTokenizer, language: str, source: str) -> str:
    """The grammar, of which the first token was tried.

    Raises:
        ValueError: no grammar, or one that the library or a worker cannot use.
    """
    grammar = _COMPILE[language](source)
    if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise ValueError(f"its grammar has more than {MAX_GRAMMAR_BYTES} bytes")
    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    fault = matcher.get_error()
    if fault:
        is_dead_end = fault.startswith(_DEAD_END)
        raise ValueError("nothing that this model can write matches it" if is_dead_end else fault)
    return grammar


def _answer(tokenizer: LLTokenizer, line: bytes) -> dict[str, str]:
    asked = orjson.loads(line)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + _MAX_CPU_S)
    try:
        return {"grammar": compiled(tokenizer, asked["language"], asked["source"])}
    except Exception as fault:  # noqa: BLE001  (GBNF's reader raises anything)
        return _fault(fault)


def _fault(fault: BaseException) -> dict[str, str]:
    return {"fault": " ".join(str(fault).split())[:_MAX_FAULT_CHARS]}


def _tell(answer: dict[str, str]) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


def _limit(what: int, most: int) -> None:
    resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def main(tokenizer_file: str) -> None:
    """Serve until standard input ends."""
    try:
        tokenizer = LLTokenizer(Path(tokenizer_file).read_text(encoding="utf-8"))
    except BaseException as fault:  # noqa: BLE001  (a panic of Rust's is no Exception)
        _tell(_fault(fault))
        return
    _limit(resource.RLIMIT_AS, _MAX_MEMORY_BYTES)
    _limit(resource.RLIMIT_STACK, _MAX_STACK_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _tell({})
    for line in sys.stdin.buffer:
        _tell(_answer(tokenizer, line))


if __name__ == "__main__":
    main(sys.argv[1])
