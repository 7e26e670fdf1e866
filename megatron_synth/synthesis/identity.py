"""What a run's answers, and a product, depend on, as one hash each."""

from megatron_synth.runs import hash_json
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.generator import Generator
from megatron_synth.synthesis.prompts import Prompt
from megatron_synth.synthesis.seeds import SeedStore

_DECIDES_ANSWERS = {
    *("method", "seed", "round", "temperature", "top_p", "max_output_tokens", "shards"),
    *("generations", "max_input_tokens", "long_input", "audiences"),
}


def run_hash(
    config: SynthesisConfig,
    prompts: tuple[Prompt, ...],
    seeds: SeedStore | None,
    generator: Generator,
) -> str:
    """Everything that an answer depends on; a request log belongs to one such hash."""
    return hash_json(
        {
            "config": config.model_dump(mode="json", include=_DECIDES_ANSWERS),
            "min_tokens": config.filters.min_tokens,  # decides which seeds have room
            "prompts": [prompt.identity for prompt in prompts],
            "seeds": seeds.fingerprint if seeds else None,
            "generator": generator.name,
            "context": generator.context,
        }
    )


def product_hash(run: str, config: SynthesisConfig, held_out: str | None = None) -> str:
    """Everything that the product depends on besides the answers.

    Args:
        run: See `run_hash`.
        config: The filters, and how much is wanted.
        held_out: Hash of the held-out documents, where there are any.
    """
    return hash_json(
        {
            "run": run,
            "tokens": config.tokens,
            "cap": config.request_cap,
            "tries": config.tries,  # an answer that cannot be parsed is asked for again
            "filters": config.filters.model_dump(mode="json"),
            **({} if held_out is None else {"held_out": held_out}),
        }
    )
