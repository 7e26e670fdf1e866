"""`synthesize stitch` and `synthesize stretch`: megadocs, which need no model."""

from pathlib import Path
from typing import Any

import typer

from megatron_synth.cli.answers import print_json
from megatron_synth.cli.products import Made, make_product
from megatron_synth.config import ConfigError, apply_overrides, parse_config, read_yaml

KINDS = ("stitch", "stretch")


def make_megadocs(
    kind: str,
    documents: str | None,
    generated: list[str] | None,
    out: Path,
    *,
    config: Path | None,
    overrides: list[str] | None,
    as_json: bool,
) -> None:
    """Build the megadocs of a corpus in `out`, and print what became of it."""
    from megatron_synth.experiments.source import fingerprint
    from megatron_synth.runs import hash_json, shown_progress
    from megatron_synth.synthesis.card import CARD
    from megatron_synth.synthesis.megadocs import MEGADOCS, MegadocsConfig, build_megadocs

    if documents is None or not generated:
        raise ConfigError(
            f"{kind} joins organic documents with what was generated from them",
            where="--documents" if documents is None else "--generated",
            fix="Give both.",
        )
    tree = apply_overrides(read_yaml(config) if config else {}, overrides or [])
    if tree.setdefault("kind", kind) != kind:
        raise ConfigError("kind is set twice, in other words", where=str(config or "kind"))
    settings = parse_config(tree, MegadocsConfig, where=str(config or kind))
    inputs = {
        "documents": fingerprint(documents),
        "generated": [fingerprint(source) for source in generated],
    }
    dumped = settings.model_dump(mode="json")

    def make() -> Made:
        with shown_progress() as progress:
            counts = build_megadocs(settings, documents, generated, out, progress)
        return Made(counts, [MEGADOCS, CARD])

    counts = make_product(
        out,
        kind=kind,
        key=hash_json({"kind": kind, "config": dumped, **inputs}),
        config={**dumped, "documents": documents, "generated": generated},
        make=make,
    )
    if as_json:
        print_json({"folder": str(out), **counts})
        return
    typer.echo(f"{out / MEGADOCS}: {counts['documents']:,} megadocs")
    for line in _lines(counts):
        typer.echo(line)


def _lines(counts: dict[str, Any]) -> list[str]:
    by_generations = ", ".join(
        f"{documents:,} documents with {generations}"
        for generations, documents in counts["by_generations"].items()
    )
    rest = ("unknown_sources", "missing_rationales", "tags_removed")
    noted = ", ".join(f"{counts[name]:,} {name}" for name in rest if counts.get(name))
    return [f"{counts['members']:,} generations: {by_generations}", *([noted] if noted else [])]
