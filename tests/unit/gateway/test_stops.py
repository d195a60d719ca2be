"""Stop strings: nothing of them is shown, nothing before them is lost."""

from hypothesis import given
from hypothesis import strategies as st

from anole_gateway.stops import StopMatcher

LETTERS = st.text(alphabet="ab", max_size=30)
"""Two letters, so that texts are full of false and overlapping beginnings."""
STOP = st.text(alphabet="ab", min_size=1, max_size=5)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    return shown + matcher.flush(), matcher.is_matched


@st.composite
def texts_in_pieces(draw: st.DrawFn) -> list[str]:
    return draw(st.lists(st.text(alphabet="ab", max_size=6), max_size=12))


@given(stop=STOP, pieces=texts_in_pieces())
def test_one_stop_string_cuts_where_str_find_finds_it(stop: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    begin = text.find(stop)
    expected = (text, False) if begin < 0 else (text[:begin], True)
    assert run([stop], pieces) == expected


@given(stops=st.lists(STOP, min_size=1, max_size=4), pieces=texts_in_pieces())
def test_of_several_the_first_to_be_completed_counts(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert run(stops, pieces) == (text, False)
        return
    longest = max(len(stop) for stop in stops if text[: min(ends)].endswith(stop))
    assert run(stops, pieces) == (text[: min(ends) - longest], True)


@given(stops=st.lists(STOP, min_size=1, max_size=4), pieces=texts_in_pieces())
def test_nothing_is_held_that_cannot_begin_a_stop_string(
    stops: list[str], pieces: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    held = matcher.flush()
    if not matcher.is_matched:
        assert shown + held == "".join(pieces)
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(
    stops=st.lists(STOP, min_size=1, max_size=4),
    exempt=texts_in_pieces(),
    pieces=texts_in_pieces(),
)
def test_exempt_text_may_begin_a_stop_string_but_completes_none(
    stops: list[str], exempt: list[str], pieces: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece, is_exempt=True) for piece in exempt)
    assert not matcher.is_matched
    shown += "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    text, num_exempt = "".join(exempt + pieces), len("".join(exempt))
    cuts = [
        (end, begin)
        for stop in stops
        for begin in range(len(text))
        if (end := begin + len(stop)) > num_exempt and text.startswith(stop, begin)
    ]
    assert matcher.is_matched == bool(cuts)
    assert shown == (text[: min(cuts)[1]] if cuts else text)


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one END two") == "one "
    assert matcher.push("three") == ""
    assert matcher.flush() == ""
