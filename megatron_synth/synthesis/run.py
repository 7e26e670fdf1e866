"""The synthesis step: a generator and seed documents in; kept and dropped documents out."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import zstandard

from megatron_synth.config import ConfigError, RunError
from megatron_synth.corpus import Document, document_writer, list_files, read_documents
from megatron_synth.corpus.document import from_record
from megatron_synth.engines import Engine
from megatron_synth.engines import make_engine as start_engine
from megatron_synth.engines.vllm_settings import VllmSettings
from megatron_synth.runs import Progress, hash_file, hash_json, write_json
from megatron_synth.synthesis.card import CARD, write_card
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Method
from megatron_synth.synthesis.filters import FilterContext, read_held_out
from megatron_synth.synthesis.gate import pass_gate
from megatron_synth.synthesis.generator import Generator, describe_generator
from megatron_synth.synthesis.identity import product_hash, run_hash
from megatron_synth.synthesis.methods.defaults import DEFAULTS, PROMPTLESS
from megatron_synth.synthesis.methods.making import load_prompts, make_method
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.seeds import SeedStore, build_seeds
from megatron_synth.synthesis.state import read_state
from megatron_synth.synthesis.watching import watch
from megatron_synth.tokens import Tokenizer

DOCUMENTS = "documents.jsonl.zst"
DROPPED = "dropped.jsonl.zst"
COUNTS = "counts.json"
_WORK = ".work"
_TOTALS = (
    "requests",
    "documents",
    "tokens",
    "prompt_tokens",
    "output_tokens",
    "surplus_requests",
    "asked_again",
    "special_spellings",
    "replacement_characters",
)


def synthesize(
    config: SynthesisConfig,
    documents: Path | Iterable[Document] | None,
    tokenizer_folder: Path,
    model_folder: Path,
    out: Path,
    progress: Progress,
    *,
    generator_name: str | None = None,
    held_out: Path | None = None,
    make_engine: Callable[[], Engine] | None = None,
) -> dict[str, Any]:
    """Generate until `config.tokens` tokens pass the filters, or all documents are made.

    Writes to `out`: `documents.jsonl.zst` (with provenance), `dropped.jsonl.zst` (with
    `metadata.drop_reason`), one `requests-NNNNN.log` a shard, a dataset card in `README.md`, and
    `counts.json`, written last.
    A killed run goes on from the logs when it is started again with the same arguments: every
    request is answered once, and a finished run answers at once from `counts.json`.

    Args:
        config: See `SynthesisConfig`.
        documents: The source documents: anything that `read_documents` reads, or documents;
            None for self_distill, which has none.
        tokenizer_folder: The generator's tokenizer.
        model_folder: The generator, in Hugging Face form.
        out: Output folder; may hold a killed try's work.
        progress: Kept tokens of the target.
        generator_name: Recorded as the generator's name; the model folder's name where not set.
        held_out: JSONL of held-out documents: what holds a run of 13 words of one is dropped as
            `held_out_text`, so that no validation text is trained on by way of the generator.
        make_engine: Another engine than vLLM on `model_folder`; it must be picklable where Ray
            is used.

    Returns:
        The counts: requests, documents, tokens, dropped (by reason), prompt_tokens,
        output_tokens, surplus_requests (answered, but not needed for the target), asked_again
        (after restarts), special_spellings and replacement_characters (kept documents that hold
        such), seeds, how many of them did not fit (seeds_too_long; inputs_cut, inputs_chunked,
        inputs_skipped), seconds and tokens_per_second of generation; with `held_out` also
        held_out_documents and held_out_grams (distinct).

    Raises:
        DataError: A folder is missing or damaged, there are no seeds, or no held-out documents.
        ConfigError: No document fits the model's context; a prompt file is wrong; vLLM cannot
            run the model here.
        RunError: See `Shard.run`; or memory, disk, Ray.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    generator = describe_generator(config, model_folder, tokenizer, generator_name)
    prompts = load_prompts(config)
    progress.phase("reading the source documents")
    work = out.absolute() / _WORK
    work.mkdir(parents=True, exist_ok=True)
    seeds = _open_seeds(config, documents, tokenizer, work)
    run = run_hash(config, prompts, seeds, generator)
    guarded: dict[str, int] = {}
    if held_out is not None:
        held_out = held_out.absolute()
        grams = read_held_out(held_out).counts  # a missing file says so before Ray starts
        guarded = {"held_out_documents": grams["queries"], "held_out_grams": grams["grams"]}
    product = product_hash(run, config, None if held_out is None else hash_file(held_out))
    counts = _finished(out, product)
    if counts is None:
        make_this_method = partial(
            make_method,
            config,
            prompts,
            seeds.folder if seeds else None,
            tokenizer_folder.absolute(),
            generator,
        )
        start = partial(
            _start_engine, config, model_folder.absolute(), tokenizer_folder.absolute(), generator
        )
        context = FilterContext.of(config, tuple(prompt.wording for prompt in prompts), held_out)
        method = make_this_method()  # one that refuses the settings does so before Ray starts
        generate = partial(
            _generate,
            config,
            run,
            make_this_method,
            make_engine or start,
            context,
            method.total,
            progress,
        )
        if config.mideval is not None:
            pass_gate(config, out, work, run, product, method, context, generate, progress)
        places = Places(out.absolute(), work / product[:12])
        places.work.mkdir(exist_ok=True)
        generate(places)
        progress.phase("writing documents")
        counts = _merge(config, places, tokenizer, out)
        counts |= {"seeds": len(seeds) if seeds else 0, **method.count_inputs(), **guarded}
        write_card(out / CARD, config, counts, _read_part(out / DOCUMENTS), DOCUMENTS)
        write_json(out / COUNTS, {"product": product, **counts})
    shutil.rmtree(work, ignore_errors=True)
    return counts


def _generate(
    config: SynthesisConfig,
    run: str,
    make_method: Callable[[], Method],
    make_engine: Callable[[], Engine],
    context: FilterContext,
    total: int | None,
    progress: Progress,
    places: Places,
    sample: int | None = None,
) -> None:
    """Make the shards that are not done; of a sample, the beginning of the first one."""
    # Curator and Ray take seconds to import: only where they are needed.
    from megatron_synth.synthesis.pipeline import run_stages
    from megatron_synth.synthesis.stages import GenerationStage

    shards = range(config.shards if sample is None else 1)
    open_shards = [n for n in shards if not places.is_done(n)]
    if not open_shards:
        return
    shown = config
    if sample is not None:
        config = config.model_copy(update={"workers": 1})
        shown = config.model_copy(update={"tokens": None, "shards": 1})
        total = sample if total is None else min(sample, total)
    progress.phase("starting Ray and the engine")
    stage = GenerationStage(
        config, places, run, make_method, make_engine, context=context, sample=sample
    )
    with watch(progress, shown, places, total, stage.resources.gpus):
        run_stages(config, places, stage, open_shards)


def _open_seeds(
    config: SynthesisConfig,
    documents: Path | Iterable[Document] | None,
    tokenizer: Tokenizer,
    work: Path,
) -> SeedStore | None:
    """A store made of files is kept for the next try; other documents are encoded anew."""
    if (documents is None) != (config.method == "self_distill"):
        raise ConfigError(
            "self_distill takes no documents"
            if documents is not None
            else f"{config.method} needs documents",
            where="documents",
        )
    if documents is None:
        return None
    if isinstance(documents, Path):
        files = [hash_file(path) for path in list_files(documents)]
        name = f"seeds-{hash_json([files, tokenizer.fingerprint])[:12]}"
        return build_seeds(read_documents(documents), tokenizer, work / name)
    shutil.rmtree(work / "seeds", ignore_errors=True)
    return build_seeds(documents, tokenizer, work / "seeds")


def _finished(out: Path, product: str) -> dict[str, Any] | None:
    path = out / COUNTS
    if not path.is_file():
        return None
    counts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return counts if counts.pop("product") == product else None


def _start_engine(
    config: SynthesisConfig, model_folder: Path, tokenizer_folder: Path, generator: Generator
) -> Engine:
    """Without a tokenizer where prompts and answers are token ids: the method has its own."""
    import torch

    tokenizer = None if config.method in PROMPTLESS else Tokenizer.load(tokenizer_folder)
    engine = config.engine
    if isinstance(engine, VllmSettings) and engine.speculation is None:
        # On a CPU the tokens that were guessed wrong cost as much as right ones.
        pays = DEFAULTS[config.method].repeats_source and torch.cuda.is_available()
        engine = engine.model_copy(update={"speculation": "ngram" if pays else "off"})
    return start_engine(engine, model_folder, tokenizer, generator.banned)


def _merge(
    config: SynthesisConfig, places: Places, tokenizer: Tokenizer, out: Path
) -> dict[str, Any]:
    """Join the shards' files, in order, and add up their counts."""
    totals: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with document_writer(out / DOCUMENTS) as kept_file, document_writer(out / DROPPED) as rest:
        for number in range(config.shards):
            generated = places.read_generated(number)
            assert generated is not None, "the pipeline ended, and a shard is not generated"
            totals["surplus_requests"] += generated.answers
            totals["asked_again"] += generated.asked_again
            for part in range(generated.parts):
                for document in _read_part(places.kept(number, part)):
                    totals["special_spellings"] += bool(
                        tokenizer.count_special_spellings(document.text)
                    )
                    kept_file.write(document)
                for document in _read_part(places.dropped(number, part)):
                    rest.write(document)
                counts = json.loads(places.counts(number, part).read_text(encoding="utf-8"))
                dropped.update(counts.pop("dropped"))
                totals.update(counts)
    totals["surplus_requests"] -= totals["requests"]
    if not totals["documents"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.most_common()) or "none"
        raise RunError(
            f"no document passed the filters; dropped: {reasons}",
            where=out / DROPPED,
            fix="Look at the answers there; the generator may be too weak for the method, or "
            "synthesis.filters too strict.",
        )
    states = [read_state(places.state(number)) for number in range(config.shards)]
    seconds = sum(s.seconds for s in states) / min(config.workers, config.shards)
    output_tokens = sum(s.new_output_tokens for s in states)
    return {
        **{name: totals[name] for name in _TOTALS},
        "dropped": dict(dropped.most_common()),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(output_tokens / seconds, 1) if output_tokens else None,
    }


def _read_part(path: Path) -> Iterator[Document]:
    # A part without documents is a whole file with no lines; `read_documents` would refuse it.
    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from_record(json.loads(line), default_id="")
