"""Strict configs: YAML and `a.b=c` overrides in, frozen typed objects out.

An unknown key, a wrong type or a missing value raises `ConfigError`, which names the place and
the nearest valid key. Everything a user can get wrong is one of the errors defined here.
Cost: none worth naming; this room imports pydantic and PyYAML only.
"""

from megatron_synth.config.errors import (
    ConfigError,
    DataError,
    MegatronSynthError,
    RunError,
    UserError,
)
from megatron_synth.config.loading import apply_overrides, load_config, parse_config, read_yaml
from megatron_synth.config.schema import Config
from megatron_synth.config.units import Count, format_count, parse_count

__all__ = [
    "Config",
    "ConfigError",
    "Count",
    "DataError",
    "MegatronSynthError",
    "RunError",
    "UserError",
    "apply_overrides",
    "format_count",
    "load_config",
    "parse_config",
    "parse_count",
    "read_yaml",
]
