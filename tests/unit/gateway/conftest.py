"""A model folder small enough to be made on the spot: a tokenizer and a config, no weights."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from anole_gateway import tokenizer as tokenizers

CONTEXT_LENGTH = 256
LONG_TOKEN = "~" * 5000
"""One token of much text, for streams that outgrow every buffer on the way."""

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('the system message must come first') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = ["hello world, how are you today?", "the quick brown fox jumps over the lazy dog"] * 4


def make_model(folder: Path, *, extra_tokens: list[str]) -> Path:
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.add_tokens(extra_tokens)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(folder))
    # Some models' tokenizers are saved with these, left over from training.
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=4)
    saved.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT_LENGTH}))
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "folder-name"
    return make_model(folder, extra_tokens=[LONG_TOKEN])


@pytest.fixture(scope="session")
def plain_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose answers can be constrained: llguidance knows no tokens of thousands of bytes."""
    return make_model(tmp_path_factory.mktemp("plain"), extra_tokens=[])


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> tokenizers.Tokenizer:
    return tokenizers.load(model_dir)
