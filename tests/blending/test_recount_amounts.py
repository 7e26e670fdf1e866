"""The audit's own reading of budget and amounts: right plans pass, a window moved is found."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_synth.blending import BlendConfig, CorpusSize, solve
from megatron_synth.blending.recount.amounts import check_totals
from megatron_synth.config import ConfigError

S = 8
SIZES = {"a": 301, "b": 467, "c": 633, "d": 95}  # 37, 58, 79 and 11 windows an epoch


def solved(blend, sizes=SIZES, after=None, after_step=None):
    measured = {n: CorpusSize(t, 5, content_hash=n, tokenizer="t") for n, t in sizes.items()}
    config = BlendConfig.model_validate({"sequence_length": S, "global_batch_size": 7, **blend})
    return solve(config, measured, after=after, after_step=after_step)


def faults(plan):
    found = []
    check_totals(plan, found.append)
    return found


def with_windows(plan, **changes):
    corpora = [
        c.model_copy(update={"windows": c.windows + changes.get(c.name, 0)}) for c in plan.corpora
    ]
    return plan.model_copy(update={"corpora": tuple(corpora)})


BLENDS = {
    "one fills": {"budget": "3K", "corpora": {"a": {"epochs": 1}, "b": {"share": 0.3}, "c": {}}},
    "three fill": {"budget": "3K", "corpora": {"a": {}, "b": {}, "c": {}}},
    "of those that fill one is at its cap": {
        "budget": "3K",
        "corpora": {"a": {"max_epochs": 1.5}, "b": {}, "c": {}, "d": {"tokens": 90}},
    },
    "tokens alone": {"corpora": {"a": {"tokens": 431}, "b": {"tokens": 300}, "c": {"tokens": 509}}},
    "shares give way before tokens": {"corpora": {"a": {"tokens": 446}, "b": {"share": 0.33}}},
    "epochs give way last": {
        "budget": {"steps": 27},
        "corpora": {"a": {"epochs": 1.5}, "b": {"epochs": 1.3}, "d": {"tokens": 505}},
    },
    "shares come to all": {
        "budget": "3K",
        "corpora": {"a": {"share": 0.35}, "b": {"share": 0.45}, "c": {"share": 0.2}},
    },
    "a stream is divided by shares": {
        "budget": "3K",
        "corpora": {"a": {}},
        "streams": {"s": {"share": 0.4, "corpora": {"b": {"share": 0.3}, "c": {"share": 0.7}}}},
    },
    "a stream is filled": {
        "streams": {"s": {"tokens": 1001, "corpora": {"b": {}, "c": {"max_epochs": 1}, "d": {}}}},
    },
}


@pytest.mark.parametrize("name", BLENDS)
def test_each_window_moved_from_one_corpus_to_another_is_found(name):
    plan = solved(BLENDS[name])
    assert faults(plan) == []
    for more, fewer in permutations([c.name for c in plan.corpora], 2):
        assert faults(with_windows(plan, **{more: 1, fewer: -1})), f"{fewer} to {more}"


@pytest.mark.parametrize("name", BLENDS)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_step_more_or_less_is_found(name, by):
    plan = solved(BLENDS[name])
    longer = with_windows(plan, **{plan.corpora[0].name: 7 * by})
    longer = longer.model_copy(update={"steps": plan.steps + by})
    assert any("steps are planned" in fault for fault in faults(longer))


def test_a_window_that_two_have_the_same_claim_to_may_be_either_s():
    plan = solved(
        {"budget": {"steps": 9}, "corpora": {"a": {}, "b": {}}}, sizes={"a": 201, "b": 201}
    )
    assert [c.windows for c in plan.corpora] == [32, 31]
    assert faults(with_windows(plan, a=-1, b=1)) == []
    assert faults(with_windows(plan, a=-2, b=2))


def test_amounts_that_fix_no_length_are_found():
    plan = solved(BLENDS["three fill"]).model_copy(update={"budget": ""})
    assert "a fills the rest of no budget" in faults(plan)[0]
    plan = solved(BLENDS["shares come to all"]).model_copy(update={"budget": ""})
    assert "shares leave nothing that fixes the length" in faults(plan)[0]


def amounts():
    kinds = (
        st.builds(lambda n: {"tokens": n}, st.integers(10, 900)),
        st.builds(lambda n: {"share": n / 100}, st.integers(1, 60)),
        st.builds(lambda n: {"epochs": n / 8}, st.integers(1, 20)),
    )
    cap = st.sampled_from([{}, {}, {"max_epochs": 1}, {"max_epochs": 2.5}])
    return st.builds(
        lambda amount, cap: {**amount, **cap}, st.one_of(st.just({}), st.just({}), *kinds), cap
    )


@st.composite
def blends(draw):
    names = draw(st.lists(st.sampled_from(sorted(SIZES)), min_size=1, unique=True))
    inside = draw(st.integers(0, len(names)))
    blend = {"corpora": {n: draw(amounts()) for n in names[inside:]}}
    if inside:
        own = draw(st.sampled_from([{}, {"share": 0.4}, {"tokens": 777}]))
        blend["streams"] = {"s": {**own, "corpora": {n: draw(amounts()) for n in names[:inside]}}}
    budget = draw(st.sampled_from([None, {"steps": 13}, {"tokens": 1717}, {"tokens": 5000}]))
    return {**blend, **({} if budget is None else {"budget": budget})}


@settings(max_examples=300)
@given(chain=st.lists(blends(), min_size=1, max_size=3), cut=st.integers(0, 13))
def test_plans_of_random_blends_and_phases_pass(chain, cut):
    plan = None
    for blend in chain:
        try:
            after_step = None if plan is None else min(cut, plan.steps)
            plan = solved(blend, after=plan, after_step=after_step)
        except (ConfigError, ValidationError):
            return  # amounts that cannot be met
        assert faults(plan) == []
