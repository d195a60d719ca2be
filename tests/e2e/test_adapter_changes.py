"""Adapters that are replaced, added, removed or broken while Anole serves."""

import shutil
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from examples.styles import STYLES as CHECKS
from tests.e2e.stack import BASE, EXAMPLES, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(300)]

QUESTION = "What do bees make? Answer me as you always do, please, and in one sentence."


def ask(client: OpenAI, model: str) -> tuple[str, int]:
    """A greedy answer, and how much of the prompt was known already."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=48,
    )
    details = answer.usage.prompt_tokens_details if answer.usage else None
    assert details is not None
    return (answer.choices[0].message.content or "").strip(), details.cached_tokens or 0


def put(source: Path, target: Path) -> None:
    """Replace an adapter's files one by one, as a careful user does."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(source / name, target / f"{name}.new")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (target / f"{name}.new").replace(target / name)


def test_an_adapter_replaced_in_place_never_answers_with_old_weights_or_old_keys_and_values(
    stack: Stack, client: OpenAI
) -> None:
    folder = stack.folder / "adapters" / "swapped"
    put(EXAMPLES / "pirate", folder)
    answer, _ = ask(client, "swapped")
    assert CHECKS["pirate"].check(answer)
    assert ask(client, "swapped")[1] > 0
    put(EXAMPLES / "shout", folder)
    answer, cached = ask(client, "swapped")
    assert CHECKS["shout"].check(answer), answer
    assert cached == 0
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(openai.APIStatusError):
        ask(client, "swapped")
    assert CHECKS["pirate"].check(ask(client, "pirate")[0])
    assert ask(client, BASE)[0]
    put(EXAMPLES / "pirate", folder)
    stack.until_listed("swapped")
    assert CHECKS["pirate"].check(ask(client, "swapped")[0])
