"""What an experiment will cost: the papers' own figures where they mean the same."""

from pathlib import Path

import pytest

from megatron_synth.config import ConfigError, load_config
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.cost import CostConfig, cost_table, planned_costs, totals
from megatron_synth.experiments.declared import declared_plans

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def costs(name, *overrides, **assumed):
    config = load_config(EXAMPLES / f"{name}.yaml", ExperimentConfig, overrides)
    return {c.step: c for c in planned_costs(config, declared_plans(config), CostConfig(**assumed))}


@pytest.mark.parametrize(("name", "hours"), [("sbp_200b", 2500), ("sbp_1t", 4200)])
def test_synthesis_at_the_papers_rate_takes_the_papers_hours(name, hours):
    found = costs(name)["synthesize"]
    assert found.gpu_hours == pytest.approx(hours, rel=0.01)
    assert found.published == f"{hours:,} B200 hours"


def test_arms_at_equal_compute_cost_the_same():
    found = costs("sbp_200b")
    hours = {found[f"train.{arm}"].gpu_hours for arm in ("repeat", "sbp", "unique")}
    assert len(hours) == 1
    # 18.4 GFLOP a token (6 a parameter, and attention), 200B tokens, 35.5 % of 989.4 TFLOP/s,
    # a third more for what is computed twice
    assert hours.pop() == pytest.approx(18.4e9 * 2e11 / (0.355 * 989.4e12) / 3600 * 4 / 3, rel=0.01)


def test_a_faster_gpu_or_a_higher_mfu_takes_fewer_hours():
    slow = costs("sbp_200b")["train.sbp"].gpu_hours
    assert costs("sbp_200b", mfu=0.71)["train.sbp"].gpu_hours == pytest.approx(slow / 2)
    faster = costs("sbp_200b", gpu="B200")["train.sbp"].gpu_hours
    assert faster == pytest.approx(slow * 989.4 / 2250)


def test_more_gpus_share_the_optimizer():
    assert costs("sbp_200b", ranks=64)["train.sbp"].memory < costs("sbp_200b")["train.sbp"].memory


def test_packed_corpora_take_two_bytes_a_token_and_their_text_besides():
    found = costs("sbp_200b")["pack.organic"]
    assert found.disk == round(10e9 * (2 + 4.5 * 0.4))


def test_an_arm_without_synthetic_text_costs_no_synthesis(tmp_path):
    text = (EXAMPLES / "quickstart.yaml").read_text()
    begin, end = text.index("  sbp:\n"), text.index("  unique:\n")
    path = tmp_path / "plain.yaml"
    path.write_text(text[:begin] + text[end:])
    config = load_config(path, ExperimentConfig, [])
    found = planned_costs(config, declared_plans(config), CostConfig())
    assert {c.step for c in found} == {
        *("pack.organic", "pack.pool", "train.repeat", "train.unique")
    }


def test_the_total_is_the_sum_and_the_assumptions_stand_under_the_table():
    found = list(costs("sbp_200b").values())
    assert totals(found).gpu_hours == sum(c.gpu_hours for c in found)
    shown = cost_table(found, CostConfig())
    assert "H100 at 35.5% MFU" in shown
    assert "11,000 TPU v5p hours" in shown


def test_an_unknown_gpu_is_refused():
    with pytest.raises(ConfigError, match="no peak is known for the GPU 'Voodoo2'"):
        costs("sbp_200b", gpu="Voodoo2")
