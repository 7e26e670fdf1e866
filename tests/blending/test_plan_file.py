from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_synth.blending import BlendedStreams, Plan, corpus_size
from megatron_synth.blending.plan_file import read_plans
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.config import ConfigError, DataError

BASE = {
    "budget": 6400,
    "sequence_length": 16,
    "global_batch_size": 4,
    "sources": {
        "organic": {"declared": {"tokens": 1000, "documents": 20}},
        "synthetic": {"declared": {"tokens": 2000, "documents": 50}},
    },
    "corpora": {"synthetic": {"epochs": 1}, "organic": {}},
}
VARIANTS = {
    "half": {"corpora.synthetic": {"share": 0.5}},
    "longer": {"budget": {"steps": 200}, "corpora.organic.max_epochs": 30},
}
PHASES = [
    {"name": "more", "budget": {"steps": 10}, "corpora": {"organic": {}}},
    {"name": "wide", "global_batch_size": 8, "corpora": {"synthetic": {"epochs": 1}}},
    {"name": "end", "budget": {"steps": 2}, "corpora": {"synthetic": None}},
]


@pytest.fixture
def write(tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "blend.yaml"
        path.write_text(yaml.safe_dump({**BASE, **changes}))
        return path

    return write


@pytest.fixture
def index_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGATRON_SYNTH_INDEX", str(tmp_path / "index"))


def refused(path, *overrides, kind=ConfigError, **settings) -> str:
    with pytest.raises(kind) as caught:
        read_plans(path, overrides, **settings)
    return str(caught.value)


def test_a_file_without_variants_is_one_plan(write):
    plans = read_plans(write())
    assert list(plans) == ["plan"]
    assert plans["plan"].tokens == 6400
    assert plans["plan"].corpus("synthetic").epochs == 1
    assert list(read_plans(write(name="first"))) == ["first"]


def test_variants_replace_values_under_dotted_keys(write):
    plans = read_plans(write(variants=VARIANTS))
    assert list(plans) == ["half", "longer"]
    assert plans["half"].share("synthetic") == 0.5
    assert (plans["longer"].steps, plans["longer"].corpus("organic").max_epochs) == (200, 30)
    assert plans["longer"].corpus("synthetic").epochs == 1  # as in the file


def test_one_variant_or_the_file_itself_can_be_asked_for(write):
    path = write(variants=VARIANTS)
    assert list(read_plans(path, variant="half")) == ["half"]
    assert read_plans(path, variant="base")["plan"] == read_plans(write())["plan"]


def test_overrides_come_after_the_variants(write):
    path = write(variants={**VARIANTS, "seeded": {"seed": 5}})
    plans = read_plans(path, ["seed=7", "budget=12.8K"])
    assert {plan.seed for plan in plans.values()} == {7}
    assert {plan.tokens for plan in plans.values()} == {12800}


def test_names_of_variants_may_be_numbers_or_have_no_values(write):
    path = write(variants={50: {"seed": 1}, 0.5: None, "x": {}})
    assert list(read_plans(path)) == ["50", "0.5", "x"]
    assert read_plans(path, variant="50")["50"].seed == 1
    assert "'50'" in refused(path, variant="5")


@pytest.mark.parametrize("name", ["base", "a/b", "../x", "", ".hidden", "two words"])
def test_a_variant_whose_name_is_no_name_is_refused(write, name):
    assert "cannot name a variant" in refused(write(variants={name: {}}))


@pytest.mark.parametrize("variants", [["half"], "half", {"half": 3}, {"half": ["seed"]}])
def test_variants_that_are_no_mapping_are_refused(write, variants):
    assert "names with keys and values" in refused(write(variants=variants))


def test_plans_of_one_name_are_refused(write):
    path = write(variants={"a": {}, "a.more": {}}, phases=PHASES[:1])
    assert "two plans would be called 'a.more'" in refused(path)


def test_phases_follow_each_other(write):
    plans = read_plans(write(phases=PHASES))
    assert list(plans) == ["plan", "more", "wide", "end"]
    first, more, wide, end = plans.values()
    assert (more.previous, wide.previous, end.previous) == (first.hash, more.hash, wide.hash)
    assert [p.first_step for p in plans.values()] == [0, 100, 110, 110 + wide.steps]
    organic = [p.corpus("organic") for p in plans.values()]
    assert [c.start for c in organic[1:]] == [c.start + c.windows for c in organic[:-1]]
    assert (wide.global_batch_size, end.global_batch_size) == (8, 8)  # as in the phase before
    assert wide.corpus("organic").windows == 0  # nothing is carried over
    assert end.seed == first.seed and end.sequence_length == first.sequence_length


def test_phases_of_variants_are_named_after_both(write):
    plans = read_plans(write(phases=PHASES[:1], variants=VARIANTS))
    assert list(plans) == ["half", "half.more", "longer", "longer.more"]
    assert plans["longer.more"].previous == plans["longer"].hash


def test_a_file_can_follow_a_plan_that_was_cut_short(write):
    first = read_plans(write())["plan"]
    path = write(corpora={"organic": {}}, budget={"steps": 7})
    whole = read_plans(path, after=first)["plan"]
    cut = read_plans(path, after=first, after_step=40)["plan"]
    assert (whole.first_step, cut.first_step) == (100, 40)
    assert cut.corpus("synthetic").start < whole.corpus("synthetic").start
    assert cut.previous == whole.previous == first.hash
    assert "steps 0 to 100" in refused(path, after=first, after_step=101)


def test_only_the_first_phase_of_a_file_follows_a_plan_that_was_cut_short(write):
    first = read_plans(write())["plan"]
    path = write(corpora={"organic": {}}, budget={"steps": 50}, phases=PHASES[:1])
    begun, more = read_plans(path, after=first, after_step=40).values()
    assert (begun.first_step, more.first_step) == (40, 90)
    before, now = begun.corpus("organic"), more.corpus("organic")
    assert now.start == before.start + before.windows


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": {"half": {}}, "variant": "halb"}, ["halb", "Did you mean 'half'?"]),
        ({"corpora": {"organik": {}}}, ["sources", "'organik'", "Did you mean 'organic'?"]),
        (
            {"phases": [{"name": "x", "budget": 6400, "corpora": {"sythetic": {}}}]},
            ["'sythetic'", "Did you mean 'synthetic'?"],
        ),
        ({"phases": [{"nam": "x", "corpora": {"organic": {}}}]}, ["phases.0.nam", "'name'"]),
        ({"phases": [{"name": "plan", "corpora": {"organic": {}}}]}, ["share a name: plan"]),
        ({"phases": [{"name": "x y", "corpora": {"organic": {}}}]}, ["phases.0.name"]),
        ({"phases": [{"name": "x"}]}, ["phases.x", "at least one corpus"]),
        (
            {"phases": [{"name": "x", "corpora": {"organic": {}}}]},
            ["phase x", "without a budget nothing says"],
        ),
        ({"source": {}}, ["'source'", "'sources'"]),
        ({"sources": {"organic": {}}}, ["sources.organic", "data", "declared"]),
        (
            {"sources": {"organic": {"declared": {"tokens": 5, "docs": 1}}}},
            ["sources.organic.declared.docs", "did you mean"],
        ),
        (
            {"variants": {"bad": {"corpora.organik.share": 0.5}}},
            ["variant bad", "'organik'", "Did you mean 'organic'?"],
        ),
        ({"variants": {"bad": {"sead": 1}}}, ["variant bad", "'sead'", "'seed'"]),
        ({"variants": {"bad": {"budget.steps": 1}}}, ["variant bad", "budget is 6400"]),
        (
            {"variants": {"bad": {"corpora.synthetic.epochs": 9}}},
            ["variant bad", "400 windows", "1,116"],
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_nearest_name(write, changes, words):
    changes = dict(changes)
    variant = changes.pop("variant", None)
    message = refused(write(**changes), variant=variant)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("documents", "passes"),
    [([50] * 20, True), ([52] * 20, True), ([53] * 20, False), ([47] * 20, False)],
    ids=["as declared", "4 % over", "6 % over", "6 % under"],
)
def test_data_is_compared_with_what_was_declared(write, make_corpus, documents, passes):
    prefix = make_corpus("organic", documents)
    source = {"data": str(prefix), "declared": {"tokens": 1000, "documents": 20}}
    path = write(sources={**BASE["sources"], "organic": source})
    if passes:
        corpus = read_plans(path)["plan"].corpus("organic")
        assert (corpus.tokens, corpus.content_hash) == (
            sum(documents),
            corpus_size(prefix).content_hash,
        )
        return
    message = refused(path)
    for word in ("organic.declared", "1,000 tokens were declared", f"{sum(documents):,}", "5 %"):
        assert word in message
    wider = read_plans(path, ["sources.organic.declared.within=0.1"])["plan"]
    assert wider.corpus("organic").tokens == sum(documents)


def test_a_wrong_count_of_documents_is_a_difference_too(write, make_corpus):
    source = {
        "data": str(make_corpus("organic", [100] * 10)),
        "declared": {"tokens": 1000, "documents": 20},
    }
    message = refused(write(sources={**BASE["sources"], "organic": source}))
    assert "20 documents were declared" in message and "-50.0 %" in message


def test_half_a_dataset_is_a_fault_and_not_a_corpus_to_be_made(write, make_corpus):
    prefix = make_corpus("organic", [50] * 20)
    source = {"data": str(prefix), "declared": {"tokens": 1000, "documents": 20}}
    path = write(sources={**BASE["sources"], "organic": source})
    index = prefix.with_name("organic_text_document.idx")
    index.rename(index.with_suffix(".away"))
    assert "half of an indexed dataset" in refused(path, kind=DataError)
    prefix.with_name("organic_text_document.bin").unlink()
    assert read_plans(path)["plan"].corpus("organic").content_hash is None


def test_declared_and_measured_plans_differ_by_hash_alone_where_counts_agree(write, make_corpus):
    declared = read_plans(write())["plan"]
    source = {"data": str(make_corpus("organic", [50] * 20))}
    measured = read_plans(write(sources={**BASE["sources"], "organic": source}))["plan"]
    assert [c.windows for c in declared.corpora] == [c.windows for c in measured.corpora]
    assert declared.hash != measured.hash
    assert "20 (declared)" in declared.table() and "20 (declared)" not in measured.table()


def test_without_data_and_declared_counts_a_missing_corpus_is_refused(write, tmp_path):
    source = {"data": str(tmp_path / "nowhere")}
    message = refused(write(sources={**BASE["sources"], "organic": source}), kind=DataError)
    assert "nowhere" in message and "no indexed dataset" in message


def test_a_plan_remembers_its_sources_and_can_be_served_without_prefixes(
    write, make_corpus, tmp_path, index_folder
):
    lengths = [5 + i % 7 for i in range(200)]
    scores = tmp_path / "scores.npy"
    np.save(scores, np.arange(200, dtype=np.float32))
    organic = {
        "data": str(make_corpus("organic", lengths)),
        "select": {"file": str(scores), "top": 0.25},
    }
    synthetic = {"data": str(make_corpus("synthetic", lengths, 5000))}
    path = write(
        sources={"organic": organic, "synthetic": synthetic},
        corpora={"organic": {"epochs": 2}, "synthetic": {}},
        budget={"steps": 20},
    )
    plan = read_plans(path)["plan"]
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.hash == plan.hash
    assert again.corpus("organic").source == SourceConfig.model_validate(organic)
    assert again.corpus("organic").documents == 50
    streams = BlendedStreams(again)
    assert len(streams) == 80 and streams[79]["tokens"].shape == (16,)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"file": "s.npy", "top": 0.5, "above": 0}, "top and above are both set"),
        ({"file": "s.csv", "top": 0.5}, "neither .npy nor .parquet"),
        ({"file": "s.parquet"}, "scores need top or above"),
        ({"file": "s.npy", "top": 80}, "top"),
        ({"file": "s.npy", "topp": 0.8}, "did you mean 'top'"),
    ],
)
def test_a_rule_of_selection_that_is_none_is_refused(write, rule, message):
    source = {**BASE["sources"]["organic"], "select": rule}
    assert message in refused(write(sources={**BASE["sources"], "organic": source}))


def test_a_selection_is_planned_before_its_scores_are_there(write, make_corpus, tmp_path):
    source = {
        "declared": {"tokens": 300, "documents": 6},
        "select": {"file": str(tmp_path / "not_yet.npy"), "top": 0.3},
    }
    corpus = read_plans(write(sources={**BASE["sources"], "organic": source}))["plan"].corpus(
        "organic"
    )
    assert (corpus.tokens, corpus.documents, corpus.content_hash) == (300, 6, None)
    source["data"] = str(make_corpus("organic", [50] * 20))  # with data, scores are needed
    message = refused(write(sources={**BASE["sources"], "organic": source}), kind=DataError)
    assert "not_yet.npy" in message and "no such file" in message


def test_what_is_declared_of_a_selection_is_compared_with_the_selection(
    write, make_corpus, tmp_path, index_folder
):
    np.save(tmp_path / "s.npy", np.arange(20))
    source = {
        "data": str(make_corpus("organic", [50] * 20)),
        "declared": {"tokens": 300, "documents": 6},
        "select": {"file": str(tmp_path / "s.npy"), "top": 0.3},
    }
    path = write(sources={**BASE["sources"], "organic": source})
    assert read_plans(path)["plan"].corpus("organic").tokens == 300
    assert "300 tokens were declared, the packed corpus has 250" in refused(
        path, "sources.organic.select.top=0.25"
    )
