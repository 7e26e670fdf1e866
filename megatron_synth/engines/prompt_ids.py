"""Token ids of prompts and texts of answers, where our own tokenizer and not vLLM's does both."""

from collections.abc import Sequence
from pathlib import Path

from megatron_synth.config import ConfigError
from megatron_synth.engines.chat import read_chat_form
from megatron_synth.engines.requests import Request, join_system
from megatron_synth.engines.vllm_settings import VllmSettings
from megatron_synth.tokens import Tokenizer


class PromptIds:
    """What a model is asked and what it answered, as ids and as text.

    Args:
        config: Says whether text prompts take the model's chat form.
        folder: The model's.
        vocab_size: Rows of its output head.
        tokenizer: The model's; without one, prompts must be token ids and answers have no text.

    Attributes:
        stop_ids: Ids that end the answer to a text prompt, besides the request's own: the chat
            form's, or the tokenizer's EOS.

    Raises:
        ConfigError: The model's chat template cannot be used.
        DataError: A file of the model folder is damaged.
    """

    def __init__(
        self, config: VllmSettings, folder: Path, vocab_size: int, tokenizer: Tokenizer | None
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._chat = (
            read_chat_form(folder, tokenizer, config.chat, config.chat_options)
            if tokenizer
            else None
        )
        if self._chat:
            self.stop_ids = self._chat.stop_ids
        else:
            self.stop_ids = frozenset({tokenizer.eos_id} if tokenizer else ())

    def encode(self, request: Request) -> tuple[list[int], frozenset[int]]:
        """Ids of the prompt, and those that end its answer.

        Raises:
            ValueError: The model cannot take this prompt. One bad id would end the whole engine:
                vLLM itself checks ids only with a tokenizer.
            ConfigError: It is text, and there is no tokenizer.
        """
        stop_ids = frozenset(request.sampling.stop_ids)
        if isinstance(request.prompt, str):
            ids = self._encode_text(request.prompt, request.system)
            stop_ids |= self.stop_ids
        else:
            ids = request.prompt
        if not ids:
            raise ValueError("the prompt is empty")
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise ValueError(f"a token id lies outside 0..{self._vocab_size - 1}")
        return ids, stop_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer; empty without a tokenizer."""
        return self._tokenizer.decode(ids) if self._tokenizer else ""

    def _encode_text(self, prompt: str, system: str | None) -> list[int]:
        if self._tokenizer is None:
            raise ConfigError("a text prompt needs an engine with a tokenizer")
        if self._chat:
            return self._chat.encode(prompt, system)
        return self._tokenizer.encode(join_system(system, prompt))
