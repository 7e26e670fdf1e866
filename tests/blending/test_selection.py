"""Properties of selections and orders: which documents are meant, and what is served of them."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from megatron_synth.blending import BlendConfig, BlendedStreams, audit, solve
from megatron_synth.blending.documents import Documents, Index
from megatron_synth.blending.selection import choose, document_lengths
from megatron_synth.blending.sizes import measure
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.config import ConfigError, DataError

S = 8
EOS = 0
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(documents):
    """The compiled loops' table of documents, each a list of lengths of its sequences."""
    lengths = np.array([n for document in documents for n in document], dtype=np.int32)
    pointers = 2 * (np.cumsum(lengths, dtype=np.int64) - lengths)
    borders = np.cumsum([0, *map(len, documents)])
    return Documents(Index(lengths, pointers, borders, int(lengths.sum()), 2)).table


def chosen(tmp_path, documents, scores=None, order=None, **rule):
    source = {"data": tmp_path / "unused"}
    if scores is not None:
        np.save(tmp_path / "scores.npy", np.array(scores))
        source["select"] = {"file": tmp_path / "scores.npy", **rule}
    if order is not None:
        np.save(tmp_path / "order.npy", np.array(order))
        source["order"] = tmp_path / "order.npy"
    config = SourceConfig.model_validate(source)
    try:
        return choose(config, tmp_path / "unused", table(documents)).tolist()
    except ConfigError as error:
        assert "selects no document" in str(error)
        return []


sequences = st.lists(st.integers(0, 30), min_size=0, max_size=3)
few_scores = st.integers(-2, 2)  # few of them, so that there are ties
scored = st.lists(st.tuples(sequences, few_scores), min_size=1, max_size=40)
shares = st.integers(1, 100).map(lambda percent: percent / 100)


def ranked(scores):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


@given(documents=st.lists(sequences, min_size=1, max_size=40))
@MANY
def test_lengths_of_documents_are_those_of_their_sequences(documents):
    assert document_lengths(table(documents)).tolist() == list(map(sum, documents))


@given(corpus=scored, top=shares)
@MANY
def test_top_of_documents_is_the_best_so_many_rounded_down(tmp_path, corpus, top):
    documents, scores = zip(*corpus, strict=True)
    count = int(Fraction(str(top)) * len(documents))
    assert chosen(tmp_path, documents, scores, top=top) == sorted(ranked(scores)[:count])


@given(corpus=scored, top=shares)
@MANY
def test_top_of_tokens_is_the_longest_run_of_the_best_under_the_bound(tmp_path, corpus, top):
    documents, scores = zip(*corpus, strict=True)
    lengths = list(map(sum, documents))
    bound = Fraction(str(top)) * sum(lengths)
    best = ranked(scores)
    fitting = [n for n in range(len(best) + 1) if sum(lengths[i] for i in best[:n]) <= bound]
    found = chosen(tmp_path, documents, scores, top=top, of="tokens")
    assert found == sorted(best[: max(fitting)])


@given(corpus=scored, above=few_scores)
@MANY
def test_above_keeps_what_is_over_it_and_not_what_is_equal(tmp_path, corpus, above):
    documents, scores = zip(*corpus, strict=True)
    found = chosen(tmp_path, documents, scores, above=above)
    assert found == [i for i, score in enumerate(scores) if score > above]


@given(corpus=st.lists(st.booleans(), min_size=1, max_size=40), data=st.data())
@MANY
def test_an_order_of_selected_documents_is_the_order_without_the_others(tmp_path, corpus, data):
    order = data.draw(st.permutations(range(len(corpus))))
    documents = [[3]] * len(corpus)
    assert chosen(tmp_path, documents, order=order) == order
    if any(corpus):
        found = chosen(tmp_path, documents, corpus, order=order)
        assert found == [i for i in order if corpus[i]]


def texts(lengths):
    """Documents in which no token but EOS occurs twice, as `make_corpus` makes them."""
    starts = np.cumsum([1, *(n - 1 for n in lengths)])
    return [
        [*range(start, start + n - 1), EOS] for start, n in zip(starts[:-1], lengths, strict=True)
    ]


def plan_of(source, epochs, *, batch=1, reshuffle=True):
    config = BlendConfig.model_validate(
        {
            "sequence_length": S,
            "global_batch_size": batch,
            "corpora": {"c": {"epochs": epochs, "reshuffle": reshuffle}},
        }
    )
    return solve(config, {"c": measure(source)})


def windows(plan):
    """Served windows, S + 1 tokens each, by epoch."""
    per_epoch = plan.corpora[0].windows_per_epoch
    served = [
        (*sample["tokens"].tolist(), int(sample["labels"][-1])) for sample in BlendedStreams(plan)
    ]
    return [served[i : i + per_epoch] for i in range(0, len(served), per_epoch)]


@given(
    corpus=st.lists(st.tuples(st.integers(2, 20), few_scores), min_size=4, max_size=30),
    top=st.sampled_from([0.2, 0.5, 0.8]),
    of=st.sampled_from(["documents", "tokens"]),
    epochs=st.integers(1, 3),
)
@FEW
def test_each_epoch_holds_the_tokens_of_selected_documents_once_and_no_others(
    make_corpus, tmp_path, corpus, top, of, epochs
):
    lengths, scores = zip(*corpus, strict=True)
    kept = chosen(tmp_path, [[n] for n in lengths], scores, top=top, of=of)
    tokens = sum(lengths[i] for i in kept)
    assume(tokens > S)
    prefix = make_corpus("c", lengths)
    source = SourceConfig.model_validate(
        {"data": prefix, "select": {"file": tmp_path / "scores.npy", "top": top, "of": of}}
    )
    plan = plan_of(source, epochs)
    assert (plan.corpora[0].documents, plan.corpora[0].tokens) == (len(kept), tokens)
    every = texts(lengths)
    wanted = Counter(token for i in kept for token in every[i])
    for epoch in windows(plan):
        inputs = Counter(token for window in epoch for token in window[:-1])
        assert len(epoch) == (tokens - 1) // S
        assert inputs <= wanted
        assert (wanted - inputs).total() == 1 + (tokens - 1) % S  # the dropped remainder


@given(
    lengths=st.lists(st.integers(2, 20), min_size=4, max_size=30),
    epochs=st.integers(1, 3),
    masked=st.booleans(),
    data=st.data(),
)
@FEW
def test_every_window_follows_the_order_of_the_file_in_every_epoch(
    make_corpus, tmp_path, lengths, epochs, masked, data
):
    order = data.draw(st.permutations(range(len(lengths))))
    np.save(tmp_path / "order.npy", np.array(order))
    source = {"data": make_corpus("c", lengths), "order": tmp_path / "order.npy"}
    kept = [True] * len(lengths)
    if masked:
        kept = data.draw(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept)))
        np.save(tmp_path / "mask.npy", np.array(kept))
        source["select"] = {"file": tmp_path / "mask.npy"}
    every = texts(lengths)
    text = [token for i in order if kept[i] for token in every[i]]
    assume(len(text) > S)
    cut = [tuple(text[i : i + S + 1]) for i in range(0, len(text) - S, S)]
    for epoch in windows(plan_of(SourceConfig.model_validate(source), epochs)):
        assert sorted(epoch) == sorted(cut)


@pytest.mark.parametrize("reshuffle", [True, False])
def test_windows_of_a_given_order_are_permuted_anew_unless_told_otherwise(
    make_corpus, tmp_path, reshuffle
):
    np.save(tmp_path / "order.npy", np.random.default_rng(0).permutation(60))
    source = SourceConfig(data=make_corpus("c", [9] * 60), order=tmp_path / "order.npy")
    first, second = windows(plan_of(source, 2, reshuffle=reshuffle))
    assert sorted(first) == sorted(second)
    assert (first == second) is not reshuffle
    assert first != sorted(first)


def test_scores_that_change_after_planning_are_noticed(make_corpus, tmp_path):
    scores = tmp_path / "scores.npy"
    np.save(scores, np.arange(40))
    source = SourceConfig.model_validate(
        {"data": make_corpus("c", [9] * 40), "select": {"file": scores, "top": 0.5}}
    )
    plan = plan_of(source, 1)
    assert len(BlendedStreams(plan)) == plan.samples
    np.save(scores, np.arange(40)[::-1])
    with pytest.raises(DataError, match="is not what was planned"):
        BlendedStreams(plan)


def test_the_audit_passes_over_a_selection_and_an_order(make_corpus, tmp_path):
    np.save(tmp_path / "order.npy", np.random.default_rng(1).permutation(50))
    np.save(tmp_path / "scores.npy", np.random.default_rng(2).normal(size=50))
    source = SourceConfig.model_validate(
        {
            "data": make_corpus("c", [5 + i % 9 for i in range(50)]),
            "select": {"file": tmp_path / "scores.npy", "above": 0},
            "order": tmp_path / "order.npy",
        }
    )
    plan = plan_of(source, 3)
    prefixes = {"c": source.data}
    assert audit(plan, prefixes, plan.steps).faults == ()
