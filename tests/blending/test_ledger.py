import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.blending import BlendConfig, CorpusSize, Ledger, solve
from megatron_synth.config import ConfigError


def make_plan(organic=1000, synthetic=500, steps=64):
    config = BlendConfig.model_validate(
        {
            "budget": {"steps": steps},
            "sequence_length": 16,
            "global_batch_size": 4,
            "corpora": {"organic": {}},
            "streams": {"synthetic": {"corpora": {"sbp": {"epochs": 1}, "qa": {"epochs": 1}}}},
        }
    )
    sizes = {n: CorpusSize(synthetic, 9, n) for n in ("sbp", "qa")}
    return solve(config, sizes | {"organic": CorpusSize(organic, 20, "o")})


def test_before_the_first_and_after_the_last_step():
    plan = make_plan()
    ledger = Ledger(plan)
    assert ledger.at(0)["tokens"] == 0
    end = ledger.at(plan.steps)
    assert json.loads(json.dumps(end)) == end
    assert end["plan"] == plan.hash and end["samples"] == plan.samples
    # (500 - 1) // 16 = 31 windows, 3 tokens dropped; organic: 256 - 62 = 194 of 62 an epoch
    assert end["corpora"]["sbp"] == {
        "stream": "synthetic",
        "windows": 31,
        "tokens": 496,
        "windows_ever": 31,
        "epochs": 1.0,
        "dropped_tokens": 3,
    }
    assert end["corpora"]["organic"]["epochs"] == 194 / 62
    assert end["corpora"]["organic"]["dropped_tokens"] == 3 * 7
    assert end["streams"]["synthetic"] == {"windows": 62, "tokens": 992}
    assert end["streams"]["organic"] == {"windows": 194, "tokens": 3104}


@given(st.integers(600, 5000), st.integers(100, 2000), st.integers(64, 500), st.data())
@settings(max_examples=50, deadline=None)
def test_accounts_add_up_at_every_step(organic, synthetic, steps, data):
    plan = make_plan(organic, synthetic, steps)
    step = data.draw(st.integers(0, plan.steps))
    account = Ledger(plan).at(step)
    assert sum(c["tokens"] for c in account["corpora"].values()) == account["tokens"]
    assert sum(s["tokens"] for s in account["streams"].values()) == account["tokens"]
    assert account["tokens"] == step * 4 * 16
    later = Ledger(plan).at(plan.steps)
    for corpus in plan.corpora:
        assert account["corpora"][corpus.name]["windows"] <= corpus.windows
        assert later["corpora"][corpus.name]["windows"] == corpus.windows


def test_a_plan_in_stock_order_needs_stocks_own_count():
    stock = make_plan().model_copy(update={"order": "megatron"})
    with pytest.raises(ConfigError, match="only the stock datasets know"):
        Ledger(stock)
    names = [c.name for c in stock.corpora]
    counted = Ledger(stock, served=lambda step: dict.fromkeys(names, step)).at(3)
    assert {name: c["windows"] for name, c in counted["corpora"].items()} == dict.fromkeys(names, 3)
    assert counted["samples"] == 3 * len(names)
