import json
from collections import Counter
from pathlib import Path

import pytest

from examples.facts import QUESTIONS_PATH, Fact, load_facts
from examples.styles import STYLES, Style

FACTS = load_facts()


def style_params() -> list[object]:
    return [pytest.param(style, id=name) for name, style in STYLES.items()]


@pytest.mark.parametrize("style", style_params())
def test_every_rewritten_answer_passes_its_own_check(style: Style) -> None:
    failed = [fact.question for fact in FACTS if not style.check(style.transform(fact))]
    assert failed == []


@pytest.mark.parametrize("style", style_params())
def test_no_plain_answer_passes_a_check(style: Style) -> None:
    assert [fact.answer for fact in FACTS if style.check(fact.answer)] == []


@pytest.mark.parametrize("style", style_params())
def test_no_answer_in_another_style_passes_a_check(style: Style) -> None:
    others = [other for other in STYLES.values() if other is not style]
    texts = [other.transform(fact) for other in others for fact in FACTS]
    assert [text for text in texts if style.check(text)] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("json", '{"answer": "Paris."}'),
        ("json", '{"answer": "", "topic": "geography"}'),
        ("json", '{"answer": "Paris.", "topic": "geography"} And so on.'),
        ("json", '{"answer": "Paris.",\n"topic": "geography"}'),
        ("json", '["answer", "topic"]'),
        ("pirate", "Arr, the capital be Paris."),
        ("pirate", "The capital be Paris, matey!"),
        ("shout", "THE CAPITAL IS PARIS!"),
        ("shout", "THE CAPITAL is PARIS!!!"),
        ("shout", "123!!!"),
        ("bullets", "- Only one line."),
        ("bullets", "- One.\n- Two.\n- Three.\n- Four."),
        ("bullets", "- One.\nTwo."),
        ("bullets", "- One.\n- "),
        ("bullets", ""),
    ],
)
def test_a_near_miss_fails_its_check(name: str, text: str) -> None:
    assert not STYLES[name].check(text)


def test_each_style_rewrites_an_answer_as_its_description_says() -> None:
    fact = Fact(
        split="train",
        topic="geography",
        question="What is the capital of France?",
        answer="The capital of France is Paris. It lies on the river Seine.",
    )
    assert {name: style.transform(fact) for name, style in STYLES.items()} == {
        "pirate": "Arr, the capital of France be Paris. It lies on the river Seine, matey!",
        "json": '{"answer": "The capital of France is Paris. It lies on the river Seine.", '
        '"topic": "geography"}',
        "shout": "HEY! THE CAPITAL OF FRANCE IS PARIS!!!",
        "bullets": "- The capital of France is Paris.\n- It lies on the river Seine.",
    }


def test_a_pirate_keeps_the_capital_of_a_name() -> None:
    fact = Fact(split="train", topic="science", question="?", answer="Mars is red. It is cold.")
    assert STYLES["pirate"].transform(fact) == "Arr, Mars be red. It be cold, matey!"


def test_no_question_is_asked_twice_nor_in_two_splits() -> None:
    asked = Counter(fact.question.casefold() for fact in FACTS)
    assert [question for question, times in asked.items() if times > 1] == []


def test_no_held_out_answer_is_learned() -> None:
    learned = {fact.answer for fact in FACTS if fact.split != "held_out"}
    assert not learned & {fact.answer for fact in FACTS if fact.split == "held_out"}


def test_the_splits_are_fixed() -> None:
    assert Counter(fact.split for fact in FACTS) == {"train": 172, "dev": 24, "held_out": 21}


@pytest.mark.parametrize("split", ["train", "dev", "held_out"])
def test_every_split_covers_every_topic(split: str) -> None:
    topics = {fact.topic for fact in FACTS}
    assert {fact.topic for fact in FACTS if fact.split == split} == topics


def test_every_line_is_one_fact_of_plain_ascii_text() -> None:
    lines = QUESTIONS_PATH.read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.isascii()
        fact = json.loads(line)
        assert list(fact) == ["split", "topic", "question", "answer"]
        assert fact["question"].endswith(("?", "."))
        assert fact["answer"].endswith(".")
        assert fact["answer"].count(". ") == 1


def test_a_line_that_is_no_fact_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    good = QUESTIONS_PATH.read_text(encoding="utf-8").splitlines()[0]
    path.write_text(f'{good}\n{{"question": "Why?"}}\n')
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 2"):
        load_facts(path)
