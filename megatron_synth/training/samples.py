"""A few continuations in the course of training, for a person to read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_synth.config import ConfigError
from megatron_synth.runtime import device


@dataclass(frozen=True)
class Samples:
    """What to continue, and how often.

    Attributes:
        prompts: Token ids of each, at least one.
        eos_id: Begins every prompt, as in training, and ends a continuation.
        decode: Ids to text.
        every: Steps between them.
        tokens: Most tokens of a continuation.
    """

    prompts: Sequence[Sequence[int]]
    eos_id: int
    decode: Callable[[Sequence[int]], str]
    every: int
    tokens: int

    def taken(self, model: Any, sequence_length: int) -> Iterator[dict[str, str]]:
        """Prompt and continuation of each; every rank calls it."""
        for prompt in self.prompts:
            ids = continue_greedily(
                model, [self.eos_id, *prompt], self.tokens, self.eos_id, sequence_length
            )
            yield {"prompt": self.decode(prompt), "text": self.decode(ids)}


def continue_greedily(
    model: Any, prompt: Sequence[int], tokens: int, eos_id: int, sequence_length: int
) -> list[int]:
    """The likeliest token, again and again; without a cache, so for short texts only.

    Every rank calls it with the same prompt; the model may be split by tensor or expert
    parallelism.

    Args:
        model: A Megatron-Core GPT, wrapped or not; its mode is put back.
        prompt: Token ids, at least one.
        tokens: Most tokens to add.
        eos_id: Ends the text; not in the result.
        sequence_length: The text ends before it is longer than this.

    Returns:
        The ids that follow the prompt.

    Raises:
        ConfigError: The model is split into pipeline stages, or the prompt is too long.
    """
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        raise ConfigError(
            "samples are not taken from a model in pipeline stages",
            where="samples",
            fix="Leave them out, or set pipeline_parallel to 1.",
        )
    if len(prompt) >= sequence_length:
        raise ConfigError(
            f"a prompt has {len(prompt)} tokens with EOS, windows have {sequence_length}",
            where="samples",
            fix="Shorten it.",
        )
    # Sequence parallelism wants a multiple of the ranks; attention is causal, so what stands
    # behind the text changes nothing, and one length serves all steps.
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    longest = min(sequence_length, len(prompt) + tokens)
    padded = -(-longest // ranks) * ranks
    text = torch.zeros(1, padded, dtype=torch.long, device=device())
    text[0, : len(prompt)] = torch.tensor(list(prompt), device=device())
    positions = torch.arange(padded, device=device())[None]
    added: list[int] = []
    with _evaluating(model), torch.no_grad():
        for end in range(len(prompt), longest):
            logits = model(input_ids=text, position_ids=positions, attention_mask=None)
            likeliest = _likeliest(logits[0, end - 1].double(), _real_ids(model))
            if likeliest == eos_id:
                break
            text[0, end] = likeliest
            added.append(likeliest)
    return added


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _real_ids(model: Any) -> int:
    while not hasattr(model, "unpadded_vocab_size"):
        model = model.module
    return int(model.unpadded_vocab_size)


def _likeliest(logits: torch.Tensor, real_ids: int) -> int:
    """The id with the highest of the logits [V / tensor_parallel] that the ranks hold."""
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    if ranks > 1:
        parts = [torch.empty_like(logits) for _ in range(ranks)]
        group = parallel_state.get_tensor_model_parallel_group()
        dist.all_gather(parts, logits.contiguous(), group=group)
        logits = torch.cat(parts)
    return int(logits[:real_ids].argmax())
