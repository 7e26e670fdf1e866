"""What can be said of an experiment before anything is made: its plans, whether its layouts fit."""

from megatron_synth.blending import CorpusSize, Plan, solve
from megatron_synth.config import ConfigError
from megatron_synth.experiments.config import ExperimentConfig, ranks_of
from megatron_synth.models import check_layout

_CHARACTERS_A_DOCUMENT = 800


def declared_plans(config: ExperimentConfig) -> dict[str, Plan]:
    """The plan of every arm, were each corpus to have just the tokens that the config asks for.

    Raises:
        ConfigError: An arm's blend cannot be met.
    """
    sizes = declared_sizes(config)
    plans = {}
    for arm in config.arms:
        try:
            plans[arm] = solve(config.blend(arm), sizes)
        except ConfigError as error:
            where = f"arms.{arm}" + (f": {error.where}" if error.where else "")
            raise ConfigError(error.what, where=where, fix=error.fix) from error
    return plans


def check_layouts(config: ExperimentConfig) -> None:
    """Refuse what could not be trained as laid out, hours before the step that would say so.

    Raises:
        ConfigError: The model, or the global batch, cannot be split over a training step's ranks.
    """
    model = config.model.model_copy(update={"vocab_size": config.tokenizer.vocab_size})
    for name in ("training", "synthesizer"):
        settings = getattr(config, name)
        if settings is None:
            continue
        try:
            check_layout(model, settings.parallel)
            settings.micro_batches(ranks_of(settings))
        except ConfigError as error:
            raise ConfigError(error.what, where=name, fix=error.fix) from error


def declared_sizes(config: ExperimentConfig) -> dict[str, CorpusSize]:
    """Tokens as the config asks for them; documents guessed from them (they decide nothing)."""
    tokens = {"organic": config.split.organic_tokens, "pool": config.split.pool_tokens}
    if config.synthesis is not None and config.synthesis.tokens is not None:
        tokens["synthetic"] = config.synthesis.tokens
    return {
        name: CorpusSize(count, max(1, count // (_CHARACTERS_A_DOCUMENT // 4)))
        for name, count in tokens.items()
    }
