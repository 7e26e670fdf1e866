"""What a stock run will do differently from a plan, in words, and how to start it."""

from pathlib import Path

from megatron_synth.blending.plan import Plan
from megatron_synth.blending.stock.plan import SURPLUS, StockCorpus, stock_corpora


def stock_notes(
    plan: Plan,
    kind: str,
    out: Path,
    *,
    validation: bool,
    test: bool,
    tokenizer: bool,
) -> str:
    """The text that goes with an export: settings of the stock run, then the differences.

    Args:
        plan: The plan.
        kind: Kind of export.
        out: The file that was written.
        validation: Whether it names corpora for validation.
        test: Whether it names corpora for test.
        tokenizer: Whether it names a tokenizer.
    """
    lines = [
        f"Plan {plan.hash[:12]} for stock trainers ({kind}).",
        "",
        "Start the stock run with",
        *(f"  {line}" for line in _settings(plan, kind, out, validation, test, tokenizer)),
        "",
        "It differs from the plan:",
        *_differences(plan),
    ]
    return "\n".join(lines)


def _settings(
    plan: Plan,
    kind: str,
    out: Path,
    validation: bool,
    test: bool,
    tokenizer: bool,
) -> list[str]:
    if kind == "bridge":
        lines = [f"--config-file {out}, or its values as overrides dataset.KEY=VALUE"]
        if not validation:
            lines.append("validation.eval_iters=0 (train.eval_iters=0 in older ones): no corpus")
        return lines
    if kind == "nemo":
        lines = [f"data=@{out} (NeMo-Run), or PreTrainingDataModule with its arguments"]
        lines.append(f"trainer.max_steps={plan.steps}, model's seq_length {plan.sequence_length}")
        if not (validation or test):
            lines.append("trainer.limit_val_batches=0, trainer.limit_test_batches=0: no corpora")
        elif not (validation and test):
            there = "validation" if validation else "test"
            lines.append(f"NeMo wants corpora for both: {there}'s stands for the other one too")
        if not tokenizer:
            lines.append("a tokenizer of its own: without one NeMo loads GPT-2's")
        return lines
    common = [
        f"--seq-length {plan.sequence_length} --global-batch-size {plan.global_batch_size}",
        f"--train-samples {plan.samples} (or --train-iters {plan.steps}) --seed {plan.seed}",
        f"--dataloader-type single --mid-level-dataset-surplus {SURPLUS:g}",
        "without --eod-mask-loss, --reset-position-ids, --reset-attention-mask",
    ]
    if kind == "megatron":
        return [f"--data-args-path {out} --split 1,0,0 --eval-iters 0", *common]
    lines = [f"--per-split-data-args-path {out}, without --split", *common]
    if not validation:
        lines.append("--eval-iters 0: no corpus for validation")
    elif not test:
        lines.append("(no corpus for test: the test at the end is left out)")
    return lines


def _differences(plan: Plan) -> list[str]:
    """As a list in plain text."""
    corpora = stock_corpora(plan)
    order = "- Order: stock's own, not the plan's."
    if plan.order == "megatron":
        order = "- Order: none; the plan has order: megatron, and the same windows at every step."
    lines = [
        f"{order} It depends on the number of training samples too: another number, or weights "
        "changed in mid-run, serves some windows twice and others never.",
        "- Epochs: stock joins a corpus's epochs and shuffles their documents and windows together "
        "(the last one apart if less than 80 % of it is used), so that a document can come again "
        "before all have come once.",
    ]
    lines += [f"  {_of_corpus(plan, corpus)}" for corpus in corpora]
    if len(corpora) > 1:
        lines.append(
            "- Shares: right on the whole, to a window or two; not in every global batch. Stock "
            f"builds {100 * SURPLUS:g} % more windows of each corpus than it draws."
        )
    capped = [f"{c.name} ({c.max_epochs:g})" for c in plan.corpora if c.windows and c.max_epochs]
    lines.append(
        "- Caps: stock has none; it repeats a corpus for as long as it is asked"
        + (f". Lost: max_epochs of {', '.join(capped)}." if capped else ".")
    )
    fixed = [c.name for c in plan.corpora if c.windows and not c.reshuffle]
    if fixed:
        lines.append(f"- Lost: reshuffle false of {', '.join(fixed)}.")
    lines.append(
        "- Account: no ledger, and no hash of the plan in checkpoints; phases cannot follow it."
    )
    lines.append(
        "- Cache: stock finds its index by path, sizes and seed. Where a corpus is made again at "
        "the same path, remove the cache."
    )
    return lines


def _of_corpus(plan: Plan, corpus: StockCorpus) -> str:
    planned = plan.corpus(corpus.name)
    how = "from one epoch"
    if corpus.epochs > 1:
        how = f"from {corpus.epochs} epochs in one shuffle"
    if corpus.last_apart:
        how = (
            f"from {corpus.mixed_epochs} epoch{'s' * (corpus.mixed_epochs > 1)} in one shuffle, "
            "then one more"
        )
    return (
        f"{corpus.name}: {planned.windows:,} windows, {100 * plan.share(corpus.name):.2f} %, "
        f"{planned.epochs:.4g} epochs planned; stock: {corpus.built:,} windows built {how}"
    )
