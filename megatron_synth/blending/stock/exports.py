"""A plan as input for stock trainers: Megatron-LM, Megatron-Bridge, NeMo 2.x."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from megatron_synth.blending.plan import Plan
from megatron_synth.blending.sizes import nearest_name, path_prefix
from megatron_synth.blending.stock.export_notes import stock_notes
from megatron_synth.blending.stock.plan import (
    SURPLUS,
    planned_prefixes,
    require_stock_can,
    stock_corpora,
)
from megatron_synth.config import ConfigError
from megatron_synth.runs import atomic_write, write_json

Kind = Literal["megatron", "megatron-per-split", "bridge", "nemo"]

_TRAIN_ONLY = "1,0,0"
_NEMO_MODULE = "nemo.collections.llm.gpt.data.pre_training.PreTrainingDataModule"
_NEMO_TOKENIZER = "nemo.collections.common.tokenizers.huggingface.auto_tokenizer.AutoTokenizer"


@dataclass(frozen=True)
class _Blend:
    """Corpora of the three splits, as stock takes them."""

    train: tuple[str, ...]
    weights: tuple[int, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def zipped(self) -> list[str]:
        """`["120", "/a", "80", "/b"]`; a single corpus without its weight."""
        if len(self.train) == 1:
            return list(self.train)
        pairs = zip(self.weights, self.train, strict=True)
        return [part for weight, path in pairs for part in (str(weight), path)]

    @property
    def train_only(self) -> bool:
        """Whether there are no corpora for validation and test."""
        return not (self.valid or self.test)


def export(
    plan: Plan,
    kind: Kind,
    out: Path,
    prefixes: Mapping[str, str | Path] | None = None,
    *,
    validation: Sequence[str | Path] = (),
    test: Sequence[str | Path] = (),
    micro_batch_size: int = 1,
    tokenizer: str | None = None,
) -> str:
    """Write `plan` as input for a stock trainer, atomically.

    Weights are the planned windows, which stock divides by their sum: its shares are the plan's.
    Paths are absolute. The order and the epochs of the plan cannot be kept; the text that is
    returned says so, and how to start the stock run.

    - `megatron`: the file for Megatron-LM's `--data-args-path`: weights and paths, separated by
      white space, so that no path may contain any; training data only.
    - `megatron-per-split`: the JSON for `--per-split-data-args-path`.
    - `bridge`: YAML for Megatron-Bridge's config files: `dataset` (its GPTDatasetConfig), and what
      of `train` and `model` has to agree with it.
    - `nemo`: YAML with the arguments of NeMo 2.x's `PreTrainingDataModule`.

    Args:
        plan: The plan.
        kind: Which format.
        out: The file to write; its folder must exist.
        prefixes: Where corpora lie; one not named lies where the plan says.
        validation: Path prefixes of validation corpora (not for `megatron`). Several are
            blended in proportion to their sizes.
        test: Path prefixes of test corpora, likewise.
        micro_batch_size: For `nemo`: windows a GPU takes at a time.
        tokenizer: For `nemo`: a Hugging Face tokenizer, by name or path. NeMo takes GPT-2's where
            there is none.

    Returns:
        The settings of the stock run, and what it will do differently from the plan.

    Raises:
        ConfigError: The plan is a phase or provisional, has selections, orders of documents or
            attention `document`; or the format cannot hold a path.
        DataError: There is no indexed dataset at a path.
        RunError: `out` cannot be written.
    """
    if kind not in get_args(Kind):
        raise ConfigError(
            f"unknown kind of export: {kind!r}", fix=nearest_name(kind, get_args(Kind))
        )
    what = f"export {kind}"
    require_stock_can(plan, what)
    if kind == "megatron" and (validation or test):
        raise ConfigError(
            "--data-args-path cannot hold separate corpora for validation and test",
            where=what,
            fix="Export megatron-per-split, or leave validation and test out.",
        )
    if kind == "nemo" and plan.global_batch_size % micro_batch_size:
        raise ConfigError(
            f"global_batch_size {plan.global_batch_size} is not a multiple of micro_batch_size "
            f"{micro_batch_size}",
            where=what,
        )
    found = planned_prefixes(plan, prefixes)
    corpora = stock_corpora(plan)
    blend = _Blend(
        train=tuple(str(found[c.name]) for c in corpora),
        weights=tuple(c.weight for c in corpora),
        valid=tuple(str(path_prefix(prefix).absolute()) for prefix in validation),
        test=tuple(str(path_prefix(prefix).absolute()) for prefix in test),
    )
    for path in (*blend.train, *blend.valid, *blend.test):
        _refuse_unholdable(path, kind)
    if kind == "megatron":
        _write_text(out, _data_args(blend))
    elif kind == "megatron-per-split":
        write_json(out, _per_split(blend))
    elif kind == "bridge":
        _write_yaml(out, _bridge(plan, blend))
    else:
        _write_yaml(out, _nemo(plan, blend, micro_batch_size, tokenizer))
    return stock_notes(
        plan,
        kind,
        out,
        validation=bool(validation),
        test=bool(test),
        tokenizer=tokenizer is not None,
    )


def _data_args(blend: _Blend) -> str:
    """A line a corpus; Megatron splits at any white space."""
    if len(blend.train) == 1:
        return f"{blend.train[0]}\n"
    pairs = zip(blend.weights, blend.train, strict=True)
    return "".join(f"{weight} {path}\n" for weight, path in pairs)


def _per_split(blend: _Blend) -> dict[str, list[str] | None]:
    """Megatron reads all three keys; null means that there is no such split."""
    return {
        "train": blend.zipped,
        "valid": list(blend.valid) or None,
        "test": list(blend.test) or None,
    }


def _bridge(plan: Plan, blend: _Blend) -> dict[str, Any]:
    """`blend` holds [paths, weights], `blend_per_split` the same of train, valid and test.

    Not `data_path`: versions that do not know it (0.3) skip it with a warning, and train on mock
    data. It is null, since a recipe's own would be taken where `blend` is null.
    """
    one = blend.train_only
    weights = [float(w) for w in blend.weights] if len(blend.weights) > 1 else None
    train = [list(blend.train), weights]
    per_split = [
        train,
        [list(blend.valid), None] if blend.valid else None,
        [list(blend.test), None] if blend.test else None,
    ]
    return {
        "dataset": {
            "data_path": None,
            "blend": train if one else None,
            "blend_per_split": None if one else per_split,
            "split": _TRAIN_ONLY if one else None,
            "seq_length": plan.sequence_length,
            "random_seed": plan.seed,
            "dataloader_type": "single",
            "mid_level_dataset_surplus": SURPLUS,
            **_no_resets(),
        },
        "model": {"seq_length": plan.sequence_length},
        "train": {"global_batch_size": plan.global_batch_size, "train_iters": plan.steps},
    }


def _nemo(
    plan: Plan, blend: _Blend, micro_batch_size: int, tokenizer: str | None
) -> dict[str, Any]:
    """NeMo takes a list (one blend, divided by `split`) or all three splits."""
    paths: Any = blend.zipped
    one = blend.train_only
    if not one:
        paths = {
            "train": blend.zipped,
            "validation": list(blend.valid or blend.test),
            "test": list(blend.test or blend.valid),
        }
    content = {
        "_target_": _NEMO_MODULE,
        "paths": paths,
        "split": _TRAIN_ONLY if one else None,
        "seq_length": plan.sequence_length,
        "micro_batch_size": micro_batch_size,
        "global_batch_size": plan.global_batch_size,
        "num_train_samples": plan.samples,
        "seed": plan.seed,
        "dataloader_type": "single",
        **_no_resets(),
    }
    if tokenizer is not None:
        content["tokenizer"] = {"_target_": _NEMO_TOKENIZER, "pretrained_model_name": tokenizer}
    return content


def _no_resets() -> dict[str, bool]:
    return {"reset_position_ids": False, "reset_attention_mask": False, "eod_mask_loss": False}


def _refuse_unholdable(path: str, kind: Kind) -> None:
    """Refuse a path that the format, or the trainer that reads it, would change.

    Raises:
        ConfigError: Names the path, and what to do.
    """
    fault = None
    if kind == "megatron" and path.split() != [path]:
        fault = "--data-args-path separates paths at white space and knows no quotes"
    elif path != path.strip():
        fault = "Megatron cuts white space off the ends of paths"
    elif kind in ("bridge", "nemo") and "${" in path:
        fault = "the config's reader takes ${...} for a reference"
    elif not _is_unicode(path):
        fault = "the name is not Unicode"
    if fault:
        raise ConfigError(
            f"{fault}: {path!r}",
            where=f"export {kind}",
            fix="Give the corpus another path (a symbolic link will do)"
            + (", or export megatron-per-split." if kind == "megatron" else "."),
        )


def _is_unicode(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _write_yaml(out: Path, content: Mapping[str, Any]) -> None:
    _write_text(out, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=1000))


def _write_text(out: Path, text: str) -> None:
    with atomic_write(out) as handle:
        handle.write(text)
