"""Synthetic Bootstrapped Pretraining: a new document d2 from a seed document d1 (METHODS 1).

The prompt is token ids, no text: d1, then the separator on which the synthesizer was tuned. The
seed of request j is drawn uniformly with replacement, by a counter-based generator.
"""

from collections.abc import Iterator

import numpy as np

from megatron_synth.config import ConfigError
from megatron_synth.corpus import Document
from megatron_synth.engines import Request, Sampling
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Item, Writing, request_key
from megatron_synth.synthesis.draws import draws
from megatron_synth.synthesis.seeds import SeedStore
from megatron_synth.tokens import Tokenizer


class Sbp:
    """Requests and documents of SBP (see `contract.Method`).

    Args:
        config: Temperature, top-p, seed, longest answer.
        seeds: D.
        tokenizer: Of the generator; its separator stands between d1 and d2.
        context: The generator's, in tokens: d1, separator, d2 and EOS fit into it.
        generator: Name and fingerprint of the generator, `name@hash`.

    Raises:
        ConfigError: No seed is short enough for the context.
    """

    name = "sbp"
    total: int | None = None

    def __init__(
        self,
        config: SynthesisConfig,
        seeds: SeedStore,
        tokenizer: Tokenizer,
        context: int,
        generator: str,
    ) -> None:
        self._config = config
        self._seeds = seeds
        self._tokenizer = tokenizer
        self._context = context
        self._generator = generator
        self._limit = config.max_output_tokens or context // 2
        longest = context - 1 - (max(1, config.filters.min_tokens) + 1)
        self._rows = np.flatnonzero(seeds.lengths <= longest)
        if not len(self._rows):
            raise ConfigError(
                f"no seed document fits: the generator's context is {context} tokens, the shortest "
                f"document has {int(seeds.lengths.min())}, and its answer needs "
                f"{config.filters.min_tokens} more",
                fix="Use a generator with a longer context, or cut the documents.",
            )

    def items(self, shard: int, shards: int) -> Iterator[Item]:
        """See `contract.Method.items`; without end."""
        for index, choice, generation, seed in draws(self._config.seed, len(self._rows)):
            if index % shards == shard:
                row = int(self._rows[choice])
                yield Item(index, row, self._seeds.name(row), generation, seed)

    def write(self, item: Item) -> Writing:
        """See `contract.Method.write`: one request, one document."""
        request = self._request(item)
        [completion] = yield [request]
        text = completion.text or self._tokenizer.decode(completion.token_ids)
        sampling = request.sampling
        return Document(
            id=f"{item.source_id}/sbp-{self._config.round}-{item.generation}",
            text=text,
            source_id=item.source_id,
            method=self.name,
            generation=item.generation,
            round=self._config.round,
            generator=self._generator,
            prompt=None,
            seed=sampling.seed,
            sampling={
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
            },
            finish_reason=completion.finish_reason,
            token_counts={
                "prompt": completion.prompt_tokens,
                "output": completion.output_tokens,
                "text": len(self._tokenizer.encode(text)),
            },
            metadata={"request": item.index},
        )

    def source_text(self, item: Item) -> str:
        """See `contract.Method.source_text`."""
        assert item.source_row is not None
        return self._seeds.text(item.source_row)

    def count_inputs(self) -> dict[str, int]:
        """Seeds that leave no room for a d2 of `filters.min_tokens`; they are not drawn."""
        return {"seeds_too_long": len(self._seeds) - len(self._rows)}

    def _request(self, item: Item) -> Request:
        ids = self._tokenizer.encode(self.source_text(item))
        prompt = [*ids, self._tokenizer.separator_id]
        sampling = Sampling(
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            max_tokens=min(self._limit, self._context - len(prompt)),
            seed=item.seed,
            stop_ids=(self._tokenizer.eos_id,),
        )
        key = request_key(
            document=item.source_id,
            method=self.name,
            generation=item.generation,
            prompt=prompt,
            sampling=sampling,
            generator=self._generator,
        )
        return Request(key, prompt, sampling)


def banned_ids(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Ids that must never be sampled: unused rows of the output head and all control tokens but
    EOS.
    """
    control = tokenizer.special_ids | {tokenizer.separator_id}
    return sorted((control | set(range(tokenizer.vocab_size, vocab_size))) - {tokenizer.eos_id})
