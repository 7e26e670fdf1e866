from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_synth.blending import BlendConfig, BlendedStreams, Ledger, audit, corpus_size, solve
from megatron_synth.config import ConfigError

S, G = 8, 4


def blend(corpora, steps, **settings):
    given = {"sequence_length": S, "global_batch_size": G, "budget": {"steps": steps}}
    return BlendConfig.model_validate({**given, "corpora": corpora, **settings})


@pytest.fixture
def prefixes(make_corpus):
    lengths = np.random.default_rng(2).integers(2, 30, 40).tolist()
    return {n: make_corpus(n, lengths[i:], 1000 * i + 1) for i, n in enumerate(("a", "b", "c"))}


def sizes(prefixes):
    return {name: corpus_size(prefix) for name, prefix in prefixes.items()}


def texts(plan, prefixes, steps):
    """Served windows by corpus, in order."""
    result = {}
    streams = BlendedStreams(plan, prefixes)
    for i in range(steps * G):
        name = plan.corpora[streams[i]["dataset_id"]].name
        result.setdefault(name, []).append(streams[i]["tokens"].tolist())
    return result


def alone(name, prefixes, count):
    """The first `count` windows of a corpus that is trained on by itself."""
    plan = solve(blend({name: {}}, -(-count // G)), sizes(prefixes))
    return texts(plan, prefixes, plan.steps)[name][:count]


def test_the_second_phase_begins_with_the_next_window(prefixes):
    first = solve(blend({"a": {}}, 3), sizes(prefixes))
    second = solve(
        blend({"a": {}, "b": {"epochs": 1}}, 30), sizes(prefixes), after=first, after_step=2
    )
    served = texts(first, prefixes, 2)["a"] + texts(second, prefixes, 30)["a"]
    assert served == alone("a", prefixes, len(served))


@given(
    phases=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1),
            st.integers(1, 25),
            st.integers(0, 25),
        ),
        min_size=5,
        max_size=5,
    )
)
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_five_phases_lose_nothing_and_repeat_nothing(prefixes, phases):
    served = {name: [] for name in prefixes}
    plan, done = None, None
    for weights, steps, cut in phases:
        whole = sum(weights.values())
        shares = {n: {"tokens": S * (steps * G * w // whole)} for n, w in weights.items()}
        shares[next(iter(shares))] = {}  # one fills
        shares = {n: a for n, a in shares.items() if a.get("tokens") != 0}
        plan = solve(blend(shares, steps), sizes(prefixes), after=plan, after_step=done)
        done = min(cut, steps)
        for name, windows in texts(plan, prefixes, done).items():
            served[name] += windows
        account = Ledger(plan).at(done)["corpora"]
        assert {n: len(w) for n, w in served.items() if w} == {
            n: c["windows_ever"] for n, c in account.items() if c["windows_ever"]
        }
        assert audit(plan, prefixes, done).faults == ()
    for name, windows in served.items():
        if windows:
            assert windows == alone(name, prefixes, len(windows))


def test_ids_of_corpora_stay_and_new_ones_follow(prefixes):
    first = solve(blend({"b": {}}, 5), sizes(prefixes))
    second = solve(blend({"a": {}}, 5), sizes(prefixes), after=first)
    third = solve(blend({"a": {"share": 0.5}, "b": {}}, 5), sizes(prefixes), after=second)
    assert [c.name for c in second.corpora] == [c.name for c in third.corpora] == ["b", "a"]
    assert [c.start for c in third.corpora] == [20, 20]
    assert (third.first_step, third.previous) == (10, second.hash)
    assert "not in this phase" in second.table() and "after step 10" in third.table()
    assert "epochs before" in third.table() and "epochs before" not in first.table()


def test_a_cap_counts_all_phases(prefixes):
    first = solve(blend({"a": {}}, 5), sizes(prefixes))
    per_epoch = first.corpus("a").windows_per_epoch
    steps = -(-per_epoch // G)
    with pytest.raises(ConfigError, match="max_epochs"):
        solve(blend({"a": {"max_epochs": 1}}, steps), sizes(prefixes), after=first)
    with pytest.raises(ConfigError, match="after 20 in earlier phases"):
        solve(
            blend({"a": {"epochs": 1, "max_epochs": 1}, "b": {}}, 2 * steps),
            sizes(prefixes),
            after=first,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 in the phase before, is 1"),
        ({"sequence_length": 4}, "sequence_length was 8"),
        ({"corpora": {"a": {"reshuffle": False}}}, "reshuffle was True"),
    ],
)
def test_what_would_mix_up_seen_and_unseen_is_refused(prefixes, change, message):
    first = solve(blend({"a": {}}, 5), sizes(prefixes))
    settings = {"corpora": {"a": {}}, **change}
    with pytest.raises(ConfigError, match=message):
        solve(blend(settings.pop("corpora"), 5, **settings), sizes(prefixes), after=first)


def test_changed_data_and_steps_that_do_not_exist_are_refused(prefixes, make_corpus):
    first = solve(blend({"a": {}}, 5), sizes(prefixes))
    changed = {**sizes(prefixes), "a": corpus_size(make_corpus("other", [9] * 30))}
    with pytest.raises(ConfigError, match="changed since the phase before"):
        solve(blend({"a": {}}, 5), changed, after=first)
    with pytest.raises(ConfigError, match="steps 0 to 5, not 6"):
        solve(blend({"a": {}}, 5), sizes(prefixes), after=first, after_step=6)
    with pytest.raises(ConfigError, match="not the plan"):
        solve(blend({"a": {}}, 5), sizes(prefixes), after_step=6)


def test_a_corpus_of_another_tokenizer_is_refused_in_a_later_phase(prefixes):
    measured = {n: replace(size, tokenizer="one") for n, size in sizes(prefixes).items()}
    first = solve(blend({"a": {}}, 5), measured)
    other = {**measured, "b": replace(measured["b"], tokenizer="another")}
    with pytest.raises(ConfigError, match=r"different tokenizers.*one: a; another: b"):
        solve(blend({"b": {}}, 5), other, after=first)


def test_a_plan_in_stock_order_is_followed_by_nothing(prefixes):
    first = solve(blend({"a": {}}, 5, order="megatron"), sizes(prefixes))
    with pytest.raises(ConfigError, match="order: megatron, which keeps no account"):
        solve(blend({"a": {}}, 5), sizes(prefixes), after=first)


def test_a_cap_stays_in_the_phases_that_do_not_repeat_it(prefixes):
    first = solve(blend({"a": {"epochs": 1, "max_epochs": 1}}, 1, budget=None), sizes(prefixes))
    with pytest.raises(ConfigError, match="max_epochs 1 allows"):
        solve(blend({"a": {"epochs": 1}}, 1, budget=None), sizes(prefixes), after=first)
    raised = {"a": {"epochs": 1, "max_epochs": 2}}
    second = solve(blend(raised, 1, budget=None), sizes(prefixes), after=first)
    third = solve(blend({"b": {}}, 2), sizes(prefixes), after=second)
    assert (second.corpus("a").max_epochs, third.corpus("a").max_epochs) == (2, 2)
