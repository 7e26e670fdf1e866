"""The verb `synthesize`: documents to synthetic documents, by any method of METHODS 1."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.cli.megadocs import KINDS, make_megadocs
from megatron_synth.cli.products import Made, make_product, shared_work
from megatron_synth.config import (
    ConfigError,
    RunError,
    apply_overrides,
    parse_config,
    read_yaml,
)

if TYPE_CHECKING:
    from megatron_synth.synthesis import SynthesisConfig

EXAMPLE = (
    "Example: megatron-synth synthesize rephrase_hq --documents corpora/web/documents.jsonl.zst "
    "--model models/Llama-3.1-8B-Instruct --out corpora/web_rephrased --generations 4"
)

_HOW = {"engine", "ray", "workers", "mideval"}  # settings that decide no document


def synthesize(
    method: Annotated[
        str,
        typer.Argument(
            help="rephrase_hq, rephrase_qa, rephrase_faithful, reformat, faq, table, math, "
            "tutorial, textbook, latent_thoughts, nemotron_cc, sbp or self_distill; stitch or "
            "stretch: megadocs, without a model (docs/megadocs.md)",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new corpus", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option(
            help="The generator's folder in Hugging Face form; for an endpoint its config.json "
            "and tokenizer are enough",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings, such as temperature=1.0 or engine.concurrency=256", show_default=False
        ),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(
            help="The source documents: a file, folder or glob of JSONL (plain, .gz, .zst) or "
            "Parquet; self_distill has none",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The generator's; by default the model's folder", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with settings (docs/synthesis.md)", show_default=False),
    ] = None,
    prompt_file: Annotated[
        list[Path] | None,
        typer.Option(help="Replaces a prompt of the method; may be repeated", show_default=False),
    ] = None,
    generated: Annotated[
        list[str] | None,
        typer.Option(
            help="stitch, stretch: what was generated from the documents; may be repeated",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of validation documents: what holds 13 words in a row of one is dropped",
            show_default=False,
        ),
    ] = None,
    generations: Annotated[
        int | None,
        typer.Option(min=1, help="Different documents of each source", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write new documents with a language model, each with its provenance.

    A run that was killed goes on where it was when the same command is given again: every request
    is answered once.
    """
    if method in KINDS:
        make_megadocs(
            method,
            documents,
            generated,
            out,
            config=config,
            overrides=overrides,
            as_json=as_json,
        )
        return
    if model is None or generated:
        raise ConfigError(
            f"{method} is written by a model" if model is None else f"{method} stitches nothing",
            where="--model" if model is None else "--generated",
        )
    from megatron_synth.experiments.source import fingerprint
    from megatron_synth.runs import hash_json, shown_progress
    from megatron_synth.synthesis import (
        COUNTS,
        DOCUMENTS,
        DROPPED,
        describe_generator,
        find_array_task,
        load_prompts,
        synthesize,
        synthesize_share,
    )
    from megatron_synth.synthesis.card import CARD
    from megatron_synth.synthesis.gate import REPORT, SAMPLE
    from megatron_synth.tokens import Tokenizer

    settings = _settings(method, config, overrides, prompt_file, generations)
    if (documents is None) != (settings.method == "self_distill"):
        raise ConfigError(
            f"{method} needs source documents"
            if documents is None
            else "self_distill has no source documents",
            where="--documents",
        )
    task = find_array_task(settings)
    if not model.is_dir():
        raise ConfigError("no such folder", where=model)
    loaded = Tokenizer.load(tokenizer or model)
    content = {
        "prompts": [prompt.identity for prompt in load_prompts(settings)],
        "input": fingerprint(documents) if documents else None,
        "generator": describe_generator(settings, model, loaded, None).name,
    }
    if held_out is not None:
        content["held_out"] = fingerprint(str(held_out))
    dumped = settings.model_dump(mode="json")
    decides = {name: value for name, value in dumped.items() if name not in {*_HOW, "prompt_file"}}

    key = hash_json({"kind": "synthesize", "config": decides, **content})
    inputs = (settings, Path(documents) if documents else None, tokenizer or model, model, out)

    if task is not None:
        with shared_work(out, key) as unfinished, shown_progress() as progress:
            outstanding = (
                synthesize_share(*inputs, progress, task, held_out=held_out) if unfinished else ""
            )
        if outstanding:
            _say_outstanding(outstanding, task.index is None, out, as_json)
            return

    def make() -> Made:
        with shown_progress() as progress:
            counts = synthesize(*inputs, progress, held_out=held_out)
        logs = [path.name for path in out.glob("requests-*.log")]
        return Made(
            counts, [DOCUMENTS, DROPPED, CARD, COUNTS, REPORT, SAMPLE, *logs], loaded.fingerprint
        )

    counts = make_product(
        out,
        kind="synthesize",
        key=key,
        config={**dumped, **content, "documents": documents},
        make=make,
        patience=0 if task is None else math.inf,
    )
    if as_json:
        print_json({"folder": str(out), **counts})
        return
    _say_made(out / DOCUMENTS, counts)


def _settings(
    method: str,
    config: Path | None,
    overrides: list[str] | None,
    prompt_file: list[Path] | None,
    generations: int | None,
) -> "SynthesisConfig":
    from megatron_synth.synthesis import SynthesisConfig

    tree = apply_overrides(read_yaml(config) if config else {}, overrides or [])
    options: dict[str, Any] = {"method": method}
    if prompt_file:
        options["prompt_file"] = prompt_file
    if generations is not None:
        options["generations"] = generations
    for name, value in options.items():
        if tree.setdefault(name, value) != value:
            raise ConfigError(f"{name} is set twice, in other words", where=str(config or name))
    return parse_config(tree, SynthesisConfig, where=str(config or "synthesize"))


def _say_made(documents: Path, counts: dict[str, Any]) -> None:
    typer.echo(
        f"{documents}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
        f"of {counts['seeds']:,} source documents"
    )
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in counts["dropped"].items()) or "none"
    typer.echo(f"{counts['requests']:,} requests; dropped: {dropped}")
    unfit = {name: n for name, n in counts.items() if name.startswith(("inputs_", "seeds_")) and n}
    if unfit:
        typer.echo(", ".join(f"{n:,} {name}" for name, n in unfit.items()))


def _say_outstanding(tasks: str, outside: bool, out: Path, as_json: bool) -> None:
    """Say which tasks of the array are not done; an error where no task is asking."""
    submit = f"Submit again those that are no longer in the queue: sbatch --array={tasks}"
    if outside:
        raise RunError(f"tasks of the array are outstanding: {tasks}", where=out, fix=submit)
    if as_json:
        print_json({"folder": str(out), "outstanding": tasks})
        return
    typer.echo(f"{out}: this task is done; outstanding: {tasks}. {submit}")
