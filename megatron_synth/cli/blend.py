"""The verbs `blend plan`, `blend audit` and `blend export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.config import ConfigError, RunError, load_config, read_yaml
from megatron_synth.runs.atomic import disk_errors

if TYPE_CHECKING:
    from megatron_synth.blending import Plan

app = typer.Typer(
    no_args_is_help=True, help="Plan, audit and export a mix of corpora (docs/blending.md)."
)

PlanFile = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN",
        help="A solved plan (.json), or the YAML of a plan or an experiment",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="Which plan of a YAML that holds several", show_default=False),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=PREFIX: where a corpus lies, if not where the plan says", show_default=False
    ),
]


@app.command(
    epilog="Example: megatron-synth blend plan examples/blends/sbp_200b.yaml --variant s25b"
)
def plan(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A plan's YAML, an experiment's YAML, or a solved plan (.json)",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, such as budget=1T", show_default=False),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Only this variant; `base`: the file without any", show_default=False),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(help="The plan (.json) of the phase before", show_default=False),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(help="Steps of that phase that were trained; by default all"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the solved plans, NAME.json each", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Solve a mix exactly and print its table: tokens, shares, epochs, caps, windows, remainders.

    Nothing is read but sizes, nothing is spent. Amounts that cannot be met are refused with the
    numbers that conflict.
    """
    plans = _plans(file, overrides or [], variant, after, at)
    if out is not None:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        for name, solved in plans.items():
            solved.save(out / f"{name}.json")
    if as_json:
        answers = {name: solved.summary() for name, solved in plans.items()}
        print_json(answers.popitem()[1] if len(answers) == 1 else {"plans": answers})
        return
    for name, solved in plans.items():
        typer.echo((f"{name}\n" if len(plans) > 1 else "") + solved.table() + "\n")


@app.command(epilog="Example: megatron-synth blend audit plans/plan.json --at 1000 --json")
def audit(
    plan: PlanFile,
    name: Name = None,
    at: Annotated[
        int | None, typer.Option(help="Steps to recount; by default all", show_default=False)
    ] = None,
    data: Data = None,
    before: Annotated[
        list[Path] | None,
        typer.Option(
            help="Plans of the phases before, in order; of a YAML they are known",
            show_default=False,
        ),
    ] = None,
    exposure: Annotated[
        Path | None,
        typer.Option(
            help="Write a Parquet table: trained tokens by organic source, derived documents "
            "counted in",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the windows of the first steps and recount them, by means of the audit's own."""
    from megatron_synth.blending import Plan, audit
    from megatron_synth.runs import shown_progress

    *earlier, solved = _phases(plan, name)
    if before:
        earlier = [Plan.load(path) for path in before]
    with shown_progress() as progress:
        found = audit(
            solved,
            _prefixes(data, solved),
            solved.steps if at is None else at,
            before=earlier,
            exposure=exposure,
            progress=progress,
        )
    if as_json:
        print_json(found.as_json())
    else:
        for corpus, counted in found.counted.items():
            typer.echo(f"{corpus}: " + ", ".join(f"{k} {v:,}" for k, v in counted.items()))
        typer.echo("passed" if found.passed else "FAILED")
    if not found.passed:
        raise RunError(
            f"the windows served are not those of the plan: {'; '.join(found.faults[:3])}",
            where=plan,
            fix="This is a fault in megatron_synth: please report it with the plan.",
        )


@app.command(
    epilog="Example: megatron-synth blend export plans/plan.json --to megatron --out data_args.txt"
)
def export(
    plan: PlanFile,
    to: Annotated[
        Literal["megatron", "megatron-per-split", "bridge", "nemo"],
        typer.Option(
            help="megatron: --data-args-path; megatron-per-split: --per-split-data-args-path; "
            "bridge: Megatron-Bridge's data config; nemo: NeMo 2's data module",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file", show_default=False)],
    name: Name = None,
    data: Data = None,
    valid: Annotated[
        list[Path] | None, typer.Option(help="Prefixes of validation data", show_default=False)
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="Prefixes of test data", show_default=False)
    ] = None,
    micro_batch_size: Annotated[
        int, typer.Option(min=1, help="For nemo: windows a GPU takes at a time")
    ] = 1,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="For nemo: a Hugging Face tokenizer; without one NeMo loads GPT-2's",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a plan's weights for stock Megatron, and say what a stock run does differently."""
    from megatron_synth.blending.stock import export

    solved = _phases(plan, name)[-1]
    note = export(
        solved,
        to,
        out,
        _prefixes(data, solved),
        validation=valid or [],
        test=test or [],
        micro_batch_size=micro_batch_size,
        tokenizer=tokenizer,
    )
    if as_json:
        print_json({"file": str(out), "plan": solved.hash, "note": note})
    else:
        typer.echo(f"{out}\n{note}")


def _plans(
    file: Path, overrides: list[str], variant: str | None, after: Path | None, at: int | None
) -> "dict[str, Plan]":
    from megatron_synth.blending import Plan
    from megatron_synth.blending.plan_file import is_blend, read_plans

    phase = {"--variant": variant, "--after": after, "--at": at}
    given = [name for name, value in phase.items() if value is not None]
    if file.suffix == ".json":
        _refuse(given + overrides, file, "is a solved plan")
        return {file.stem: Plan.load(file)}
    tree = read_yaml(file)
    if "arms" in tree and not is_blend(tree):
        from megatron_synth.experiments.config import ExperimentConfig
        from megatron_synth.experiments.declared import declared_plans

        _refuse(given, file, "is an experiment")
        return declared_plans(load_config(file, ExperimentConfig, overrides))
    if at is not None and after is None:
        raise ConfigError("--at is a step of the phase before", where="--at", fix="Set --after.")
    previous = None if after is None else Plan.load(after)
    return read_plans(file, overrides, variant=variant, after=previous, after_step=at)


def _phases(file: Path, name: str | None) -> "list[Plan]":
    """The plan that is meant, last, and of a YAML the phases before it, in order."""
    plans = _plans(file, [], None, None, None)
    if name is None and len(plans) > 1:
        raise ConfigError(
            f"holds {len(plans)} plans: {', '.join(plans)}",
            where=file,
            fix="Say which with --name.",
        )
    if name is not None and name not in plans:
        raise ConfigError(
            f"has no plan {name!r}, but {', '.join(plans)}", where=file, fix="Give one to --name."
        )
    by_hash = {plan.hash: plan for plan in plans.values()}
    chain = [plans[name] if name is not None else next(iter(plans.values()))]
    while (before := by_hash.get(chain[0].previous or "")) is not None:
        chain.insert(0, before)
    return chain


def _refuse(given: list[str], file: Path, what: str) -> None:
    if given:
        raise ConfigError(f"{what}; {', '.join(given)} cannot be set", where=file)


def _prefixes(data: list[str] | None, plan: "Plan") -> dict[str, Path]:
    """`NAME=PREFIX` each."""
    from megatron_synth.blending.sizes import require_names

    pairs = [item.partition("=") for item in data or []]
    wrong = [name for name, equals, prefix in pairs if not (equals and prefix)]
    if wrong:
        raise ConfigError(f"--data {wrong[0]!r} is not NAME=PREFIX", where="--data")
    prefixes = {name: Path(prefix) for name, _, prefix in pairs}
    require_names(prefixes, [c.name for c in plan.corpora], where="--data")
    return prefixes
