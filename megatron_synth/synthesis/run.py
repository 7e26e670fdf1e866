"""The synthesis step: a generator and seed documents in; kept and dropped documents out."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from megatron_synth.config import ConfigError
from megatron_synth.corpus import Document, list_files, read_documents
from megatron_synth.engines import Engine
from megatron_synth.engines import make_engine as start_engine
from megatron_synth.engines.vllm_settings import VllmSettings
from megatron_synth.runs import (
    Progress,
    exclusive,
    hash_file,
    hash_file_once,
    hash_json,
    write_json,
)
from megatron_synth.synthesis.array import ArrayTask
from megatron_synth.synthesis.card import CARD, write_card
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Method
from megatron_synth.synthesis.filters import FilterContext, read_held_out
from megatron_synth.synthesis.gate import pass_gate
from megatron_synth.synthesis.generator import Generator, describe_generator
from megatron_synth.synthesis.identity import product_hash, run_hash
from megatron_synth.synthesis.merging import DOCUMENTS, merge_shards, read_part_file
from megatron_synth.synthesis.methods.defaults import DEFAULTS, PROMPTLESS
from megatron_synth.synthesis.methods.making import load_prompts, make_method
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.prompts import Prompt
from megatron_synth.synthesis.seeds import SeedStore, build_seeds
from megatron_synth.synthesis.watching import watch
from megatron_synth.tokens import Tokenizer

COUNTS = "counts.json"
_WORK = ".work"


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
    step = _prepare(
        config,
        documents,
        tokenizer_folder,
        model_folder,
        out,
        progress,
        generator_name,
        held_out,
        make_engine,
    )
    counts = step.finished()
    if counts is None:
        step.make(range(config.shards))
        counts = step.merge()
    shutil.rmtree(step.work, ignore_errors=True)
    return counts


def synthesize_share(
    config: SynthesisConfig,
    documents: Path | None,
    tokenizer_folder: Path,
    model_folder: Path,
    out: Path,
    progress: Progress,
    task: ArrayTask,
    *,
    generator_name: str | None = None,
    held_out: Path | None = None,
    make_engine: Callable[[], Engine] | None = None,
) -> str:
    """Make one array task's shards, beside other tasks that do the same for theirs.

    What tasks share is made once: the first one builds the store of source documents, and the
    first one passes the mideval gate, while the others wait. When nothing is outstanding,
    `synthesize` with the same arguments joins the shards; no task may be at work then.

    Args:
        config: Says how many shards there are.
        documents: Files, which look the same to every task; `out` too.
        tokenizer_folder: The generator's tokenizer.
        model_folder: The generator.
        out: Output folder.
        progress: Of all tasks together.
        task: Says which shards are made here; outside of the array, none.
        generator_name: Recorded as the generator's name.
        held_out: JSONL of held-out documents.
        make_engine: Another engine than vLLM on `model_folder`.

    Returns:
        The tasks that are not done, such as `3,7-9`; empty when all shards are.

    Raises:
        MegatronSynthError: As `synthesize`.
    """
    step = _prepare(
        config,
        documents,
        tokenizer_folder,
        model_folder,
        out,
        progress,
        generator_name,
        held_out,
        make_engine,
    )
    if step.finished() is not None:
        return ""
    if shards := task.shards(config.shards):
        step.make(shards, together=True)
    return task.outstanding(step.places, config.shards)


@dataclass
class _Step:
    """A step whose inputs have been read."""

    config: SynthesisConfig
    out: Path
    work: Path
    run: str
    product: str
    prompts: tuple[Prompt, ...]
    seeds: SeedStore | None
    tokenizer: Tokenizer
    held_out: Path | None
    guarded: dict[str, int]
    make_method: Callable[[], Method]
    make_engine: Callable[[], Engine]
    progress: Progress

    @cached_property
    def method(self) -> Method:
        return self.make_method()

    @property
    def places(self) -> Places:
        return Places(self.out.absolute(), self.work / self.product[:12])

    def finished(self) -> dict[str, Any] | None:
        """The counts, where the product is there."""
        path = self.out / COUNTS
        if not path.is_file():
            return None
        counts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return counts if counts.pop("product") == self.product else None

    @cached_property
    def context(self) -> FilterContext:
        wordings = tuple(prompt.wording for prompt in self.prompts)
        return FilterContext.of(self.config, wordings, self.held_out)

    def make(self, shards: Sequence[int], together: bool = False) -> None:
        """Pass the gate and make `shards`, perhaps together with others who make other shards."""
        method = self.method  # one that refuses the settings does so before Ray starts
        if self.config.mideval is not None:
            lock = self.work / "mideval.lock"
            with exclusive(lock, "mideval", patience=math.inf) if together else nullcontext():
                pass_gate(
                    self.config,
                    self.out,
                    self.work,
                    self.run,
                    self.product,
                    method,
                    self.context,
                    partial(self._generate, range(1)),
                    self.progress,
                )
        self.places.work.mkdir(exist_ok=True)
        self._generate(shards, self.places)

    def _generate(self, shards: Sequence[int], places: Places, sample: int | None = None) -> None:
        """Make those of `shards` that are not done; with `sample`, so many documents of each."""
        # Curator and Ray take seconds to import: only where they are needed.
        from megatron_synth.synthesis.pipeline import run_stages
        from megatron_synth.synthesis.stages import GenerationStage

        open_shards = [n for n in shards if not places.is_done(n)]
        if not open_shards:
            return
        workers = min(self.config.workers, len(open_shards))
        config = self.config.model_copy(update={"workers": workers})
        shown, total = config, self.method.total
        if sample is not None:
            shown = config.model_copy(update={"tokens": None, "shards": 1})
            total = sample if total is None else min(sample, total)
        self.progress.phase("starting Ray and the engine")
        stage = GenerationStage(
            config,
            places,
            self.run,
            self.make_method,
            self.make_engine,
            context=self.context,
            sample=sample,
        )
        with watch(self.progress, shown, places, total, stage.resources.gpus):
            run_stages(config, places, stage, open_shards)

    def merge(self) -> dict[str, Any]:
        """Join the shards; the counts, which are written last."""
        out = self.out
        self.progress.phase("writing documents")
        counts = merge_shards(self.config, self.places, self.tokenizer, out)
        counts |= {
            "seeds": len(self.seeds) if self.seeds else 0,
            **self.method.count_inputs(),
            **self.guarded,
        }
        write_card(out / CARD, self.config, counts, read_part_file(out / DOCUMENTS), DOCUMENTS)
        write_json(out / COUNTS, {"product": self.product, **counts})
        return counts


def _prepare(
    config: SynthesisConfig,
    documents: Path | Iterable[Document] | None,
    tokenizer_folder: Path,
    model_folder: Path,
    out: Path,
    progress: Progress,
    generator_name: str | None,
    held_out: Path | None,
    make_engine: Callable[[], Engine] | None,
) -> _Step:
    """Read the inputs; the documents are encoded where no earlier try has done so."""
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
    start = partial(
        _start_engine, config, model_folder.absolute(), tokenizer_folder.absolute(), generator
    )
    return _Step(
        config=config,
        out=out,
        work=work,
        run=run,
        product=product_hash(run, config, None if held_out is None else hash_file(held_out)),
        prompts=prompts,
        seeds=seeds,
        tokenizer=tokenizer,
        held_out=held_out,
        guarded=guarded,
        make_method=partial(
            make_method,
            config,
            prompts,
            seeds.folder if seeds else None,
            tokenizer_folder.absolute(),
            generator,
        ),
        make_engine=make_engine or start,
        progress=progress,
    )


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
        files = [hash_file_once(path) for path in list_files(documents)]
        name = f"seeds-{hash_json([files, tokenizer.fingerprint])[:12]}"
        return build_seeds(read_documents(documents), tokenizer, work / name)
    shutil.rmtree(work / "seeds", ignore_errors=True)
    return build_seeds(documents, tokenizer, work / "seeds")


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
