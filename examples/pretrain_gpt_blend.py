"""Pretrain a GPT with Megatron-LM itself, on the windows of a blend plan.

Run it where a Megatron-LM checkout is on PYTHONPATH, with the arguments of its pretrain_gpt.py
but those for data:

    torchrun --nproc-per-node 8 examples/pretrain_gpt_blend.py --blend-plan plan.json \
        --blend-valid data/validation --train-samples 1000000 --seq-length 4096 \
        --global-batch-size 512 --no-create-attention-mask-in-dataloader ...

A run in phases takes the plans of all phases that are still to come, in order. Sequence length,
global batch size and number of samples have to be the plan's; what differs is refused.
"""

import argparse
from functools import partial
from pathlib import Path

from megatron_synth.blending import Plan
from megatron_synth.config import MegatronSynthError


def add_blend_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What this script takes beyond Megatron-LM's arguments."""
    group = parser.add_argument_group("blend")
    group.add_argument("--blend-plan", type=Path, nargs="+", required=True)
    group.add_argument("--blend-valid", type=Path, help="prefix of a validation corpus")
    group.add_argument("--blend-test", type=Path, help="prefix of a test corpus")
    return parser


def main() -> None:
    """Train."""
    import pretrain_gpt as stock
    from megatron.core.enums import ModelType
    from megatron.training import get_args, pretrain

    from megatron_synth.blending.stock.provider import blend_provider

    def provide(samples, vp_stage=None):  # noqa: ANN001, ANN202
        args = get_args()
        serve = blend_provider(
            [Plan.load(path) for path in args.blend_plan],
            get_args,
            validation=args.blend_valid,
            test=args.blend_test,
            is_built_on_rank=lambda stage: stock.is_dataset_built_on_rank(vp_stage=stage),
        )
        return serve(samples, vp_stage)

    provide.is_distributed = True
    defaults = {"tokenizer_type": "GPT2BPETokenizer"}
    if hasattr(stock, "pretrain_cfg_container_from_args"):  # Megatron-LM since 2026
        args = stock.parse_and_validate_args(
            extra_args_provider=add_blend_arguments, args_defaults=defaults
        )
        config = stock.pretrain_cfg_container_from_args(args, stock.gpt_config_from_args(args))
        leading = (config, provide)
        named = {}
    else:
        leading = (provide, partial(stock.model_provider, stock.gpt_builder))
        named = {"args_defaults": defaults, "extra_args_provider": add_blend_arguments}
    pretrain(
        *leading,
        ModelType.encoder_or_decoder,
        stock.forward_step,
        get_embedding_ranks=getattr(stock, "get_embedding_ranks", None),
        **named,
    )


if __name__ == "__main__":
    try:
        main()
    except MegatronSynthError as error:
        raise SystemExit(f"error: {error}") from None
