from fractions import Fraction

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_synth.blending import BlendConfig, CorpusSize, solve
from megatron_synth.config import ConfigError, parse_config


def blend(text, **defaults):
    tree = {"sequence_length": 8, "global_batch_size": 2, **defaults, **yaml.safe_load(text)}
    return parse_config(tree, BlendConfig, where="blend.yaml")


def sizes(**tokens):
    return {
        name: CorpusSize(count, max(1, count // 10), f"hash of {name}")
        for name, count in tokens.items()
    }


def windows(plan):
    return {corpus.name: corpus.windows for corpus in plan.corpora}


def test_one_epoch_of_synthetic_text_and_the_rest_on_organic():
    plan = solve(
        blend("{budget: 1000, corpora: {synthetic: {epochs: 1}, organic: }}"),
        sizes(synthetic=100, organic=200),
    )
    # 1000 tokens are 125 windows, 62 steps of 2; (100 - 1) // 8 = 12; (200 - 1) // 8 = 24
    assert plan.steps == 62 and plan.tokens == 992
    assert windows(plan) == {"synthetic": 12, "organic": 112}
    assert plan.corpus("synthetic").epochs == 1
    assert plan.corpus("organic").epochs == 112 / 24
    assert [c.dropped_per_epoch for c in plan.corpora] == [3, 7]


def test_sbp_at_the_papers_200b_scale():
    plan = solve(
        blend(
            "{budget: 200B, corpora: {synthetic: {epochs: 1}, organic: }}",
            sequence_length=4096,
            global_batch_size=2048,
        ),
        {"synthetic": CorpusSize(75 * 10**9, 10**8), "organic": CorpusSize(10**10, 10**7)},
    )
    assert abs(plan.share("synthetic") - 0.375) < 1e-4
    assert abs(plan.corpus("organic").epochs - 12.5) < 1e-2
    assert "(declared)" in plan.table()


def test_megadocs_epochs_of_the_real_stream_fix_the_length():
    plan = solve(
        blend("{corpora: {real: {epochs: 4}, mega: {share: 0.75}}}"),
        sizes(real=801, mega=10_001),
    )
    assert windows(plan) == {"real": 400, "mega": 1200}  # C = E * D / (1 - m)


def test_shares_that_are_everything_are_rounded_by_largest_remainder():
    plan = solve(
        blend("{budget: {steps: 5}, corpora: {a: {share: 0.33}, b: {share: 0.67}}}"),
        sizes(a=1000, b=1000),
    )
    assert windows(plan) == {"a": 3, "b": 7}


def test_several_corpora_without_an_amount_get_equal_epochs():
    plan = solve(
        blend("{budget: {steps: 90}, corpora: {a: , b: }}"), sizes(a=8 * 10 + 1, b=8 * 50 + 1)
    )
    assert windows(plan) == {"a": 30, "b": 150}


def test_a_capped_filler_leaves_the_rest_to_the_others():
    plan = solve(
        blend("{budget: {steps: 90}, corpora: {a: {max_epochs: 2}, b: }}"),
        sizes(a=8 * 10 + 1, b=8 * 50 + 1),
    )
    assert windows(plan) == {"a": 20, "b": 160}


def test_a_share_of_a_stream_counts_inside_it():
    text = """
        budget: {steps: 50}
        corpora: {real: {}}
        streams:
          synthetic: {share: 0.4, corpora: {sbp: {share: 0.25}, megadocs: {}}, reshuffle: false}
    """
    plan = solve(blend(text), sizes(real=500, sbp=500, megadocs=500))
    assert windows(plan) == {"real": 60, "sbp": 10, "megadocs": 30}
    assert [c.stream for c in plan.corpora] == ["real", "synthetic", "synthetic"]
    assert [c.reshuffle for c in plan.corpora] == [True, False, False]


def test_epochs_of_a_stream_are_those_of_each_of_its_corpora():
    text = "{streams: {all: {epochs: 3, corpora: {a: , b: {epochs: 1}}}}, global_batch_size: 1}"
    assert windows(solve(blend(text), sizes(a=81, b=161))) == {"a": 30, "b": 20}


def test_without_budget_the_epochs_are_cut_to_whole_batches():
    plan = solve(blend("{corpora: {a: {epochs: 3}}, global_batch_size: 4}"), sizes(a=73))
    assert windows(plan) == {"a": 24}  # 27 windows are 6 batches and 3 windows


@pytest.mark.parametrize("other", ["share: 0.5", "tokens: 64"])
def test_whole_epochs_stay_whole_when_others_can_give_way(other):
    text = f"{{corpora: {{a: {{epochs: 1}}, b: {{{other}}}}}, global_batch_size: 8}}"
    assert windows(solve(blend(text), sizes(a=81, b=161))) == {"a": 10, "b": 6}


def test_a_share_of_nothing_is_a_plan_too():
    plan = solve(blend("{budget: {steps: 5}, corpora: {a: {share: 0}, b: }}"), sizes(a=100, b=100))
    assert windows(plan) == {"a": 0, "b": 10}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("{budget: 80, corpora: {a: {tokens: 96}, b: }}", ["10 windows", "12", "2 too many"]),
        ("{budget: 80, corpora: {a: {epochs: 1}}}", ["10 windows", "12", "2 too many"]),
        ("{budget: 160, corpora: {a: {epochs: 1}}}", ["20 windows", "12", "8 too few"]),
        ("{budget: 80, corpora: {a: {share: 0.6}, b: {share: 0.6}}}", ["12", "2 too many"]),
        ("{budget: 800, corpora: {a: {max_epochs: 2}}}", ["100 windows", "24", "76 cannot"]),
        ("{budget: 800, corpora: {a: {share: 0.5, max_epochs: 2}, b: }}", ["50", "24", "208 tok"]),
        ("{budget: 0, corpora: {a: }}", ["0 tokens", "16"]),
        ("{budget: 15, corpora: {a: }}", ["15 tokens", "16"]),
        ("{budget: {steps: 0}, corpora: {a: }}", ["0 tokens"]),
        ("{corpora: {a: , b: {epochs: 1}}}", ["without a budget", "a"]),
        ("{corpora: {a: {share: 0.5}, b: {share: 0.5}}}", ["shares come to 1"]),
        ("{budget: 80, corpora: {tiny: }}", ["8 tokens", "9"]),
        ("{budget: 80, corpora: {a: {tokens: 7}, b: }}", ["tokens 7", "less than one window"]),
        ("{budget: 80, corpora: {bb: }}", ["'bb'", "Did you mean 'b'"]),
        ("{budget: 80, corpora: {a: , other: }}", ["different tokenizers", "fp1", "fp2"]),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_numbers(text, numbers):
    corpora = sizes(a=100, b=200, tiny=8)
    corpora["a"] = CorpusSize(100, 3, "x", "fp1")
    corpora["other"] = CorpusSize(100, 3, "y", "fp2")
    with pytest.raises(ConfigError) as caught:
        solve(blend(text), corpora)
    for number in numbers:
        assert number in str(caught.value)


@st.composite
def amounts(draw):
    kind = draw(st.sampled_from(["tokens", "share", "epochs", None, None]))
    amount = {}
    if kind == "tokens":
        amount["tokens"] = draw(st.integers(0, 3000))
    if kind == "share":
        amount["share"] = draw(st.integers(0, 60)) / 100
    if kind == "epochs":
        amount["epochs"] = draw(st.sampled_from([0, 0.5, 1, 2, 3.7]))
    if draw(st.integers(0, 3)) == 0:
        amount["max_epochs"] = draw(st.sampled_from([1, 2, 4, 50]))
    return amount


@given(
    wanted=st.lists(st.tuples(amounts(), st.integers(1, 4000)), min_size=1, max_size=5),
    budget=st.one_of(st.none(), st.integers(0, 20_000)),
    length=st.integers(1, 40),
    batch=st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_a_plan_is_exact_or_refused(wanted, budget, length, batch):
    names = [f"c{i}" for i in range(len(wanted))]
    tree = {"corpora": {n: a for n, (a, _) in zip(names, wanted, strict=True)}}
    if budget is not None:
        tree["budget"] = budget
    corpora = {n: CorpusSize(tokens, 1, n) for n, (_, tokens) in zip(names, wanted, strict=True)}
    try:
        config = blend(yaml.safe_dump(tree), sequence_length=length, global_batch_size=batch)
        plan = solve(config, corpora)
    except ConfigError as error:
        assert any(c.isdigit() for c in str(error))
        return
    assert sum(c.windows for c in plan.corpora) == plan.steps * batch == plan.samples
    if budget is not None:
        assert plan.tokens <= budget < plan.tokens + batch * length
    fillers = any(c.asked == "fills the rest" for c in plan.corpora)
    for corpus, (amount, tokens) in zip(plan.corpora, wanted, strict=True):
        whole = (tokens - 1) // length
        assert corpus.windows_per_epoch == whole
        assert whole * length + corpus.dropped_per_epoch == max(0, tokens - 1)
        assert 0 <= corpus.dropped_per_epoch < length
        if "max_epochs" in amount:
            assert corpus.windows <= Fraction(amount["max_epochs"]) * whole
        if fillers and "tokens" in amount:
            assert corpus.windows == amount["tokens"] // length
        if fillers and "epochs" in amount:
            assert corpus.windows == int(Fraction(repr(amount["epochs"])) * whole)
        if fillers and "share" in amount:
            assert 0 <= Fraction(repr(amount["share"])) * plan.samples - corpus.windows < 1


@given(shares=st.lists(st.integers(1, 100), min_size=1, max_size=6), steps=st.integers(20, 3000))
@settings(max_examples=100, deadline=None)
def test_shares_that_sum_to_one_always_have_a_plan_within_one_window(shares, steps):
    hundredths = [100 * s // sum(shares) for s in shares]
    hundredths[0] += 100 - sum(hundredths)
    assume(min(hundredths) > 0)
    text = {f"c{i}": {"share": s / 100} for i, s in enumerate(hundredths)}
    config = blend(
        yaml.safe_dump({"budget": {"steps": steps}, "corpora": text}), global_batch_size=5
    )
    plan = solve(config, {name: CorpusSize(10_000, 10, name) for name in text})
    for corpus, share in zip(plan.corpora, hundredths, strict=True):
        assert abs(corpus.windows - Fraction(share, 100) * plan.samples) < 1


def test_a_stream_that_rounding_raised_is_divided_all_the_same():
    config = BlendConfig.model_validate(
        {
            "sequence_length": 512,
            "global_batch_size": 3,
            "budget": {"steps": 667},
            "streams": {
                "x": {
                    "tokens": 512_300,
                    "corpora": {"a": {"tokens": 256_150}, "b": {"tokens": 256_150}},
                }
            },
            "corpora": {"c": {"tokens": 512_212}},
        }
    )
    sizes = {name: CorpusSize(1_000_000, 10, name) for name in "abc"}
    plan = solve(config, sizes)
    assert {c.name: c.windows for c in plan.corpora} == {"a": 501, "b": 500, "c": 1000}


def test_rounding_up_passes_no_cap():
    config = BlendConfig.model_validate(
        {
            "sequence_length": 8,
            "global_batch_size": 1,
            "budget": {"steps": 3},
            "corpora": {"a": {"epochs": 0.15, "max_epochs": 0.15}, "b": {"epochs": 0.15}},
        }
    )
    plan = solve(config, {name: CorpusSize(81, 10, name) for name in "ab"})
    assert {c.name: c.windows for c in plan.corpora} == {"a": 1, "b": 2}
