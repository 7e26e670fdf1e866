"""The audit passes what is right, and says what it counted."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_synth.blending import BlendConfig, Ledger, audit, corpus_size, solve
from megatron_synth.blending.recount.bits import Seen
from megatron_synth.blending.sizes import measure
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.config import ConfigError
from megatron_synth.runs import Progress

S, G = 8, 4


@pytest.fixture(autouse=True)
def _indices_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGATRON_SYNTH_INDEX", str(tmp_path / "indices"))


def solved(corpora, sizes, after=None, after_step=None, **settings):
    given = {"sequence_length": S, "global_batch_size": G, **settings}
    config = BlendConfig.model_validate({**given, "corpora": corpora})
    return solve(config, sizes, after=after, after_step=after_step)


@pytest.fixture
def prefixes(make_corpus):
    lengths = np.random.default_rng(3).integers(2, 30, 50).tolist()
    return {
        "organic": make_corpus("organic", lengths),
        "synthetic": make_corpus("synthetic", lengths[:15], first=10_000),
    }


@pytest.fixture
def plan(prefixes):
    sizes = {n: corpus_size(p) for n, p in prefixes.items()}
    return solved({"synthetic": {"epochs": 1}, "organic": {}}, sizes, budget=2500)


def test_a_right_run_passes_at_every_kind_of_step(plan, prefixes):
    for step in (0, 1, plan.steps // 2, plan.steps):
        found = audit(plan, prefixes, step)
        assert found.faults == () and found.passed
        assert sum(c["windows"] for c in found.counted.values()) == step * G
    assert found.counted["synthetic"]["documents_begun"] in (14, 15)
    assert audit(plan, prefixes) == found


def test_the_count_is_the_ledgers(plan, prefixes):
    found = audit(plan, prefixes)
    account = Ledger(plan).at(plan.steps)
    for name, counted in found.counted.items():
        said = account["corpora"][name]
        assert counted["windows"] == said["windows"]
        assert counted["tokens"] == said["tokens"]
        assert counted["dropped_tokens"] == said["dropped_tokens"]
        assert counted["epochs"] == pytest.approx(said["epochs"])
    assert found.streams == account["streams"]
    finished = int(plan.corpus("organic").epochs)
    dropped = finished * plan.corpus("organic").dropped_per_epoch
    assert found.counted["organic"]["dropped_tokens"] == dropped > 0


def test_no_document_begins_twice_in_an_epoch(plan, prefixes):
    begun = audit(plan, prefixes).counted["organic"]["documents_begun"]
    assert 50 < begun <= 50 * np.ceil(plan.corpus("organic").epochs)


def test_the_answer_is_json_with_documented_keys(plan, prefixes):
    answer = json.loads(json.dumps(audit(plan, prefixes, 3).as_json()))
    assert list(answer) == ["passed", "step", "corpora", "streams", "faults", "exposure"]
    assert (answer["passed"], answer["step"]) == (True, 3)
    assert (answer["faults"], answer["exposure"]) == ([], None)
    keys = {"windows", "tokens", "epochs", "documents_begun", "dropped_tokens"}
    assert all(set(corpus) == keys for corpus in answer["corpora"].values())
    assert answer["streams"]["organic"]["tokens"] == answer["corpora"]["organic"]["tokens"]


def test_prefixes_may_come_from_the_plan(prefixes):
    sizes = {n: measure(SourceConfig(data=p)) for n, p in prefixes.items()}
    plan = solved({"synthetic": {"epochs": 1}, "organic": {}}, sizes, budget=2500)
    assert audit(plan).faults == ()
    assert audit(plan, {"organic": prefixes["organic"]}).faults == ()


def test_progress_counts_windows(plan, prefixes):
    states = []
    audit(plan, prefixes, progress=Progress(on_change=states.append))
    assert states[0].phase == "recounting the served windows"
    assert states[0].total == plan.samples and states[0].unit == "windows"


def test_the_stock_order_is_refused(plan, prefixes):
    stock = plan.model_copy(update={"order": "megatron"})
    with pytest.raises(ConfigError, match=r"order: megatron.*no account to recount"):
        audit(stock, prefixes)


def test_steps_and_phases_that_do_not_exist_are_refused(plan, prefixes):
    with pytest.raises(ConfigError, match=f"steps 0 to {plan.steps}, not"):
        audit(plan, prefixes, plan.steps + 1)
    with pytest.raises(ConfigError, match="goes on from no other"):
        audit(plan, prefixes, before=[plan])
    sizes = {n: corpus_size(p) for n, p in prefixes.items()}
    later = solved({"organic": {}}, sizes, after=plan, budget={"steps": 3})
    other = solved({"organic": {}}, sizes, budget={"steps": 3})
    with pytest.raises(ConfigError, match=f"goes on from plan {plan.hash[:12]}, not"):
        audit(later, prefixes, before=[other])
    assert audit(later, prefixes, before=[plan]).faults == ()


def amounts(names):
    """Random amounts: some corpora in tokens, shares or epochs, one fills the rest."""
    amount = st.one_of(
        st.builds(lambda n: {"tokens": n}, st.integers(S, 400)),
        st.builds(lambda n: {"share": n / 100}, st.integers(5, 30)),
        st.builds(lambda n: {"epochs": n / 4}, st.integers(1, 10)),
    )
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names[1:], amount)).map(
        lambda given: {**given, names[0]: {}}
    )


def shapes():
    """Documents' lengths, empty ones among them, with at least eleven windows."""
    lengths = st.lists(st.one_of(st.just(0), st.integers(1, 40)), min_size=1, max_size=30)
    return lengths.map(lambda found: [*found, 12 * S])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 1000))
def test_random_plans_pass(tmp_path_factory, write_corpus, data, seed):
    folder = tmp_path_factory.mktemp("c")
    names = ("a", "b", "c")
    prefixes, sources = {}, {}
    for name in names:
        lengths = data.draw(shapes(), label=f"lengths of {name}")
        documents = [[*range(1, n), 0] if n else [] for n in lengths]
        prefixes[name] = write_corpus(folder / name, documents)
        sources[name] = SourceConfig(data=prefixes[name])
    kind = data.draw(st.sampled_from(["all", "top", "mask", "order"]), label="source of a")
    count = corpus_size(prefixes["a"]).documents
    rng = np.random.default_rng(seed)
    change = {}
    if kind == "order":
        np.save(folder / "order.npy", rng.permutation(count))
        change["order"] = folder / "order.npy"
    elif kind != "all":
        values = (
            rng.integers(0, 5, count).astype(float) if kind == "top" else rng.random(count) < 0.8
        )
        np.save(folder / "select.npy", values)
        rule = {"top": 0.7, "of": data.draw(st.sampled_from(["documents", "tokens"]))}
        change["select"] = {"file": folder / "select.npy", **(rule if kind == "top" else {})}
    sources["a"] = SourceConfig(data=prefixes["a"], **change)
    plan, plans = None, []
    try:
        sizes = {name: measure(source) for name, source in sources.items()}
        reshuffle = {name: data.draw(st.booleans()) for name in names}
        for _ in range(data.draw(st.integers(1, 3), label="phases")):
            corpora = data.draw(amounts(names), label="amounts")
            corpora = {n: {**c, "reshuffle": reshuffle[n]} for n, c in corpora.items()}
            cut = None if plan is None else data.draw(st.integers(0, plan.steps), label="cut")
            plan = solved(
                corpora,
                sizes,
                after=plan,
                after_step=cut,
                seed=seed,
                attention=data.draw(st.sampled_from(["cross", "document"])),
                budget={"steps": data.draw(st.integers(20, 40))},
            )
            plans.append(plan)
    except ConfigError:
        pass  # amounts that cannot be met, or nothing selected
    for number, plan in enumerate(plans):
        found = audit(plan, prefixes, before=plans[:number])
        assert found.faults == ()
    if plans:
        assert audit(plans[-1], prefixes).faults == ()


@given(
    spans=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 150)), max_size=12),
    most=st.integers(1, 400),
)
def test_bits_are_a_set(spans, most):
    seen, truth = Seen(300), set()
    for begin, length in spans:
        tokens = set(range(begin, min(300, begin + length)))
        twice = seen.mark(np.array([begin]), np.array([min(300, begin + length)]))
        assert twice == len(truth & tokens)
        truth |= tokens
    assert seen.has(np.arange(300)).tolist() == [i in truth for i in range(300)]
    count, listed = seen.missing(most)
    missing = sorted(set(range(300)) - truth)
    assert count == len(missing)
    assert listed.tolist() == missing[: len(listed)] and len(listed) >= min(most, count)


@pytest.mark.parametrize("length", [9, 768])
def test_amounts_that_are_whole_windows_pass_at_any_sequence_length(make_corpus, length):
    prefixes = {"a": make_corpus("a", [length] * 40), "b": make_corpus("b", [length] * 40, 90_000)}
    config = BlendConfig.model_validate(
        {
            "sequence_length": length,
            "global_batch_size": 2,
            "budget": {"steps": 10},
            "corpora": {"a": {"tokens": 7 * length}, "b": {}},
        }
    )
    plan = solve(config, {n: corpus_size(p) for n, p in prefixes.items()})
    assert audit(plan, prefixes, plan.steps).faults == ()


def test_a_table_of_exposure_has_a_folder_before_anything_is_served(plan, prefixes, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        audit(plan, prefixes, 1, exposure=tmp_path / "nowhere" / "e.parquet")
