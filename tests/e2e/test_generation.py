"""What requests can ask of a generation, with the real model and the SDK that users have."""

import json
import math

import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.stack import BASE

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(300)]

LONG_PROMPT = "The bees in the garden fly from flower to flower and carry pollen home. " * 12

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "country": {"type": "string", "enum": ["France", "Japan", "Peru"]},
        "population_millions": {"type": "integer", "minimum": 0, "maximum": 50},
    },
    "required": ["city", "country", "population_millions"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("model", [BASE, "pirate"])
def test_a_schema_is_kept_to_by_base_and_adapter(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me of a big city, as JSON."}],
        max_tokens=120,
        temperature=0.8,
        seed=3,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"city", "country", "population_millions"}
    assert found["country"] in {"France", "Japan", "Peru"}
    assert 0 <= found["population_millions"] <= 50
    assert answer.choices[0].finish_reason == "stop"


def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="response_format"):
        client.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": "Hi"}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "no such type"}},
            },
        )


def test_greedy_logprobs_name_the_token_that_was_drawn_first(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=BASE,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=16,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.choices[0].message.content == "The capital of France is Paris."
    tokens = "".join(token.token for token in logprobs.content)
    assert tokens == f"{answer.choices[0].message.content}<|im_end|>"
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.001


def test_echo_tells_the_prompts_logprobs_and_generates_nothing(client: OpenAI) -> None:
    answer = client.completions.create(
        model=BASE, prompt="The capital of France is Paris", echo=True, max_tokens=0, logprobs=1
    )
    choice = answer.choices[0]
    assert choice.text == "The capital of France is Paris"
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or ()) == choice.text
    first, *rest = choice.logprobs.token_logprobs or [0.0]
    assert not first
    assert all(logprob <= 0 for logprob in rest)
    assert rest[-1] > math.log(0.2)  # Paris


def test_n_answers_differ_where_sampled_and_not_where_greedy(client: OpenAI) -> None:
    def ask(temperature: float) -> list[str | None]:
        answer = client.chat.completions.create(
            model="shout",
            messages=[{"role": "user", "content": "Tell me a story about a fox."}],
            max_tokens=16,
            temperature=temperature,
            seed=1,
            n=3,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 48
        return [choice.message.content for choice in answer.choices]

    assert len(set(ask(1.2))) == 3
    # Of three alike one is computed and two find its prompt: in bfloat16 a near-tie can then fall
    # the other way, so only the beginnings must be equal.
    assert len({(answer or "")[:8] for answer in ask(0)}) == 1


def test_penalties_end_a_repetition(client: OpenAI) -> None:
    def words(penalty: float) -> list[str]:
        answer = client.completions.create(
            model=BASE,
            prompt="na na na na na na na na na na",
            max_tokens=24,
            temperature=0,
            frequency_penalty=penalty,
            presence_penalty=penalty,
        )
        return answer.choices[0].text.split()

    assert words(0).count("na") > 8
    assert words(2).count("na") <= 8


def test_a_bias_can_force_and_forbid_a_token(client: OpenAI) -> None:
    def first_token(bias: dict[str, int]) -> str:
        answer = client.completions.create(
            model=BASE, prompt="One, two,", max_tokens=1, temperature=0, logit_bias=bias, logprobs=0
        )
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.tokens is not None
        return answer.choices[0].logprobs.tokens[0]

    plain = first_token({})
    assert first_token({"260": 100}) != plain
    assert first_token({"260": 100}) == first_token({"260": 99})


def test_min_tokens_keeps_an_answer_from_ending(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=BASE,
        messages=[{"role": "user", "content": "Say yes."}],
        temperature=0,
        max_tokens=40,
        extra_body={"min_tokens": 40},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40


def test_a_choice_is_one_of_the_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="pirate",
        messages=[{"role": "user", "content": "Is the sky blue or green?"}],
        temperature=1.0,
        extra_body={"structured_outputs": {"choice": ["blue", "green (really)"]}},
    )
    assert answer.choices[0].message.content in {"blue", "green (really)"}


@pytest.mark.parametrize("model", [BASE, "json"])
def test_a_prompt_that_begins_alike_is_not_computed_again(client: OpenAI, model: str) -> None:
    def ask(ending: str) -> tuple[int, int, str]:
        answer = client.completions.create(
            model=model, prompt=LONG_PROMPT + ending, max_tokens=4, temperature=0
        )
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        return usage.prompt_tokens, cached, answer.choices[0].text

    first = ask("Then they")
    total, cached, _ = ask("At night they")
    assert total - cached < 32
    again = ask("Then they")
    assert again[2] == first[2]


def test_prompts_are_not_shared_between_adapters(client: OpenAI) -> None:
    prompt = "Once there was a queen of the bees who lived in a hollow tree. " * 8
    cached = []
    for model in ("shout", "bullets", "shout"):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=1)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[0] == cached[1] == 0
    assert cached[2] > 0
