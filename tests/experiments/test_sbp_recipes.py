"""examples/sbp_200b.yaml and sbp_1t.yaml: the paper's numbers, and a plan that meets them."""

import json
from pathlib import Path

import pytest
import typer.testing

from megatron_synth.cli import app
from megatron_synth.config import load_config
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.declared import check_layouts, declared_plans
from megatron_synth.experiments.graph import Graph
from megatron_synth.experiments.kinds import KINDS, VERSIONS
from megatron_synth.experiments.steps import steps_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BILLION = 10**9
PAPER = {
    # name: budget, D, S, epochs of D in the SBP arm, synthetic share, epochs of the oracle
    "sbp_200b": (200, 10, 75, 12.5, 0.375, 1.0),
    "sbp_1t": (1000, 50, 125, 17.5, 0.125, 2.07),
}


@pytest.fixture(params=PAPER)
def recipe(request):
    config = load_config(EXAMPLES / f"{request.param}.yaml", ExperimentConfig, [])
    return request.param, config, PAPER[request.param]


def test_it_has_the_numbers_of_the_paper(recipe):
    name, config, (budget, organic, synthetic, _, _, _) = recipe
    training, tuning = config.training, config.synthesizer
    assert (config.name, config.model.preset) == (name, "sbp-3b")
    assert (config.tokenizer.vocab_size, config.model.vocab_size) == (49_152, 49_152)
    assert (config.split.organic_tokens, config.synthesis.tokens) == (
        organic * BILLION,
        synthetic * BILLION,
    )
    assert 0 <= budget * BILLION - training.tokens < 2048 * 4096
    assert (training.global_batch_size, training.sequence_length) == (2048, 4096)
    schedule = training.schedule
    assert (schedule.kind, schedule.peak, schedule.final) == ("cosine", 1e-2, 5e-5)
    assert schedule.warmup_share == 0.05
    assert (config.pairing.threshold, config.pairing.neighbours) == (0.75, 200)
    assert config.embedding.encoder == "Qwen/Qwen3-Embedding-0.6B"
    assert (tuning.schedule.kind, tuning.schedule.peak) == ("constant", 5e-6)
    assert tuning.global_batch_size * tuning.sequence_length == 2048 * 8192  # 16.8M tokens
    assert (config.synthesis.temperature, config.synthesis.top_p) == (1.0, 0.9)


def test_both_documents_fit_one_context_whole(recipe):
    _, config, _ = recipe
    longest = config.split.max_document_tokens
    assert longest + 1 <= config.training.sequence_length  # a document and its EOS
    assert 2 * longest + 2 <= config.synthesizer.sequence_length  # d1, separator, d2, EOS
    assert config.synthesizer.pairs_per_window == "packed"


def test_the_plan_meets_it_in_whole_windows(recipe):
    _, config, (_, _, _, epochs, share, oracle) = recipe
    plans = declared_plans(config)
    assert {plan.tokens for plan in plans.values()} == {config.training.tokens}
    assert plans["repeat"].corpus("organic").epochs == pytest.approx(20, abs=0.01)
    assert plans["sbp"].corpus("synthetic").epochs == 1
    assert plans["sbp"].corpus("organic").epochs == pytest.approx(epochs, abs=0.01)
    assert plans["sbp"].share("synthetic") == pytest.approx(share, abs=1e-4)
    assert plans["unique"].corpus("pool").epochs == pytest.approx(oracle, abs=0.01)


def test_its_layouts_fit_and_every_step_is_known(recipe):
    _, config, _ = recipe
    check_layouts(config)
    graph = Graph(steps_of(config, "source"), VERSIONS)
    assert {step.kind for step in graph} <= set(KINDS)
    assert {"embed", "pairs", "pairs.split", "train.synthesizer"} <= set(graph.steps)


@pytest.mark.parametrize("name", PAPER)
def test_the_verb_plan_accepts_it(name):
    ran = typer.testing.CliRunner().invoke(app, ["plan", str(EXAMPLES / f"{name}.yaml"), "--json"])
    assert ran.exit_code == 0, ran.output
    assert set(json.loads(ran.stdout)["arms"]) == {"repeat", "sbp", "unique"}


def test_the_larger_model_is_one_override_away():
    config = load_config(EXAMPLES / "sbp_200b.yaml", ExperimentConfig, ["model.preset=sbp-6b"])
    assert (config.model.num_layers, config.model.hidden_size) == (32, 4096)


@pytest.mark.parametrize("billions", [25, 50, 100])
def test_the_ablation_is_one_override_away(billions):
    config = load_config(
        EXAMPLES / "sbp_200b.yaml", ExperimentConfig, [f"synthesis.tokens={billions}B"]
    )
    plan = declared_plans(config)["sbp"]
    assert plan.share("synthetic") == pytest.approx(billions / 200, abs=1e-4)
