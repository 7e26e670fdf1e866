"""Unconditional samples of an earlier model on the same data (METHODS 1; megadocs 5).

The prompt is the one token after which a document begins in training: BOS, or EOS where the
tokenizer has no BOS. There is no source document.
"""

from collections.abc import Iterator
from itertools import count

from megatron_synth.corpus import Document
from megatron_synth.engines import Request, Sampling
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Item, Writing, request_key
from megatron_synth.synthesis.draws import draw
from megatron_synth.tokens import Tokenizer

_BLOCK = 4096


class SelfDistill:
    """Requests and documents of self-distillation (see `contract.Method`).

    Args:
        config: Temperature, top-p, seed, longest answer.
        tokenizer: Of the generator.
        context: The generator's, in tokens; the longest answer where the settings name none.
        generator: Name and fingerprint of the generator, `name@hash`.
    """

    name = "self_distill"
    total: int | None = None

    def __init__(
        self, config: SynthesisConfig, tokenizer: Tokenizer, context: int, generator: str
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._generator = generator
        self._limit = min(config.max_output_tokens or context, context - 1)

    def items(self, shard: int, shards: int) -> Iterator[Item]:
        """See `contract.Method.items`; without end."""
        for start in count(0, _BLOCK):
            seeds = draw(self._config.seed, start, _BLOCK, 1)[1]
            for index in range(start, start + _BLOCK):
                if index % shards == shard:
                    yield Item(index, None, None, index, int(seeds[index - start]))

    def write(self, item: Item) -> Writing:
        """See `contract.Method.write`: one request, one document."""
        request = self._request(item)
        [completion] = yield [request]
        text = completion.text or self._tokenizer.decode(completion.token_ids)
        sampling = request.sampling
        return Document(
            id=f"{self.name}-{self._config.round}-{item.index}",
            text=text,
            method=self.name,
            generation=item.generation,
            round=self._config.round,
            generator=self._generator,
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
        """There is none."""
        return ""

    def count_inputs(self) -> dict[str, int]:
        """There are none."""
        return {}

    def _request(self, item: Item) -> Request:
        bos = self._tokenizer.bos_id
        prompt = [self._tokenizer.eos_id if bos is None else bos]
        sampling = Sampling(
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            max_tokens=self._limit,
            seed=item.seed,
            stop_ids=(self._tokenizer.eos_id,),
        )
        key = request_key(
            document=None,
            method=self.name,
            generation=item.generation,
            prompt=prompt,
            sampling=sampling,
            generator=self._generator,
        )
        return Request(key, prompt, sampling)
