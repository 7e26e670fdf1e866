"""From the settings to the method and its prompts."""

from pathlib import Path

from megatron_synth.config import ConfigError
from megatron_synth.synthesis.answers import FORMS
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Method
from megatron_synth.synthesis.generator import Generator
from megatron_synth.synthesis.methods.asking import Setting
from megatron_synth.synthesis.methods.defaults import PROMPTLESS
from megatron_synth.synthesis.methods.latent_thoughts import LatentThoughts
from megatron_synth.synthesis.methods.nemotron_cc import PARSERS, nemotron_prompt
from megatron_synth.synthesis.methods.prompted import Prompted
from megatron_synth.synthesis.methods.sbp import Sbp
from megatron_synth.synthesis.methods.self_distill import SelfDistill
from megatron_synth.synthesis.methods.textbook import Textbook
from megatron_synth.synthesis.prompts import Prompt, load_prompt, read_prompt
from megatron_synth.synthesis.seeds import SeedStore
from megatron_synth.tokens import Tokenizer

_FIELDS = {
    "textbook": {
        "textbook_outline": frozenset({"text", "audience"}),
        "textbook_chapter": frozenset({"audience", "outline", "chapter"}),
    },
    "latent_thoughts": {"latent_thoughts": frozenset({"prefix", "suffix"})},
}
"""Prompts of each method, by file name, and the fields that it fills in; all others have one
prompt of their own name, with the source document as `text`."""


def load_prompts(config: SynthesisConfig) -> tuple[Prompt, ...]:
    """The prompts of a method, in the order in which they are asked; none for token ids.

    A user's file replaces the one that has the same fields.

    Raises:
        ConfigError: A file that is no prompt, or whose fields are no prompt's of this method.
    """
    if config.method in PROMPTLESS:
        return ()
    if config.method == "nemotron_cc":
        return (nemotron_prompt(config.nemotron_prompt),)
    wanted = _FIELDS.get(config.method, {config.method: frozenset({"text"})})
    sources: dict[str, str | Path] = {name: name for name in wanted}
    for file in config.prompt_file:
        fields = read_prompt(file).fields
        name = next((n for n, own in wanted.items() if own == fields), next(iter(wanted)))
        if sources[name] != name:
            raise ConfigError(
                f"replaces the same prompt as {sources[name]}",
                where=file,
                fix="Give one file for each prompt of the method.",
            )
        sources[name] = file
    return tuple(load_prompt(sources[name], fields) for name, fields in wanted.items())


def make_method(
    config: SynthesisConfig,
    prompts: tuple[Prompt, ...],
    seeds: Path | None,
    tokenizer_folder: Path,
    generator: Generator,
) -> Method:
    """Make the method that `config` names; called once in each worker.

    Args:
        config: See `SynthesisConfig`.
        prompts: See `load_prompts`; workers need no files.
        seeds: Folder of the source documents' store; None where the method has no source.
        tokenizer_folder: The generator's tokenizer.
        generator: What the method must know of it.

    Raises:
        ConfigError: The settings do not suit the method or the generator.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    if config.method == "self_distill":
        return SelfDistill(config, tokenizer, generator.context, generator.name)
    assert seeds is not None
    store = SeedStore(seeds)
    if config.method == "sbp":
        return Sbp(config, store, tokenizer, generator.context, generator.name)
    setting = Setting(config, store, tokenizer, generator.context, generator.name)
    if config.method == "textbook":
        return Textbook(setting, *prompts)
    [prompt] = prompts
    if config.method == "latent_thoughts":
        return LatentThoughts(setting, prompt)
    parsers = PARSERS if config.method == "nemotron_cc" else FORMS
    return Prompted(setting, prompt, parsers[prompt.answer])
