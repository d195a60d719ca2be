"""The same decode step by transformers and by PEFT's mixed batches, for comparison."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from anole_worker.adapter_files import AdapterFile
from anole_worker.model_shape import ModelShape
from bench.interleaving import Call

_FIRST_TOKEN = 100


class PeftBatch:
    """transformers' model, and PEFT's adapters in it once some are added."""

    def __init__(
        self, folder: Path, shape: ModelShape, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        self._device = torch.device(device)
        self._shape = shape
        self._dtype = dtype
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True
            )
        self._model = loaded.to(self._device).eval()

    def add(self, file: AdapterFile, name: str) -> None:
        """Load an adapter as PEFT does it."""
        with _quiet():
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(
                    str(file.path), adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                self._model = PeftModel.from_pretrained(
                    self._model, str(file.path), adapter_name=name, autocast_adapter_dtype=False
                )

    def settle(self) -> None:
        """One precision throughout: rows of mixed types would be cast back and forth."""
        self._model.to(self._device, self._dtype).eval()

    def decode(self, num_rows: int, context: int, names: Sequence[str] | None = None) -> Call:
        """One new token for each row at the end of its context; names: each row's adapter."""
        cache = self._cache(num_rows, context - 1)
        tokens = torch.arange(_FIRST_TOKEN, _FIRST_TOKEN + num_rows, device=self._device).unsqueeze(
            1
        )
        chosen = {} if names is None else {"adapter_names": list(names)}

        @torch.inference_mode()
        def step() -> None:
            logits = self._model(tokens, past_key_values=cache, use_cache=True, **chosen).logits
            logits[:, -1].argmax(dim=-1).cpu()
            cache.crop(-1)

        return step

    def prefill(self, num_rows: int, num_tokens: int) -> Call:
        """A prompt for each row, and the logits of its last token."""
        count = num_rows * num_tokens
        tokens = torch.arange(count, device=self._device).view(num_rows, num_tokens) + _FIRST_TOKEN

        @torch.inference_mode()
        def run() -> None:
            logits = self._model(tokens, use_cache=True, logits_to_keep=1).logits
            logits[:, -1].argmax(dim=-1).cpu()

        return run

    def _cache(self, num_rows: int, num_tokens: int) -> Any:  # noqa: ANN401 - transformers is untyped
        """Keys and values that mean nothing: reading them takes as long."""
        cache = DynamicCache()
        size = (num_rows, self._shape.num_kv_heads, num_tokens, self._shape.head_dim)
        for layer in range(self._shape.num_layers):
            keys, values = (torch.randn(size).to(self._device, self._dtype) for _ in range(2))
            cache.update(keys, values, layer)
        return cache


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and advice."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
