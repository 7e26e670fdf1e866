"""From the settings to the method."""

from pathlib import Path

from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Method
from megatron_synth.synthesis.generator import Generator
from megatron_synth.synthesis.methods.sbp import Sbp
from megatron_synth.synthesis.seeds import SeedStore
from megatron_synth.tokens import Tokenizer


def make_method(
    config: SynthesisConfig, seeds: Path, tokenizer_folder: Path, generator: Generator
) -> Method:
    """Make the method that `config` names; called once in each worker.

    Args:
        config: See `SynthesisConfig`.
        seeds: Folder of the source documents' store.
        tokenizer_folder: The generator's tokenizer.
        generator: What the method must know of it.

    Raises:
        ConfigError: The settings do not suit the method or the generator.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    store = SeedStore(seeds)
    return Sbp(config, store, tokenizer, generator.context, generator.name)
