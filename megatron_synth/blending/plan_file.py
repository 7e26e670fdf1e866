"""A plan as a file: corpora and where they lie, amounts, phases, variants."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from megatron_synth.blending.config import (
    BlendConfig,
    Budget,
    Corpora,
    StreamConfig,
    tokens_for_count,
)
from megatron_synth.blending.plan import Plan
from megatron_synth.blending.sizes import CorpusSize, measure, require_names
from megatron_synth.blending.solver import solve
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.config import Config, ConfigError, parse_config, read_yaml
from megatron_synth.config.loading import apply_overrides, with_values

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class PhaseConfig(Config):
    """A further phase: another budget, other amounts, other corpora; the rest stays as it is."""

    name: str = Field(pattern=_NAME)
    """Of the phase, for the table and the plan's file."""
    budget: Annotated[Budget, BeforeValidator(tokens_for_count)] | None = None
    """Length of this phase alone."""
    global_batch_size: int | None = Field(default=None, ge=1)
    """Unset: as in the phase before."""
    corpora: Corpora = Field(default_factory=dict)
    """As in a blend; nothing is carried over from the phase before."""
    streams: dict[str, StreamConfig] = Field(default_factory=dict)
    """As in a blend."""


class BlendFile(BlendConfig):
    """A plan's file: a blend, the corpora that it names, and the phases that follow it.

    `sources` says what the corpora are, `corpora` and `streams` how much of each is used. In
    `variants` each name stands for values that replace those of the file; keys may be written
    with dots: `{half: {corpora.synthetic.share: 0.5}}`.
    """

    sources: dict[str, SourceConfig]
    """Every corpus that the blend or a phase names."""
    name: str = Field(default="plan", pattern=_NAME)
    """Of the first phase, for the table and the plan's file."""
    phases: tuple[PhaseConfig, ...] = ()
    """What follows, in order; every corpus goes on where it stood."""

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        names = [self.name, *(phase.name for phase in self.phases)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"phases share a name: {', '.join(twice)}")
        return self

    def blends(self) -> dict[str, BlendConfig]:
        """The blend of each phase, by name, in order.

        Raises:
            ConfigError: A phase is no blend.
        """
        fields = {name: getattr(self, name) for name in BlendConfig.model_fields}
        blends = {self.name: BlendConfig(**fields)}
        for phase in self.phases:
            given = {k: getattr(phase, k) for k in ("budget", "corpora", "streams")}
            if phase.global_batch_size is not None:
                fields["global_batch_size"] = phase.global_batch_size
            tree = {**fields, **given}
            blends[phase.name] = parse_config(tree, BlendConfig, where=f"phases.{phase.name}")
        return blends

    def solve(self, *, after: Plan | None = None, after_step: int | None = None) -> dict[str, Plan]:
        """The plan of each phase, by name, in order; `after` as in `solve`.

        Raises:
            ConfigError: As `solve`, with the phase's name; a corpus without a source.
            DataError: As `measure`.
        """
        blends = self.blends()
        for phase, blend in blends.items():
            require_names(blend.names, self.sources, where=f"{phase}: sources")
        wanted = sorted({name for blend in blends.values() for name in blend.names})
        sizes = {name: measure(self.sources[name], where=name) for name in wanted}
        plans: dict[str, Plan] = {}
        for name, blend in blends.items():
            plans[name] = _solved(blend, sizes, after, after_step, f"phase {name}" if plans else "")
            after, after_step = plans[name], None
        return plans


def read_plans(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    variant: str | None = None,
    after: Plan | None = None,
    after_step: int | None = None,
) -> dict[str, Plan]:
    """The plans that a YAML file asks for, by name: its phases, of each of its variants.

    Names are `PHASE`, or `VARIANT` (first phase) and `VARIANT.PHASE` where there are variants.

    Args:
        path: The file.
        overrides: `a.b=c` each, over every variant.
        variant: Only this one; `base` is the file without any.
        after: The plan of the phase before the first.
        after_step: Steps of it that were trained; all if None.

    Raises:
        ConfigError, DataError: As `BlendFile.solve`, with the variant's name; no such variant.
    """
    tree = read_yaml(path)
    variants = _variants(tree.pop("variants", None) or {}, path)
    if variant is not None:
        require_names([variant], {"base", *variants}, where=f"{path}: variants", what="variant")
        chosen = {variant: variants.get(variant, {})}
    else:
        chosen = variants or {"base": {}}
    plans: dict[str, Plan] = {}
    for name, values in chosen.items():
        where = str(path) if name == "base" else f"{path}, variant {name}"
        changed = apply_overrides(with_values(tree, values, where=where), overrides)
        file = parse_config(changed, BlendFile, where=where)
        try:
            solved = file.solve(after=after, after_step=after_step)
        except ConfigError as error:
            if name == "base":
                raise
            raise ConfigError(
                error.what, where=f"variant {name}: {error.where or 'blend'}", fix=error.fix
            ) from error
        named = _named(solved, None if name == "base" else name)
        twice = sorted(set(named) & set(plans))
        if twice:
            raise ConfigError(
                f"two plans would be called {twice[0]!r}", where=where, fix="Rename the variant."
            )
        plans |= named
    return plans


def _variants(given: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The variants of a file; their names become names of plans and of files."""
    if not isinstance(given, dict) or not all(isinstance(v, dict | None) for v in given.values()):
        raise ConfigError("variants must be names with keys and values each", where=path)
    variants = {
        str(name): values or {} for name, values in given.items()
    }  # YAML reads 50 as a number
    wrong = [name for name in variants if name == "base" or not re.fullmatch(_NAME, name)]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} cannot name a variant",
            where=f"{path}: variants",
            fix="Use letters, digits, dots, - and _; `base` is the file without any variant.",
        )
    return variants


def _named(solved: Mapping[str, Plan], variant: str | None) -> dict[str, Plan]:
    if variant is None:
        return dict(solved)
    first, *later = solved
    return {variant: solved[first]} | {f"{variant}.{name}": solved[name] for name in later}


def _solved(
    blend: BlendConfig,
    sizes: Mapping[str, CorpusSize],
    after: Plan | None,
    after_step: int | None,
    where: str,
) -> Plan:
    try:
        return solve(blend, sizes, after=after, after_step=after_step)
    except ConfigError as error:
        if not where:
            raise
        place = f"{where}: {error.where}" if error.where else where
        raise ConfigError(error.what, where=place, fix=error.fix) from error


def is_blend(tree: Mapping[str, Any]) -> bool:
    """Whether a YAML's content is a plan's file, not an experiment."""
    return "sources" in tree
