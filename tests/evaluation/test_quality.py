"""The quality table: every column on documents of which it is known, and intervals of shares."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told_judge import ToldJudge

from megatron_synth.config import DataError, RunError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.evaluation.proportions import share_record, wilson_interval
from megatron_synth.evaluation.quality import COLUMNS, REFERENCE, QualityConfig, measure_quality

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "rstxz"]


def text(key, count=60):
    return " ".join(random.Random(str(key)).choices(WORDS, k=count))


REAL = [Document(f"doc-{n}", text(f"real {n}")) for n in range(28)] + [
    Document("doc-28", text("real 0") + " again"),
    Document("doc-29", f"{text('twice', 20)} x y {text('twice', 20)}"),
]


def synthetic(number, own=None):
    return Document(f"s{number}", own or text(f"synthetic {number}"), source_id=f"doc-{number}")


@pytest.fixture
def corpora(tmp_path):
    """20 documents: two repeat themselves, three copy, one quotes, three are nearly the same."""
    documents = [synthetic(n) for n in range(11)]
    documents += [synthetic(n, f"{text(('r', n), 30)} x y {text(('r', n), 30)}") for n in (11, 12)]
    documents += [synthetic(n, REAL[n].text.upper() + "!") for n in (13, 14, 15)]
    quoted = " ".join(REAL[16].text.split()[10:25])
    documents += [synthetic(16, f"{text('before')} {quoted} {text('after')}")]
    documents += [synthetic(n, f"{text('near')} end {'abc'[n - 17]}") for n in (17, 18, 19)]
    write_documents(tmp_path / "synthetic.jsonl", documents)
    write_documents(tmp_path / "real.jsonl", REAL)
    return tmp_path


def measure(corpora, engine=None, real="real.jsonl", **settings):
    beside = None if real is None else corpora / real
    config = QualityConfig.model_validate(settings)
    return measure_quality(config, corpora / "synthetic.jsonl", beside, engine)


def counts(row):
    return {name: row[name] and (row[name]["count"], row[name]["of"]) for name in row}


def test_columns_by_rule_are_counted_for_the_synthetic_and_the_real_corpus(corpora):
    found = measure(corpora)
    assert counts(found["synthetic"]) == {
        "repetition": (2, 20),
        "duplicate": (3, 20),
        "duplicate_repeats": (2, 20),
        "copying": (3, 20),
        "shared_passage": (4, 20),
        "non_factual": None,
        "irrelevance": None,
        "factuality_undefined": None,
    }
    assert counts(found["real"])["repetition"] == (1, 30)
    assert counts(found["real"])["duplicate"] == (2, 30)
    assert found["real"]["copying"] is None
    assert found["reference"]["SBP, 1T scale"]["irrelevance"] == 0.078
    assert all(set(row) == set(COLUMNS) for row in REFERENCE.values())


def test_duplicates_of_both_corpora_are_also_counted_at_one_number_of_documents(corpora):
    equal = measure(corpora)["duplicate_equal"]
    assert equal["synthetic"]["of"] == equal["real"]["of"] == 20
    assert equal["synthetic"]["count"] == 3
    assert measure(corpora, duplicate_samples=15)["duplicate_equal"] is None


def test_without_the_real_corpus_pairs_are_not_measured(corpora):
    found = measure(corpora, real=None)
    assert found["real"] is found["duplicate_equal"] is found["synthetic"]["copying"] is None
    assert counts(found["synthetic"])["repetition"] == (2, 20)


def test_the_judge_fills_its_columns_for_both_corpora(corpora):
    def say(prompt):
        if prompt.startswith("Two texts"):
            both = REAL[3].text in prompt and text("synthetic 3") in prompt
            return "irrelevant" if both else "Relevant."
        if text("synthetic 4") in prompt or REAL[5].text in prompt or REAL[6].text in prompt:
            return "**error**"
        return "undefined" if text("synthetic 5") in prompt else "No error"

    found = measure(corpora, ToldJudge(say))
    assert counts(found["synthetic"])["irrelevance"] == (1, 20)
    assert counts(found["synthetic"])["non_factual"] == (1, 20)
    assert counts(found["synthetic"])["factuality_undefined"] == (1, 20)
    assert counts(found["real"])["non_factual"] == (2, 30)
    assert found["real"]["irrelevance"] is None
    assert (found["unjudged"], found["cut"]) == (0, 0)


def test_samples_are_nested_drawn_by_seed_and_bound_what_the_judge_reads(corpora):
    judge = ToldJudge(lambda prompt: "relevant" if prompt.startswith("Two") else "error")
    sizes = {"samples": 4, "factuality_samples": 6, "rule_samples": 8, "duplicate_samples": 10}
    found = measure(corpora, judge, max_characters=100, **sizes)
    assert len(judge.asked) == 4 + 6 + 6
    assert found["cut"] == 4 + 6 + 6
    row = {name: value["of"] for name, value in found["synthetic"].items()}
    assert (row["irrelevance"], row["non_factual"], row["copying"]) == (4, 6, 8)
    assert (row["repetition"], row["duplicate"]) == (8, 10)
    drawn = [counts(measure(corpora, seed=s, **sizes)["synthetic"]) for s in range(6)]
    assert drawn == [counts(measure(corpora, seed=s, **sizes)["synthetic"]) for s in range(6)]
    assert any(row != drawn[0] for row in drawn)


def test_a_judge_that_does_not_answer_in_the_form_asked_for_is_refused(corpora):
    with pytest.raises(RunError, match="0 of 70 questions in the form asked for: 70 answers"):
        measure(corpora, ToldJudge(lambda _: "I think that they are relevant"))
    with pytest.raises(RunError, match="70 failed"):
        measure(corpora, ToldJudge(lambda _: None))


def test_sources_that_are_missing_are_named(corpora):
    write_documents(corpora / "few.jsonl", REAL[:19])
    with pytest.raises(DataError, match=r"1 of 20 sources .* 'doc-19'"):
        measure(corpora, real="few.jsonl")


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1)],
)
def test_wilson_intervals_agree_with_published_ones(count, of, low, high):
    found = wilson_interval(count, of)
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)


@given(of=st.integers(1, 10**7), data=st.data())
def test_an_interval_holds_its_share_and_lies_within_zero_and_one(of, data):
    count = data.draw(st.integers(0, of))
    found = wilson_interval(count, of)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    mirrored = wilson_interval(of - count, of)
    assert mirrored.low == pytest.approx(1 - found.high, abs=1e-9)


def test_no_share_of_nothing():
    assert share_record(0, 0) is None
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(3, 2)
