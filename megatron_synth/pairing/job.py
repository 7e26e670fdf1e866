"""What the verb `pair` reads."""

from pydantic import Field

from megatron_synth.config import Config
from megatron_synth.engines.embedding import EmbedConfig
from megatron_synth.pairing.config import PairConfig


class PairJob(Config):
    """A corpus to pairs: the settings of both steps."""

    embedding: EmbedConfig = Field(default_factory=EmbedConfig)
    """How documents become vectors."""
    pairing: PairConfig = Field(default_factory=PairConfig)
    """Which documents are related."""
