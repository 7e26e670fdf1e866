"""Do Megatron-LM's arguments mean what a plan means?"""

from typing import Any

from megatron_synth.blending.chain import Chain
from megatron_synth.blending.stock.index import StockOptions
from megatron_synth.config import ConfigError

_DATA = (
    *("data_path", "data_args_path", "per_split_data_args_path"),
    *("train_data_path", "valid_data_path", "test_data_path"),
)
_OTHER_STEPS = ("rampup_batch_size", "step_batch_size_schedule", "phase_transition_iterations")


def require_arguments(chain: Chain, args: Any, samples: int | None, options: StockOptions) -> None:
    """Refuse a Megatron-LM run that would not train on the plan as planned.

    Checked: number of training samples, sequence length, global batch size, no batch ramp-up, the
    order of the data loader, and every option that changes samples in stock datasets and that
    the plan settles (masks, positions, EOD, other data).

    Args:
        chain: The plans.
        args: Megatron's namespace. An option that this Megatron does not know counts as unset.
        samples: Training samples that Megatron asks for.
        options: Of stock datasets, for `order: megatron`.

    Raises:
        ConfigError: Names the option, both values, and the flag to set.
    """
    plan = chain.plans[0]
    total = chain.steps * chain.batch
    if samples != total:
        raise ConfigError(
            f"Megatron asks for {samples or 0:,} training samples, the plan has {total:,} "
            f"({chain.steps:,} steps of {chain.batch:,})",
            where="--train-samples",
            fix=f"Set --train-samples {total} (or --train-iters {chain.steps}).",
        )
    _require_equal(args, "seq_length", plan.sequence_length)
    _require_equal(args, "global_batch_size", plan.global_batch_size)
    _require_equal(args, "dataloader_type", "single")
    for name in _OTHER_STEPS:
        if getattr(args, name, None) is not None:
            raise ConfigError(
                "cannot be used with a plan, which counts steps of one size over all phases",
                where=_flag(name),
                fix="Leave it out. Give the plans of all phases instead.",
            )
    for name in _DATA:
        if getattr(args, name, None) is not None:
            raise ConfigError(
                "is set, but the plan says what to train on",
                where=_flag(name),
                fix="Leave it out; the provider takes prefixes for validation and test.",
            )
    stock = plan.order == "megatron"
    masked = plan.attention == "document"
    for name, wanted in {
        "dataloader_inter_document_masking": masked,
        "create_attention_mask_in_dataloader": stock and options.create_attention_mask,
        "eod_mask_loss": stock and options.eod_mask_loss,
        **dict.fromkeys(("reset_position_ids", "reset_attention_mask"), False),
        **dict.fromkeys(("sft", "fim_data", "mock_data", "hybrid_context_parallel"), False),
    }.items():
        _require_switch(args, name, wanted=wanted)
    consumed = int(getattr(args, "consumed_train_samples", 0) or 0)
    if consumed < chain.first_step * chain.batch:
        raise ConfigError(
            f"the run stands at sample {consumed:,}, the first plan begins at "
            f"{chain.first_step * chain.batch:,}",
            where="blend",
            fix="Give the plans of all phases from that sample on, or load the checkpoint of "
            f"step {chain.first_step:,}.",
        )


def _require_equal(args: Any, name: str, wanted: Any) -> None:
    found = getattr(args, name, None)
    if found != wanted:
        raise ConfigError(
            f"is {found}, the plan needs {wanted}",
            where=_flag(name),
            fix=f"Set {_flag(name)} {wanted}, or solve the plan again.",
        )


def _require_switch(args: Any, name: str, *, wanted: bool) -> None:
    found = bool(getattr(args, name, False))
    if found == wanted:
        return
    flag = _flag(name)
    if name == "create_attention_mask_in_dataloader":
        flag = "--no-create-attention-mask-in-dataloader"
        found = not found
    raise ConfigError(
        "is set, but samples of this plan are not made so"
        if found
        else "is not set, but samples of this plan need it",
        where=flag,
        fix=f"{'Leave out' if found else 'Set'} {flag}.",
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
