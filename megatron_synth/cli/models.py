"""Verbs about models."""

from typing import Annotated

import typer

from megatron_synth.cli.answers import Json, print_json

app = typer.Typer(no_args_is_help=True, help="Model presets and their parameter counts.")


@app.command("list", epilog="Example: megatron-synth models list --json")
def models_list(as_json: Json = False) -> None:
    """Print all presets with their parameters and the Hugging Face class they are exported as."""
    import dataclasses

    from megatron_synth.models import PRESETS, ModelConfig, count_parameters
    from megatron_synth.models.hugging_face_config import hugging_face_config

    configs = {name: ModelConfig.model_validate({"preset": name}) for name in PRESETS}
    rows = {
        name: {
            **dataclasses.asdict(count_parameters(config)),
            "hugging_face": hugging_face_config(config, max_positions=1)["architectures"][0],
        }
        for name, config in configs.items()
    }
    if as_json:
        print_json({"presets": rows})
        return
    typer.echo(f"{'preset':18}{'total':>16}{'active':>16}{'non-embedding':>16}  Hugging Face")
    for name, row in rows.items():
        counts = "".join(f"{row[key]:>16,}" for key in ("total", "active", "non_embedding"))
        typer.echo(f"{name:18}{counts}  {row['hugging_face']}")


@app.command(
    "params", epilog="Example: megatron-synth models params sbp-3b vocab_size=32000 --json"
)
def models_params(
    preset: Annotated[str, typer.Argument(help="Name of a preset")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Fields to change: num_layers=8 moe.top_k=2 ...")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count a preset's parameters; the padding of the vocabulary is not counted."""
    import dataclasses

    from megatron_synth.config import apply_overrides, parse_config
    from megatron_synth.models import PRESETS, ModelConfig, count_parameters

    changed = apply_overrides({**PRESETS.get(preset, {}), "preset": preset}, overrides or [])
    config = parse_config(changed, ModelConfig, where=preset)
    counts = dataclasses.asdict(count_parameters(config))
    counts |= {
        "embedding": counts["total"] - counts["non_embedding"],
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.padded_vocab_size,
    }
    if as_json:
        print_json(counts)
    else:
        for name, number in counts.items():
            typer.echo(f"{name:20}{number:>18,}")
