"""Verbs about the quality of synthetic corpora: `corpus quality`, `corpus concepts`."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.cli.products import Made, make_product
from megatron_synth.config import ConfigError, apply_overrides, parse_config, read_yaml

QUALITY_EXAMPLE = (
    "Example: megatron-synth corpus quality corpora/web_sbp --documents corpora/web --out "
    "quality/web_sbp --judge models/Qwen3-4B-Instruct duplicate_samples=100K"
)
CONCEPTS_EXAMPLE = (
    "Example: megatron-synth corpus concepts corpora/web_sbp --documents corpora/web --out "
    "concepts/web_sbp --judge models/Qwen3-4B-Instruct samples=200"
)

_TITLES = {
    "repetition": "repetition",
    "duplicate": "duplicate@N",
    "non_factual": "non-factual",
    "irrelevance": "irrelevance",
    "copying": "copying",
}

Judge = Annotated[
    Path | None,
    typer.Option(
        help="The judge's folder in Hugging Face form; or set engine.kind=endpoint",
        show_default=False,
    ),
]
Synthetic = Annotated[
    str, typer.Argument(help="Synthetic documents: a file, folder or glob", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, such as samples=500", show_default=False)
]
Settings = Annotated[
    Path | None, typer.Option(help="YAML with settings (docs/quality.md)", show_default=False)
]


def quality(
    synthetic: Synthetic,
    out: Annotated[Path, typer.Option(help="Folder for the table", show_default=False)],
    overrides: Overrides = None,
    documents: Annotated[
        str | None,
        typer.Option(help="The real documents they were made from", show_default=False),
    ] = None,
    judge: Judge = None,
    config: Settings = None,
    as_json: Json = False,
) -> None:
    """Repetition, duplicates and copies by rules; factuality and relevance by a judge model.

    The same figures of the real documents stand beside, and those of the SBP paper.
    """
    from megatron_synth.evaluation.quality import TABLE, QualityConfig, measure_quality
    from megatron_synth.experiments.source import fingerprint
    from megatron_synth.runs import hash_json, shown_progress, write_json
    from megatron_synth.synthesis.judges import JUDGE_LOG, judge_identity, open_judge

    tree = apply_overrides(read_yaml(config) if config else {}, overrides or [])
    settings = parse_config(tree, QualityConfig, where=str(config or "quality"))
    identity = judge_identity(settings.engine, judge)
    dumped = settings.model_dump(mode="json")
    decides = {name: value for name, value in dumped.items() if name != "engine"}
    inputs = [fingerprint(source) if source else None for source in (synthetic, documents)]
    key = hash_json({"kind": "quality", "config": decides, "inputs": inputs, "judge": identity})

    def make() -> Made:
        with shown_progress() as progress:
            if identity is None:
                figures = measure_quality(settings, synthetic, documents, None, progress)
            else:
                tokens = settings.max_answer_tokens
                engine = open_judge(settings.engine, judge, out / JUDGE_LOG, tokens)
                with closing(engine):
                    figures = measure_quality(settings, synthetic, documents, engine, progress)
        write_json(out / TABLE, figures)
        return Made(figures, [TABLE] if identity is None else [TABLE, JUDGE_LOG])

    figures = make_product(
        out,
        kind="quality",
        key=key,
        config={**dumped, "synthetic": synthetic, "documents": documents},
        make=make,
    )
    if as_json:
        print_json({"folder": str(out), **figures})
        return
    typer.echo("\n".join(_table(figures)))
    typer.echo(f"Table: {out / TABLE}")


def concepts(
    synthetic: Synthetic,
    documents: Annotated[
        str, typer.Option(help="The documents they were made from", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for what the judge says", show_default=False)],
    overrides: Overrides = None,
    judge: Judge = None,
    config: Settings = None,
    as_json: Json = False,
) -> None:
    """What synthetic documents took over from their seeds: a judge names the shared concept."""
    from megatron_synth.evaluation.concepts import CONCEPTS, ConceptConfig, analyse_concepts
    from megatron_synth.experiments.source import fingerprint
    from megatron_synth.runs import hash_json, shown_progress
    from megatron_synth.synthesis.judges import JUDGE_LOG, judge_identity, open_judge

    tree = apply_overrides(read_yaml(config) if config else {}, overrides or [])
    settings = parse_config(tree, ConceptConfig, where=str(config or "concepts"))
    identity = judge_identity(settings.engine, judge)
    if identity is None:
        raise ConfigError(
            "concepts are named by a judge", fix="Give --judge, or engine.kind=endpoint."
        )
    dumped = settings.model_dump(mode="json")
    decides = {name: value for name, value in dumped.items() if name != "engine"}
    inputs = [fingerprint(synthetic), fingerprint(documents)]

    def make() -> Made:
        tokens = settings.max_answer_tokens
        with shown_progress() as progress:
            engine = open_judge(settings.engine, judge, out / JUDGE_LOG, tokens)
            with closing(engine):
                counts = analyse_concepts(settings, synthetic, documents, engine, out, progress)
        return Made(counts, [CONCEPTS, JUDGE_LOG])

    counts = make_product(
        out,
        kind="concepts",
        key=hash_json({"kind": "concepts", "config": decides, "inputs": inputs, "judge": identity}),
        config={**dumped, "synthetic": synthetic, "documents": documents},
        make=make,
    )
    if as_json:
        print_json({"folder": str(out), **counts})
        return
    for row in counts["examples"]:
        typer.echo(f"{row['source_summary']} | {row['concept']} | {row['summary']}")
    typer.echo(
        f"{out / CONCEPTS}: {counts['read']:,} of {counts['asked']:,} pairs, "
        f"{counts['distinct_concepts']:,} different concepts"
    )


def _table(figures: Mapping[str, Any]) -> list[str]:
    """The table as lines of text: shares in percent, with their intervals."""
    rows = [["", *_TITLES.values()]]
    for name in ("synthetic", "real"):
        if figures[name] is not None:
            rows.append([name, *(_share(figures[name][column]) for column in _TITLES)])
    for name, row in figures["reference"].items():
        rows.append([name, *(_percent(row[column]) for column in _TITLES)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    of = figures["synthetic"]["duplicate"]["of"]
    lines.append(f"duplicate@N: N is {of:,} for synthetic documents, 1,000,000 in the paper")
    if figures["duplicate_equal"] is not None:
        both = figures["duplicate_equal"]
        lines.append(
            f"  at N = {both['real']['of']:,}: synthetic {_share(both['synthetic'])}, "
            f"real {_share(both['real'])}"
        )
    return lines


def _share(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "-"
    return f"{record['share']:.1%} ({record['low']:.1%} to {record['high']:.1%})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
