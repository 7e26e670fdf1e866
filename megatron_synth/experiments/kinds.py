"""What each kind of step does: its room's function, called with the inputs' files.

Nothing is decided here; a kind takes paths out of manifests, calls a room, and hands back counts.
A kind's `version` goes up when its room gives other results for the same config and inputs.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_synth.experiments.graph import Environment
from megatron_synth.runs import Manifest, StepWork, write_json

PACKED = "corpus"
"""Prefix of the packed corpus in a `pack` step's folder."""
PLAN = "plan.json"
LOSSES = "losses.parquet"
COMPARISON = "comparison.json"
AUDIT = "audit.json"
MODEL = "model"
TOKENIZER = "tokenizer"
HELD_OUT_PAIRS = "held_out_pairs"
"""Validation set of synthesizer tuning, by its name in the metrics."""


@dataclass(frozen=True)
class Product:
    """What a step gives beside its files."""

    counts: dict[str, Any]
    tokenizer: str | None = None
    """Fingerprint, where the files hold token ids."""


@dataclass(frozen=True)
class Kind:
    """A kind of step."""

    run: Callable[[StepWork, dict[str, Any]], Product]
    version: int = 1
    environment: Environment = "base"
    """Software that it runs with."""
    distributed: bool = False
    """Whether several ranks, on several nodes, can work on it together."""


def import_corpus(work: StepWork, config: dict[str, Any]) -> Product:
    """Read the organic text from wherever it is."""
    from megatron_synth.corpus.importing import ImportConfig, import_corpus

    config.pop("source_fingerprint")
    return Product(import_corpus(ImportConfig(**config), work.folder, work.progress))


def train_tokenizer(work: StepWork, config: dict[str, Any]) -> Product:
    """Train on the imported documents that are not held out."""
    from megatron_synth.corpus.holding_out import (
        HoldOutConfig,
        choose_held_out,
        training_texts,
    )
    from megatron_synth.tokens import train_tokenizer

    documents = _documents(work.inputs["corpus"])
    held_out = choose_held_out(HoldOutConfig(**config.pop("hold_out")), documents)
    total = work.inputs["corpus"].counts["documents"] - held_out.documents

    texts = work.progress.track(training_texts(documents, held_out), "training", total, "documents")
    made = train_tokenizer(texts, config["vocab_size"], work.folder / TOKENIZER)
    return Product({"vocab_size": made.vocab_size, "documents": total}, made.fingerprint)


def split_corpus(work: StepWork, config: dict[str, Any]) -> Product:
    """Validation, D and pool."""
    from megatron_synth.corpus.splitting import SplitConfig, split_corpus

    tokenizer = _tokenizer(work)
    counts = split_corpus(
        SplitConfig(**config),
        _documents(work.inputs["corpus"]),
        tokenizer,
        work.folder,
        work.progress,
    )
    return Product(counts, tokenizer.fingerprint)


def pack(work: StepWork, config: dict[str, Any]) -> Product:
    """Documents to `.bin/.idx`."""
    from megatron_synth.packing import PackConfig, pack

    name, made_by = config.pop("corpus"), work.inputs["documents"]
    documents = _documents(made_by) if name == "synthetic" else _part(made_by, name)
    tokenizer = _tokenizer(work)
    packed = pack(documents, tokenizer, work.folder / PACKED, work.progress, PackConfig(**config))
    counts = {**asdict(packed.info), "quarantined": packed.quarantined, "encoder": packed.encoder}
    return Product(counts, tokenizer.fingerprint)


def plan_blend(work: StepWork, config: dict[str, Any]) -> Product:
    """Solve an arm's blend; the table stands in `plan.txt`."""
    from megatron_synth.blending import BlendConfig, corpus_size, solve
    from megatron_synth.runs import atomic_write

    sizes = {name: corpus_size(m.folder / PACKED) for name, m in work.inputs.items()}
    plan = solve(BlendConfig(**config), sizes)
    plan.save(work.folder / PLAN)
    with atomic_write(work.folder / "plan.txt") as handle:
        handle.write(plan.table() + "\n")
    return Product({"steps": plan.steps, "tokens": plan.tokens, "plan": plan.hash})


def train(work: StepWork, config: dict[str, Any]) -> Product:
    """Train one arm on its plan."""
    from megatron_synth.blending import BlendedStreams, Ledger, Plan
    from megatron_synth.models import ModelConfig
    from megatron_synth.training import TrainConfig, train

    plan = Plan.load(work.inputs["plan"].folder / PLAN)
    packed = {c.name: work.inputs[c.name].folder / PACKED for c in plan.corpora}
    training = TrainConfig(**config["training"])
    validation = {}
    if config["curve_windows"]:
        folder = work.inputs["validation"].folder
        validation["validation"] = _first_windows(folder, training, config["curve_windows"])
    result = train(
        training,
        ModelConfig(**{**config["model"], "vocab_size": _tokenizer(work).vocab_size}),
        BlendedStreams(plan, packed),
        work.folder,
        work.progress,
        data_hash=plan.hash,
        account=Ledger(plan).at,
        validation=validation,
        dataset_names=[c.name for c in plan.corpora],
    )
    _forget_older_checkpoints(result.checkpoint)
    counts = _training_counts(result)
    return Product({**counts, "plan": plan.hash, "ledger": Ledger(plan).at(result.steps)})


def split_pairs(work: StepWork, config: dict[str, Any]) -> Product:
    """Hold pairs out of synthesizer tuning, with both of their documents."""
    from megatron_synth.blending.pair_split import split_pairs

    pairs = work.inputs["pairs"].folder / "pairs.parquet"
    return Product(split_pairs(pairs, work.folder, **config))


def tune_synthesizer(work: StepWork, config: dict[str, Any]) -> Product:
    """Tune the baseline's checkpoint to write a related document (METHODS 1, SBP step 4)."""
    from megatron_synth.blending import PairWindows
    from megatron_synth.blending.pair_split import TRAINING, VALIDATION
    from megatron_synth.models import ModelConfig
    from megatron_synth.training import TrainConfig, train

    training = TrainConfig(**config["training"])
    tokenizer = _tokenizer(work)
    split = work.inputs["pairs"]

    def windows_of(name: str, samples: int | None) -> Any:
        return PairWindows(
            work.inputs["organic"].folder / PACKED,
            split.folder / name,
            sequence_length=training.sequence_length,
            eos_id=tokenizer.eos_id,
            separator_id=tokenizer.separator_id,
            pairs_per_window=config["pairs_per_window"],
            seed=config["seed"],
            samples=samples,
        )

    windows = windows_of(TRAINING, training.steps * training.global_batch_size)
    validation = {}
    if split.counts["validation_pairs"]:
        validation[HELD_OUT_PAIRS] = windows_of(VALIDATION, None)
    result = train(
        training,
        ModelConfig(**{**config["model"], "vocab_size": tokenizer.vocab_size}),
        windows,
        work.folder,
        work.progress,
        data_hash=windows.hash,
        init_from=_checkpoint(work.inputs["checkpoint"]),
        validation=validation,
    )
    _forget_older_checkpoints(result.checkpoint)
    pairs = {
        "pairs": windows.pairs,
        "pairs_too_long": windows.dropped,
        "validation_pairs": validation[HELD_OUT_PAIRS].pairs if validation else 0,
        "padding_share": windows.padding_share,
        "epochs": len(windows) / windows.windows,
    }
    return Product({**_training_counts(result), **pairs})


def audit(work: StepWork, config: dict[str, Any]) -> Product:
    """Recount what the arm's plan serves, window by window, by means of its own."""
    from megatron_synth.blending import Plan
    from megatron_synth.blending.recount import audit
    from megatron_synth.config import RunError

    del config
    plan = Plan.load(work.inputs["plan"].folder / PLAN)
    packed = {c.name: work.inputs[c.name].folder / PACKED for c in plan.corpora}
    work.progress.phase("recounting the served windows")
    found = audit(plan, packed, plan.steps)
    write_json(work.folder / AUDIT, found.as_json())
    if not found.passed:
        raise RunError(
            f"the windows served are not those of the plan: {'; '.join(found.faults[:3])}",
            where=work.inputs["plan"].step,
            fix="This is a fault in megatron_synth: please report it with this run's folder.",
        )
    return Product({"corpora": found.counted})


def export(work: StepWork, config: dict[str, Any]) -> Product:
    """A checkpoint in Hugging Face form."""
    from megatron_synth.training import export_hugging_face

    export_hugging_face(
        _checkpoint(work.inputs["checkpoint"]),
        work.inputs["tokenizer"].folder / TOKENIZER,
        work.folder / MODEL,
        max_positions=config["max_positions"],
    )
    return Product({})


def embed(work: StepWork, config: dict[str, Any]) -> Product:
    """Embed D with the baseline's own activations, or with the encoder that the config names."""
    from megatron_synth.engines.embedding import EmbedConfig, embed_documents

    own = work.inputs.get("model")
    counts = embed_documents(
        EmbedConfig(**config),
        _part(work.inputs["split"], "organic"),
        None if own is None else own.folder / MODEL,
        work.folder,
        work.progress,
    )
    return Product(counts)


def find_pairs(work: StepWork, config: dict[str, Any]) -> Product:
    """Related documents of D."""
    from megatron_synth.pairing import PairConfig, find_pairs

    counts = find_pairs(
        PairConfig(**config),
        work.inputs["embeddings"].folder / "embeddings.npy",
        _part(work.inputs["split"], "organic"),
        work.folder,
        work.progress,
    )
    return Product(counts)


def synthesize(work: StepWork, config: dict[str, Any]) -> Product:
    """Write S with the synthesizer; nothing in it holds text of the validation documents."""
    from megatron_synth.synthesis import SynthesisConfig, synthesize

    generator = config.pop("generator_name")
    counts = synthesize(
        SynthesisConfig(**config),
        _part(work.inputs["split"], "organic"),
        work.inputs["tokenizer"].folder / TOKENIZER,
        work.inputs["model"].folder / MODEL,
        work.folder,
        work.progress,
        generator_name=generator,
        held_out=_part(work.inputs["split"], "validation"),
    )
    return Product(counts)


def measure_quality(work: StepWork, config: dict[str, Any]) -> Product:
    """The quality table of S, and of D beside it."""
    from megatron_synth.evaluation.quality import TABLE, QualityConfig, measure_quality
    from megatron_synth.synthesis.judges import JUDGE_LOG, open_judge

    del config["judge"]
    settings = QualityConfig(**config)
    texts = (_documents(work.inputs["synthetic"]), _part(work.inputs["split"], "organic"))
    with contextlib.ExitStack() as stack:
        engine = None
        if settings.engine is not None:
            log = work.folder / JUDGE_LOG
            engine = open_judge(settings.engine, None, log, settings.max_answer_tokens)
            stack.callback(engine.close)
        figures = measure_quality(settings, *texts, engine, work.progress)
    write_json(work.folder / TABLE, figures)
    return Product({name: figures[name] for name in ("cut", "unjudged")})


def evaluate(work: StepWork, config: dict[str, Any]) -> Product:
    """Held-out loss of one arm, by document."""
    import numpy as np

    from megatron_synth.corpus import read_documents
    from megatron_synth.corpus.holding_out import group_of
    from megatron_synth.evaluation import DocumentLosses, mean_loss, write_losses
    from megatron_synth.training import document_losses, load_for_inference

    tokenizer = _tokenizer(work)
    documents = list(read_documents(_part(work.inputs["split"], "validation")))
    work.progress.phase("scoring held-out documents", len(documents), "documents")
    model, _ = load_for_inference(_checkpoint(work.inputs["checkpoint"]), threads=1)
    ids = [np.asarray(i) for i in tokenizer.encode_batch([d.text for d in documents])]
    nll, tokens = document_losses(model, ids, eos_id=tokenizer.eos_id)
    groups = tuple(group_of(d, config["group"]) for d in documents)
    losses = DocumentLosses(tuple(d.id for d in documents), nll, tokens, groups=groups)
    write_losses(work.folder / LOSSES, losses)
    loss, _ = mean_loss(nll, tokens)
    return Product({"documents": len(documents), "tokens": int(tokens.sum()), "loss": loss})


def compare(work: StepWork, config: dict[str, Any]) -> Product:
    """Paired differences to the baseline, and recovery ratios."""
    from megatron_synth.evaluation import compare_arms, read_losses
    from megatron_synth.scaling import recovery_from_losses

    losses = {name: read_losses(m.folder / LOSSES) for name, m in work.inputs.items()}
    baseline, oracle = config["baseline"], config["oracle"]
    settings = {"seed": config["seed"], "resamples": config["resamples"]}
    arms = [asdict(a) for a in compare_arms(losses, baseline or next(iter(losses)), **settings)]
    recovery = {}
    if baseline and oracle:
        for name in config["methods"]:
            recovery[name] = asdict(
                recovery_from_losses(losses[name], losses[baseline], losses[oracle], **settings)
            )
    write_json(work.folder / COMPARISON, {"arms": arms, "recovery": recovery})
    return Product({"arms": len(arms)})


KINDS: Mapping[str, Kind] = {
    "import_corpus": Kind(import_corpus),
    "train_tokenizer": Kind(train_tokenizer),
    "split_corpus": Kind(split_corpus),
    "pack": Kind(pack),
    "plan_blend": Kind(plan_blend),
    "train": Kind(train, environment="train", distributed=True),
    "audit": Kind(audit),
    "split_pairs": Kind(split_pairs),
    "tune_synthesizer": Kind(tune_synthesizer, environment="train", distributed=True),
    "export": Kind(export, environment="train"),
    "embed": Kind(embed, environment="generate"),
    "find_pairs": Kind(find_pairs, version=2),
    "synthesize": Kind(synthesize, version=2, environment="generate"),
    "measure_quality": Kind(measure_quality, environment="judge"),
    "evaluate": Kind(evaluate, environment="train"),
    "compare": Kind(compare),
}

VERSIONS: Mapping[str, int] = {name: kind.version for name, kind in KINDS.items()}


def _documents(manifest: Manifest) -> Path:
    from megatron_synth.corpus.files import documents_of

    return documents_of(manifest.folder)


def _part(manifest: Manifest, name: str) -> Path:
    return manifest.folder / f"{name}.jsonl.zst"


def _checkpoint(manifest: Manifest) -> Path:
    return manifest.folder / str(manifest.counts["checkpoint"])


def _tokenizer(work: StepWork) -> Any:
    from megatron_synth.tokens import Tokenizer

    return Tokenizer.load(work.inputs["tokenizer"].folder / TOKENIZER)


def _first_windows(folder: Path, training: Any, windows: int) -> Any:
    """A fixed set of validation windows, at most one epoch of the corpus."""
    from megatron_synth.blending import (
        BlendConfig,
        BlendedStreams,
        Budget,
        CorpusConfig,
        corpus_size,
        solve,
    )

    size = corpus_size(folder / PACKED)
    blend = BlendConfig(
        budget=Budget(steps=max(1, min(windows, (size.tokens - 1) // training.sequence_length))),
        sequence_length=training.sequence_length,
        global_batch_size=1,
        corpora={"validation": CorpusConfig(max_epochs=1)},
    )
    return BlendedStreams(solve(blend, {"validation": size}), {"validation": folder / PACKED})


def _forget_older_checkpoints(final: Path) -> None:
    """A finished product holds its final checkpoint alone."""
    import shutil

    from megatron_synth.runtime import is_main_rank

    if is_main_rank():
        for folder in final.parent.iterdir():
            if folder != final and folder.is_dir():
                shutil.rmtree(folder)


def _training_counts(result: Any) -> dict[str, Any]:
    return {
        "checkpoint": f"checkpoints/{result.checkpoint.name}",
        "steps": result.steps,
        "tokens": result.tokens,
        "loss": result.loss,
        "validation": dict(result.validation),
        "tokens_per_second": result.tokens_per_second,
        "parameters": asdict(result.parameters),
        "flops": result.flops,
        "training_seconds": result.seconds,
    }
