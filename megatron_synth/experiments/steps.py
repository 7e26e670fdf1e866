"""An experiment's steps: which there are, and which needs which. What they do is in `kinds`."""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from pydantic import BaseModel

from megatron_synth.corpus.holding_out import HoldOutConfig
from megatron_synth.experiments.config import ExperimentConfig, ranks_of
from megatron_synth.experiments.graph import Step
from megatron_synth.synthesis.judges import judge_identity
from megatron_synth.training import TrainConfig

_HOW_TO_TRAIN = frozenset(
    {"save_every", "keep_checkpoints", "keep_every", "save_in_background", "logging", "recompute"}
)
_HOW_TO_SYNTHESIZE = frozenset(
    {
        *("engine", "ray", "workers", "tries", "mideval"),
        *("max_requests", "allow_short", "min_kept_share", "min_kept_after"),
    }
)
"""Settings that a user may change in the middle of a step: they are not in its address."""
_HOW_TO_EMBED = frozenset({"batch_tokens", "shard_documents", "device"})
_OF_PAIRS = frozenset({"pairs_per_window", "validation_pairs"})
"""Settings of synthesizer tuning that are no training run's."""


def steps_of(config: ExperimentConfig, source: str) -> Iterator[Step]:
    """All steps of an experiment; arms share every step that is the same for them.

    Args:
        config: The experiment.
        source: Fingerprint of the corpus's input, so that other content gives other products.
    """
    corpora = sorted({name for arm in config.arms.values() for name in arm.corpora})
    yield from _corpus_steps(config, source, corpora)
    for name in config.arms:
        yield from _arm_steps(config, name)
    if "synthetic" in corpora:
        yield from _sbp_steps(config)
    yield Step(
        "compare",
        "compare",
        {
            **_json(config.evaluation, exclude={"curve_windows"}),
            "baseline": config.baseline,
            "oracle": config.oracle,
            "methods": [n for n, arm in config.arms.items() if arm.role == "method"],
        },
        {name: f"evaluate.{name}" for name in config.arms},
    )


def _corpus_steps(config: ExperimentConfig, source: str, corpora: Iterable[str]) -> Iterator[Step]:
    hold_out = HoldOutConfig(**config.split.model_dump(include=set(HoldOutConfig.model_fields)))
    yield Step(
        "corpus.import", "import_corpus", {**_json(config.corpus), "source_fingerprint": source}
    )
    yield Step(
        "tokenizer",
        "train_tokenizer",
        {**_json(config.tokenizer), "hold_out": _json(hold_out)},
        {"corpus": "corpus.import"},
    )
    yield Step(
        "corpus.split",
        "split_corpus",
        _json(config.split),
        {"corpus": "corpus.import", "tokenizer": "tokenizer"},
    )
    packed = [name for name in corpora if name != "synthetic"]
    for name in [*packed, *(["validation"] if config.evaluation.curve_windows else [])]:
        yield _pack(config, name, "corpus.split")


def _pack(config: ExperimentConfig, name: str, made_by: str) -> Step:
    return Step(
        f"pack.{name}",
        "pack",
        {**_json(config.packing), "corpus": name},
        {"documents": made_by, "tokenizer": "tokenizer"},
    )


def _arm_steps(config: ExperimentConfig, arm: str) -> Iterator[Step]:
    corpora = {name: f"pack.{name}" for name in config.arms[arm].corpora}
    yield Step(f"plan.{arm}", "plan_blend", _json(config.blend(arm)), corpora)
    validation = {"validation": "pack.validation"} if config.evaluation.curve_windows else {}
    yield _training(
        f"train.{arm}",
        "train",
        config.training,
        {"model": _json(config.model), "curve_windows": config.evaluation.curve_windows},
        {"plan": f"plan.{arm}", "tokenizer": "tokenizer", **validation, **corpora},
    )
    yield Step(f"audit.{arm}", "audit", {}, {"plan": f"plan.{arm}", **corpora})
    yield Step(
        f"evaluate.{arm}",
        "evaluate",
        {"group": config.split.group},
        {"checkpoint": f"train.{arm}", "split": "corpus.split", "tokenizer": "tokenizer"},
        gpu=True,
    )


def _sbp_steps(config: ExperimentConfig) -> Iterator[Step]:
    """METHODS 1, "SBP, step by step": 2 pairs, 4 tuning, 5 synthesis."""
    tuning, synthesis, baseline = config.synthesizer, config.synthesis, config.baseline
    assert tuning is not None
    assert synthesis is not None
    assert baseline is not None
    own = {"model": f"export.{baseline}"}
    if config.embedding.encoder is None:
        yield _export(baseline, config.training.sequence_length)
    yield Step(
        "embed",
        "embed",
        _json(config.embedding, exclude=_HOW_TO_EMBED),
        {"split": "corpus.split", **({} if config.embedding.encoder else own)},
        settings=_json(config.embedding, include=_HOW_TO_EMBED),
        gpu=True,
    )
    yield Step(
        "pairs",
        "find_pairs",
        _json(config.pairing),
        {"split": "corpus.split", "embeddings": "embed"},
    )
    yield Step(
        "pairs.split",
        "split_pairs",
        {"validation_pairs": tuning.validation_pairs, "seed": config.blend_seed},
        {"pairs": "pairs"},
    )
    yield _training(
        "train.synthesizer",
        "tune_synthesizer",
        tuning,
        {
            "model": _json(config.model),
            "seed": config.blend_seed,
            "pairs_per_window": tuning.pairs_per_window,
        },
        {
            "pairs": "pairs.split",
            "organic": "pack.organic",
            "tokenizer": "tokenizer",
            "checkpoint": f"train.{baseline}",
        },
    )
    yield _export("synthesizer", tuning.sequence_length)
    yield Step(
        "synthesize",
        "synthesize",
        _json(synthesis, exclude=_HOW_TO_SYNTHESIZE),
        {"split": "corpus.split", "tokenizer": "tokenizer", "model": "export.synthesizer"},
        settings={
            **_json(synthesis, include=_HOW_TO_SYNTHESIZE),
            "generator_name": f"{config.name}/{config.model.preset or 'model'}-synthesizer",
        },
        cores=2,
        gpu=True,
    )
    yield _pack(config, "synthetic", "synthesize")
    if config.quality is not None:
        yield Step(
            "quality",
            "measure_quality",
            {
                **_json(config.quality, exclude={"engine"}),
                "judge": judge_identity(config.quality.engine, None),
            },
            {"synthetic": "synthesize", "split": "corpus.split"},
            settings=_json(config.quality, include={"engine"}),
        )


def _training(
    name: str,
    kind: str,
    training: TrainConfig,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Step:
    ranks = ranks_of(training)
    return Step(
        name,
        kind,
        {"training": _json(training, exclude=_HOW_TO_TRAIN | _OF_PAIRS), **config},
        inputs,
        settings={"training": _json(training, include=_HOW_TO_TRAIN)},
        ranks=ranks,
        cores=ranks * training.cpu_threads,
        gpu=True,
    )


def _export(name: str, max_positions: int) -> Step:
    return Step(
        f"export.{name}",
        "export",
        {"max_positions": max_positions},
        {"checkpoint": f"train.{name}", "tokenizer": "tokenizer"},
    )


def _json(
    config: BaseModel, *, exclude: Set[str] | None = None, include: Set[str] | None = None
) -> dict[str, Any]:
    return config.model_dump(
        mode="json",
        exclude=None if exclude is None else set(exclude),
        include=None if include is None else set(include),
    )
